package keeper

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"lodge/internal/base/errs"
)

// Client is the daemon's side of a keeper. It holds a duplicate of every
// program's pidfd and console, so that a keeper that was lost loses no program:
// the client starts another one at once and hands all over.
type Client struct {
	o    Options
	life context.Context // ends with Close
	end  context.CancelFunc

	mu      sync.Mutex
	line    *line         // nil while there is no connection
	changed chan struct{} // closed and replaced when line or failed changes
	failed  error         // why there is no connection, once an attempt failed
	held    map[string]*held
	exits   map[*subscription]struct{}
	keeper  string // the instance that knows what we hold
	leaving bool   // the keeper is about to end as we wish: no other is started
	trying  bool   // reconnect is at work
}

// line is one connection and the requests that wait for a reply on it.
type line struct {
	conn    *net.UnixConn
	recv    *Receiver
	lost    chan struct{}
	sending sync.Mutex

	mu      sync.Mutex
	last    uint64
	waiting map[uint64]chan Message
}

func open(ctx context.Context, o Options) (*Client, error) {
	var err error
	if o.Dir, err = filepath.Abs(o.Dir); err != nil {
		return nil, err
	}
	life, end := context.WithCancel(context.Background())
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	c := &Client{o: o, life: life, end: end, changed: make(chan struct{}),
		held: map[string]*held{}, exits: map[*subscription]struct{}{}}
	if err := c.connect(ctx); err != nil {
		end()
		return nil, err
	}
	return c, nil
}

// connect makes a connection on which everything that is held here and there is
// known on both sides, and serves it in the background.
func (c *Client) connect(ctx context.Context) error {
	conn, err := dialOrSpawn(ctx, c.o)
	if err != nil {
		return err
	}
	l := &line{conn: conn, recv: NewReceiver(conn), lost: make(chan struct{}), waiting: map[uint64]chan Message{}}
	listed := map[string]bool{}
	go c.serve(l, listed)
	hello, err := l.call(ctx, Message{Op: OpHello})
	if err == nil {
		err = c.handOver(ctx, l, hello.Instance)
	}
	if err == nil {
		_, err = l.call(ctx, Message{Op: OpFollow})
	}
	if err != nil {
		conn.Close()
		return err
	}
	return c.settle(l, hello.Instance, listed)
}

// handOver tells a keeper that does not know what we hold.
func (c *Client) handOver(ctx context.Context, l *line, instance string) error {
	c.mu.Lock()
	known := c.keeper == instance
	all := make([]*held, 0, len(c.held))
	for _, h := range c.held {
		all = append(all, h)
	}
	c.mu.Unlock()
	if known {
		return nil
	}
	for _, h := range all {
		c.mu.Lock()
		r, fds := h.rec, h.files()
		c.mu.Unlock()
		if _, err := l.call(ctx, Message{Op: OpAdopt, Record: &r}, fds...); err != nil {
			return err
		}
		if err := h.handOverListeners(ctx, l); err != nil {
			return err
		}
	}
	return nil
}

// settle makes l the connection in use. What we held and the keeper did not
// list has ended and was forgotten behind our back.
func (c *Client) settle(l *line, instance string, listed map[string]bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name := range c.held {
		if !listed[name] {
			c.drop(name)
		}
	}
	c.unlisted(listed)
	select {
	case <-l.lost:
		return errLost
	default:
	}
	if c.life.Err() != nil { // closed meanwhile
		l.conn.Close()
		return c.life.Err()
	}
	c.line, c.keeper, c.failed, c.trying = l, instance, nil, false
	c.tell()
	return nil
}

