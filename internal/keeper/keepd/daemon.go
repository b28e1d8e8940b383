package keepd

import (
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
	"lodge/internal/keeper"
)

// daemon is the running keeper.
type daemon struct {
	dir      string
	instance string
	boot     string
	log      *slog.Logger
	listener *net.UnixListener
	lock     *os.File // held as long as this keeper lives
	exits    *exits
	consoles *consoles
	watches  *watches
	version  func() (string, error)
	over     chan struct{} // closed by a shutdown

	// gate is held for reading by whatever must not be cut in two by an
	// upgrade, and for writing by the upgrade.
	gate sync.RWMutex
	// forking guards the process' own OOM score, which children inherit.
	forking sync.Mutex
	spared  bool // that score is lowered, and must not be for children; set before serving

	mu       sync.Mutex
	programs map[string]*program
	clients  map[*client]struct{} // those that follow
	closing  bool
}

// program is one kept program. Its fields are guarded by the daemon's mu.
type program struct {
	rec      keeper.Record
	starting bool
	pidfd    int // -1 once it has ended
	child    bool
	console  *console // nil: none, or it is over

	watches map[string]*watch // by name
	turn    sync.Mutex        // held while one of them is answered; taken after mu, if both
}

func newDaemon(dir, instance string, l *net.UnixListener, lock *os.File, log *slog.Logger) (*daemon, error) {
	l.SetUnlinkOnClose(false)
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(dir, recordDir), 0o700); err != nil {
		return nil, err
	}
	k := &daemon{dir: dir, instance: instance, boot: strings.TrimSpace(string(boot)), log: log, listener: l, lock: lock,
		version: sync.OnceValues(func() (string, error) { return keeper.BinaryVersion("/proc/self/exe") }),
		over:    make(chan struct{}), programs: map[string]*program{}, clients: map[*client]struct{}{}}
	if k.exits, err = newExits(func(p *program) { go k.ended(p) }); err != nil {
		return nil, err
	}
	if k.consoles, err = newConsoles(log); err != nil {
		return nil, err
	}
	k.watches, err = newWatches(log, func(w *watch) { k.unwatch(w) })
	return k, err
}

// serve answers until a shutdown.
func (k *daemon) serve() error {
	go k.exits.run()
	go k.consoles.run()
	go k.watches.run()
	go func() {
		<-k.over
		k.listener.Close()
	}()
	for {
		conn, err := k.listener.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		go k.converse(conn)
	}
}

// converse answers one client until it leaves.
func (k *daemon) converse(conn *net.UnixConn) {
	c := newClient(conn)
	go c.write(k)
	recv := keeper.NewReceiver(conn)
	for {
		m, fds, err := recv.Receive()
		if err != nil {
			break
		}
		k.handle(c, m, fds)
	}
	c.close()
	k.mu.Lock()
	delete(k.clients, c)
	k.mu.Unlock()
}

// handle does what one request asks; its descriptors are ours to close.
func (k *daemon) handle(c *client, m keeper.Message, fds []int) {
	reply := keeper.Message{ID: m.ID, Op: keeper.OpReply}
	var err error
	switch m.Op {
	case keeper.OpHello:
		reply.Instance = k.instance
	case keeper.OpVersion:
		reply.Version, err = k.version()
	case keeper.OpAdopt:
		k.adopt(*m.Record, fds)
		fds = nil
	case keeper.OpFollow:
		k.follow(c)
	case keeper.OpForget:
		err = k.forget(m.Name)
	case keeper.OpAttach:
		err = k.attach(m.Name, fds)
		fds = nil
	case keeper.OpWatch:
		err = k.watchMore(m.Name, m.Watch, fds)
		fds = nil
	case keeper.OpShutdown:
		err = k.shutdown()
	case keeper.OpStart, keeper.OpUpgrade:
		// These take time, and others must not wait for them.
		go func() {
			var err error
			if m.Op == keeper.OpStart {
				err = k.start(m.Name, *m.Program, fds)
			} else {
				err = k.upgrade(m.Binary)
			}
			keeper.CloseAll(fds)
			c.put(packet{m: keeper.Message{ID: m.ID, Op: keeper.OpReply, Failure: keeper.NewFailure(err)}})
		}()
		return
	default:
		err = &errs.Error{Op: "keeper", Kind: errs.Unsupported, Msg: "this keeper does not know the request " + string(m.Op)}
	}
	keeper.CloseAll(fds)
	reply.Failure = keeper.NewFailure(err)
	c.put(packet{m: reply})
	if m.Op == keeper.OpShutdown && err == nil {
		c.finish()
		close(k.over)
	}
}

// follow tells c of everything that is kept and of every change from now on.
func (k *daemon) follow(c *client) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.clients[c] = struct{}{}
	for _, p := range k.programs {
		if !p.starting {
			c.put(packet{m: keeper.Message{Op: keeper.OpHave, Record: copyOf(p.rec)}, p: p})
		}
		for _, w := range p.watches {
			c.put(packet{m: keeper.Message{Op: keeper.OpWatched, Name: p.rec.Name, Watch: w.name}, w: w})
		}
	}
}

