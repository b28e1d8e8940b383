package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"lodge/internal/agent/dial"
	"lodge/internal/base/errs"
	"lodge/internal/engine"
	"lodge/internal/engine/qemu/qmp"
	"lodge/internal/keeper"
	"lodge/internal/launch"
	"lodge/internal/model/guest"
)

const (
	// openTime is how long QEMU may take to open its monitor, and how long a
	// Connect waits for that: then the guest can be killed and little else.
	openTime    = 30 * time.Second
	connectTime = 5 * time.Second
	// doTime is how long QEMU may take for a command that is done at once.
	doTime = 20 * time.Second
	// reopenAfter is how soon a monitor that failed is tried again, and a
	// guest whose disk was full is let go on.
	reopenAfter = time.Second
	retryAfter  = 5 * time.Second
	// settleAfter is how soon such a guest stands still again if there is still
	// no space.
	settleAfter = time.Second
)

// links are the lines to this daemon's guests: one for each QEMU, however many
// Machines there are.
type links struct {
	mu sync.Mutex
	of map[linkKey]*link
}

// linkKey tells the QEMUs apart of a guest that moves from one to another.
type linkKey struct {
	guest string // its id
	pid   int
}

// link is the lines to one running QEMU.
type link struct {
	e      *Engine
	id     string
	key    linkKey
	held   keeper.Held
	agent  *dial.Link  // nil for guests that are not Lodge's to furnish
	theirs *guestAgent // of those
	boot   *bootWatch  // likewise
	end    context.CancelFunc
	life   context.Context
	tried  chan struct{} // closed when the monitor answered, or did not, for the first time

	mu       sync.Mutex
	monitor  *qmp.Client // nil while it does not answer
	failure  error       // why not
	retrying bool        // the guest is let try again to write to a full disk, in a while
	status   string      // QEMU's word: "running", "paused", "io-error", ...
	trouble  string
	killed   bool                  // its end is on the way
	noBoot   *guest.NoBoot         // why nothing boots
	deleted  map[string]chan error // waits for the end of a device
	move     *move                 // that is under way, or nil
	device   sync.Mutex            // one change of the devices at a time
}

// link returns the lines to a guest, which are opened by the first call.
func (e *Engine) link(ctx context.Context, g guest.Guest, parts engine.Parts, h keeper.Held) *link {
	e.links.mu.Lock()
	key := linkKey{g.ID, h.State().Pid}
	l := e.links.of[key]
	if l == nil || l.life.Err() != nil {
		l = e.newLink(g, parts, h)
		e.links.of[key] = l
	}
	e.links.mu.Unlock()
	timeout := time.NewTimer(connectTime)
	defer timeout.Stop()
	select {
	case <-l.tried:
	case <-ctx.Done():
	case <-timeout.C:
	}
	return l
}

func (e *Engine) newLink(g guest.Guest, parts engine.Parts, h keeper.Held) *link {
	l := &link{e: e, id: g.ID, key: linkKey{g.ID, h.State().Pid}, held: h, tried: make(chan struct{}), deleted: map[string]chan error{}}
	l.life, l.end = context.WithCancel(context.Background())
	if parts.Root.Own == nil {
		if f, err := launch.Take(h, hostEnd(agentAt)); err != nil {
			l.trouble = "its agent cannot be spoken to: " + err.Error()
		} else {
			up, silent := engine.BeforeNow(g, l.key.pid)
			l.agent = dial.Open(f, dial.Options{Log: e.o.Log.With("guest", g.Name), Booted: up, Silent: silent, Changed: func() { e.o.Changed(g.ID) }})
		}
	} else {
		l.theirs, l.boot = newGuestAgent(l, g, parts), newBootWatch(l, parts)
	}
	go l.keep(parts.Memory)
	if e.o.Compresses != nil {
		go l.pageOut(parts.Cgroup)
	}
	go func() {
		_, _ = h.Wait(l.life)
		l.close()
	}()
	return l
}

// Close lets go of all guests, which run on. The engine finds them again.
func (e *Engine) Close() {
	e.links.mu.Lock()
	var all []*link
	for _, l := range e.links.of {
		all = append(all, l)
	}
	e.links.mu.Unlock()
	for _, l := range all {
		l.close()
	}
	e.images.forget()
}