// tell wakes everyone who waits for the connection to change. Callers hold mu.
func (c *Client) tell() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// serve takes in what the keeper tells until the connection ends. listed
// collects the names that it tells of before the first OpFollow is answered.
func (c *Client) serve(l *line, listed map[string]bool) {
	for {
		m, fds, err := l.recv.Receive()
		if err != nil {
			break
		}
		if m.Op == OpReply {
			CloseAll(fds)
			l.answer(m)
			continue
		}
		c.mu.Lock()
		switch m.Op {
		case OpHave:
			if c.line != l {
				listed[m.Record.Name] = true
			}
			c.have(*m.Record, fds, c.line == l || c.keeper != "")
		case OpExit:
			c.have(*m.Record, nil, true)
		case OpGone:
			c.drop(m.Name)
		case OpWatched:
			if c.line != l {
				listed[listedWatch(m.Name, m.Watch)] = true
			}
			c.watched(m, fds)
		case OpUnwatched:
			c.unwatch(m.Name, m.Watch)
		default:
			CloseAll(fds)
		}
		c.mu.Unlock()
	}
	l.conn.Close()
	c.mu.Lock()
	close(l.lost)
	inUse := c.line == l
	if inUse {
		c.line = nil
		c.tell()
	}
	c.mu.Unlock()
	if inUse {
		go c.reconnect()
	}
}

// maxDying is how many connections may be lost while they are made before that
// is a failure: a keeper that was killed takes some as long as it is dying.
const maxDying = 20

// reconnect tries until there is a keeper again or the client is closed.
func (c *Client) reconnect() {
	c.mu.Lock()
	idle := c.trying || c.leaving || c.line != nil
	c.trying = c.trying || !idle
	c.mu.Unlock()
	if idle {
		return
	}
	dying := maxDying
	for pause := 10 * time.Millisecond; c.life.Err() == nil; pause = min(2*pause, 2*time.Second) {
		ctx, cancel := context.WithTimeout(c.life, 30*time.Second)
		err := c.connect(ctx)
		cancel()
		if err == nil {
			return
		}
		if dying--; errors.Is(err, errLost) && dying >= 0 {
			time.Sleep(time.Millisecond)
			pause /= 2 // not this attempt's fault
			continue
		}
		c.o.Log.Warn("no keeper", "dir", c.o.Dir, "err", err)
		c.mu.Lock()
		c.failed = err
		c.tell()
		c.mu.Unlock()
		select {
		case <-c.life.Done():
		case <-time.After(pause):
		}
	}
}