func copyOf(r keeper.Record) *keeper.Record { return &r }

// tell sends to all that follow. Callers hold mu, so that everyone hears
// everything in one order.
func (k *daemon) tell(p packet) {
	for c := range k.clients {
		c.put(p)
	}
}

// find returns a program that was started. Callers hold mu.
func (k *daemon) find(name string) (*program, error) {
	p, ok := k.programs[name]
	if !ok || p.starting {
		return nil, &errs.Error{Kind: errs.NotFound, Ref: name, Msg: "no such program is kept"}
	}
	return p, nil
}

func (k *daemon) forget(name string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	p, err := k.find(name)
	if err != nil {
		return err
	}
	if p.rec.Exit == nil {
		return &errs.Error{Kind: errs.Conflict, Ref: name, Msg: "the program still runs"}
	}
	if err := k.erase(name); err != nil {
		return err
	}
	delete(k.programs, name)
	k.tell(packet{m: keeper.Message{Op: keeper.OpGone, Name: name}})
	return nil
}

func (k *daemon) attach(name string, fds []int) error {
	k.mu.Lock()
	var console *console
	p, err := k.find(name)
	switch {
	case err != nil:
	case len(fds) != 1:
		err = errs.Bad("attach", "needs one descriptor", "")
	case p.rec.Exit != nil:
		err = &errs.Error{Kind: errs.Conflict, Ref: name, Msg: "the program has ended"}
	case p.console == nil:
		err = &errs.Error{Kind: errs.Unsupported, Ref: name, Msg: "the program has no console"}
	default:
		console = p.console
	}
	k.mu.Unlock()
	if err != nil {
		keeper.CloseAll(fds)
		return err
	}
	return k.consoles.attach(console, fds[0])
}

// shutdown forgets what has ended, if nothing runs. The caller lets the daemon
// end.
func (k *daemon) shutdown() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for name, p := range k.programs {
		if p.rec.Exit == nil {
			return &errs.Error{Kind: errs.Conflict, Ref: name, Msg: "the keeper cannot end while programs run"}
		}
	}
	if k.closing {
		return &errs.Error{Kind: errs.Conflict, Msg: "the keeper is ending already"}
	}
	k.closing = true
	return errors.Join(os.RemoveAll(filepath.Join(k.dir, recordDir)), os.Remove(filepath.Join(k.dir, keeper.Socket)))
}

// client is one connection. What is to be told waits in its queue, so that a
// client that does not read holds nobody up.
type client struct {
	conn *net.UnixConn

	mu    sync.Mutex
	some  sync.Cond
	queue []packet
	gone  bool
	idle  bool // the writer waits for more
}

// packet is a message and the program or the listener whose descriptors go with
// it.
type packet struct {
	m keeper.Message
	p *program
	w *watch
}

// maxQueue is how many packets may wait for a client that does not read, above
// which it is cut off: it will come back and ask for everything.
const maxQueue = 1 << 16

func newClient(conn *net.UnixConn) *client {
	c := &client{conn: conn}
	c.some.L = &c.mu
	return c
}

func (c *client) put(p packet) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.queue) >= maxQueue {
		c.gone = true
		c.conn.Close()
	}
	if !c.gone {
		c.queue = append(c.queue, p)
	}
	c.some.Broadcast()
}

// finish waits until everything was told.
func (c *client) finish() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for !c.gone && (len(c.queue) > 0 || !c.idle) {
		c.some.Wait()
	}
}

func (c *client) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gone = true
	c.conn.Close()
	c.some.Broadcast()
}

// next waits for something to tell.
func (c *client) next() ([]packet, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.queue) == 0 && !c.gone {
		c.idle = true
		c.some.Broadcast()
		c.some.Wait()
	}
	c.idle = false
	q := c.queue
	c.queue = nil
	return q, !c.gone
}

// write tells the client what is in its queue until it leaves.
func (c *client) write(k *daemon) {
	for {
		packets, ok := c.next()
		if !ok {
			return
		}
		for _, p := range packets {
			fds := k.files(p)
			err := keeper.Send(c.conn, p.m, fds...)
			keeper.CloseAll(fds)
			if err != nil {
				c.close()
				return
			}
		}
	}
}

// files returns duplicates of what a client needs to hold what a packet tells
// of, the caller's to close: it may end meanwhile.
func (k *daemon) files(about packet) []int {
	p := about.p
	if p == nil && about.w == nil {
		return nil
	}
	dup := func(fd int, err error) int {
		if err != nil {
			k.log.Error("too few descriptors", "err", err)
			return -1
		}
		return fd
	}
	if about.w != nil {
		if fd := dup(about.w.duplicate()); fd >= 0 {
			return []int{fd}
		}
		return nil
	}
	k.mu.Lock()
	pidfd, console := -1, p.console
	if p.pidfd >= 0 {
		pidfd = dup(unix.FcntlInt(uintptr(p.pidfd), unix.F_DUPFD_CLOEXEC, 0))
	}
	k.mu.Unlock()
	if pidfd < 0 {
		return nil
	}
	master := dup(console.duplicate())
	if master < 0 {
		return []int{pidfd}
	}
	return []int{pidfd, master}
}