func (l *link) close() {
	l.end()
	l.e.links.mu.Lock()
	if l.e.links.of[l.key] == l {
		delete(l.e.links.of, l.key)
	}
	l.e.links.mu.Unlock()
	if l.agent != nil {
		l.agent.Close()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.monitor != nil {
		l.monitor.Close()
	}
}

// keep has a session with the monitor as long as the guest runs. A guest that
// goes on from saved memory is set going first.
func (l *link) keep(memory string) {
	first := sync.OnceFunc(func() { close(l.tried) })
	defer first()
	for l.life.Err() == nil {
		c, err := l.open()
		if err != nil {
			first()
			l.note(func() { l.failure = err })
			l.sleep(reopenAfter)
			continue
		}
		if memory != "" {
			if err := l.goOn(memory); err != nil {
				l.note(func() { l.trouble = "it cannot go on from its saved memory: " + err.Error() })
			}
			if w, err := l.asStarted(); err == nil {
				defer l.e.images.use(w.Image)()
			}
			memory = ""
		}
		first()
		l.listen(l.life)
		select {
		case <-c.Done():
		case <-l.life.Done():
			c.Close()
		}
		l.note(func() { l.monitor = nil }) // if it stays so, the next attempt says why
		l.sleep(reopenAfter)
	}
}

func (l *link) sleep(d time.Duration) {
	select {
	case <-time.After(d):
	case <-l.life.Done():
	}
}

// open begins a session and learns how the guest is.
func (l *link) open() (*qmp.Client, error) {
	ctx, cancel := context.WithTimeout(l.life, openTime)
	defer cancel()
	f, err := launch.Take(l.held, hostEnd(monitorAt))
	if err != nil {
		return nil, err
	}
	conn, err := net.FileConn(f)
	f.Close()
	if err != nil {
		return nil, err
	}
	unix, ok := conn.(*net.UnixConn)
	if !ok {
		conn.Close()
		return nil, fmt.Errorf("the monitor's line is a %T", conn)
	}
	c, err := qmp.Open(ctx, unix, l.event)
	if err != nil {
		return nil, err
	}
	var s struct{ Status string }
	if err := c.Do(ctx, "query-status", nil, &s); err != nil {
		c.Close()
		return nil, err
	}
	l.note(func() { l.monitor, l.failure, l.status = c, nil, s.Status })
	switch s.Status { // since an earlier daemon
	case "watchdog":
		l.endHung()
	case "io-error":
		l.retryLater()
	}
	l.theirAgent((*guestAgent).ask)
	return c, nil
}

// note changes what is known and tells whoever wants to know.
func (l *link) note(change func()) {
	l.mu.Lock()
	status, trouble, up, failed, stuck := l.status, l.trouble, l.monitor != nil, l.failure != nil, l.noBoot
	change()
	same := status == l.status && trouble == l.trouble && up == (l.monitor != nil) && failed == (l.failure != nil) && alike(stuck, l.noBoot)
	l.mu.Unlock()
	if !same {
		l.e.o.Changed(l.id)
	}
}

func alike(a, b *guest.NoBoot) bool { return a == b || a != nil && b != nil && *a == *b }

// do has QEMU carry out a command. An error is one for a person.
func (l *link) do(ctx context.Context, command string, args, result any) error {
	return l.with(ctx, func(ctx context.Context, c *qmp.Client) error { return c.Do(ctx, command, args, result) })
}

// with uses the monitor for a bounded time.
func (l *link) with(ctx context.Context, use func(ctx context.Context, c *qmp.Client) error) error {
	l.mu.Lock()
	c, failure := l.monitor, l.failure
	l.mu.Unlock()
	if c == nil {
		return l.silent(failure)
	}
	ctx, cancel := context.WithTimeout(ctx, doTime)
	defer cancel()
	err := use(ctx, c)
	switch refused, ok := errors.AsType[*qmp.Error](err); {
	case err == nil:
		return nil
	case ok:
		return &errs.Error{Op: "qemu", Kind: errs.Conflict, Msg: "QEMU refuses " + refused.Command + ": " + refused.Desc, Err: err}
	case l.held.State().Exit != nil:
		return &errs.Error{Op: "qemu", Kind: errs.Conflict, Msg: "the guest has ended", Err: err}
	case errs.KindOf(err) != errs.Internal:
		return err
	}
	return l.silent(err)
}

func (l *link) silent(err error) error {
	return &errs.Error{Op: "qemu", Kind: errs.Unavailable, Msg: "QEMU does not answer", Hint: "if it stays so, stop the guest with --force", Err: err}
}

// incomingTime is how long QEMU may take to read a memory image.
const incomingTime = 10 * time.Minute

// goOn has a QEMU that waits for a saved guest read it from a folder, and lets
// the guest run.
func (l *link) goOn(dir string) error {
	if l.state() != "inmigrate" {
		return nil // an earlier daemon did it
	}
	ctx, cancel := context.WithTimeout(l.life, incomingTime)
	defer cancel()
	_, err := os.Stat(filepath.Join(dir, savedMemory))
	err = l.do(ctx, "migrate-set-capabilities", capabilities("x-ignore-shared", err == nil), nil)
	if err == nil {
		err = l.do(ctx, "migrate-incoming", map[string]any{"uri": fmt.Sprintf("fd:%d", descriptorOf(stateAt))}, nil)
	}
	if err != nil && !errs.Is(err, errs.Conflict) { // what was begun before is refused
		return err
	}
	const pace = 3 * time.Millisecond
	for ; l.state() == "inmigrate"; l.sleep(pace) {
		var s struct{ Status string }
		if err := l.do(ctx, "query-status", nil, &s); err != nil {
			return err
		}
		l.note(func() { l.status = s.Status })
	}
	return l.do(ctx, "cont", nil, nil)
}

func (l *link) state() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.status
}