// connected returns the connection, waiting for one to be made. It gives up
// with the reason of the first attempt that failed while it waited.
func (c *Client) connected(ctx context.Context) (*line, error) {
	for {
		c.mu.Lock()
		l, changed, failed := c.line, c.changed, c.failed
		c.mu.Unlock()
		switch {
		case l != nil:
			return l, nil
		case c.life.Err() != nil:
			return nil, &errs.Error{Op: "keeper", Kind: errs.Unavailable, Msg: "the connection to the keeper was closed"}
		case failed != nil:
			return nil, &errs.Error{Op: "keeper", Kind: errs.Unavailable, Msg: "the keeper of this host does not run and cannot be started", Err: failed}
		}
		select {
		case <-changed:
		case <-c.life.Done():
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// errLost says that the connection ended before the reply came: the request may
// have been carried out or not. errUnsent is the case in which it was not.
var (
	errLost   = errors.New("the keeper was lost")
	errUnsent = fmt.Errorf("%w before it was asked", errLost)
)

// call asks once on this connection.
func (l *line) call(ctx context.Context, m Message, fds ...int) (Message, error) {
	reply := make(chan Message, 1)
	l.mu.Lock()
	l.last++
	m.ID = l.last
	l.waiting[m.ID] = reply
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		delete(l.waiting, m.ID)
		l.mu.Unlock()
	}()
	l.sending.Lock()
	err := Send(l.conn, m, fds...)
	l.sending.Unlock()
	if err != nil && errs.KindOf(err) == errs.Invalid {
		return Message{}, err
	}
	if err != nil {
		l.conn.Close() // serve sees it if it has not yet
		return Message{}, errUnsent
	}
	select {
	case r := <-reply:
		return r, r.Failure.Err()
	case <-l.lost:
		select {
		case r := <-reply: // it came just before
			return r, r.Failure.Err()
		default:
			return Message{}, errLost
		}
	case <-ctx.Done():
		return Message{}, &errs.Error{Op: "keeper." + string(m.Op), Kind: errs.Cancelled, Ref: m.Name, Msg: "was given up", Err: ctx.Err()}
	}
}

func (l *line) answer(m Message) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if reply, ok := l.waiting[m.ID]; ok {
		reply <- m
		delete(l.waiting, m.ID)
	}
}

// again asks until there is a reply, across keepers that are lost: for requests
// that do no harm when done twice.
func (c *Client) again(ctx context.Context, m Message, fds ...int) (Message, error) {
	for {
		l, err := c.connected(ctx)
		if err != nil {
			return Message{}, err
		}
		r, err := l.call(ctx, m, fds...)
		if !errors.Is(err, errLost) {
			return r, err
		}
		if err := c.past(ctx, l); err != nil {
			return Message{}, err
		}
	}
}

// past waits until l is no longer the connection in use.
func (c *Client) past(ctx context.Context, l *line) error {
	for {
		c.mu.Lock()
		now, changed := c.line, c.changed
		c.mu.Unlock()
		if now != l {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Start runs p and keeps it under name.
func (c *Client) Start(ctx context.Context, name string, p Program) (Held, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	if len(p.Argv) == 0 || !filepath.IsAbs(p.Argv[0]) {
		return nil, errs.Bad("argv", "a program needs the full path of what to run", "")
	}
	var fds []int
	if len(p.Input) > 0 {
		f, err := inputFile(p.Input)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		fds = append(fds, int(f.Fd()))
		p.Input = nil
	}
	for {
		l, err := c.connected(ctx)
		if err != nil {
			return nil, err
		}
		_, err = l.call(ctx, Message{Op: OpStart, Name: name, Program: &p}, fds...)
		if err == nil {
			return c.Find(name)
		}
		if !errors.Is(err, errLost) {
			return nil, err
		}
		if err := c.past(ctx, l); err != nil {
			return nil, err
		}
		if errors.Is(err, errUnsent) {
			continue
		}
		// It may run or not. What the next keeper has tells.
		if _, err := c.connected(ctx); err != nil {
			return nil, err
		}
		if h, err := c.Find(name); err == nil {
			return h, nil
		}
		return nil, &errs.Error{Op: "keeper.start", Kind: errs.Busy, Ref: name, Msg: "the keeper was lost while it started the program"}
	}
}

// Find returns what is kept under name.
func (c *Client) Find(name string) (Held, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	h, ok := c.held[name]
	if !ok {
		return nil, &errs.Error{Op: "keeper.find", Kind: errs.NotFound, Ref: name, Msg: "no such program is kept"}
	}
	return h, nil
}

// All returns what is kept, sorted by name.
func (c *Client) All() []State {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]State, 0, len(c.held))
	for _, h := range c.held {
		out = append(out, h.rec.State)
	}
	slices.SortFunc(out, func(a, b State) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// Forget drops what is known of a program that has ended. Forgetting what is
// not known is done already; what still runs is errs.Conflict.
func (c *Client) Forget(ctx context.Context, name string) error {
	_, err := c.again(ctx, Message{Op: OpForget, Name: name})
	if errs.Is(err, errs.NotFound) {
		return nil
	}
	return err
}

// Close lets go of the keeper; everything runs on.
func (c *Client) Close() error {
	c.end()
	c.mu.Lock()
	l := c.line
	c.line = nil
	c.tell()
	for name := range c.held {
		c.release(c.held[name])
		delete(c.held, name)
	}
	c.mu.Unlock()
	if l != nil {
		_ = l.conn.Close() // fails only when the other side was first
	}
	return nil
}
