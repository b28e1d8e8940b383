package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"lodge/internal/base/errs"
	"lodge/internal/engine"
	"lodge/internal/engine/qemu/qga"
	"lodge/internal/launch"
	"lodge/internal/model/guest"
)

// guestAgent is QEMU's agent in a guest that is not Lodge's to furnish, if it
// has one. It comes and goes as the guest pleases, and says nothing by itself:
// QEMU tells when somebody opens its port, and what changes afterwards is asked
// for now and then.
type guestAgent struct {
	l    *link
	name string   // of the guest
	macs []string // of its cards
	mark string   // file that says that the disk has such an agent
	poke chan struct{}

	mu        sync.Mutex
	client    *qga.Client // nil: nobody listens
	info      qga.Info
	answered  bool // the client's agent did
	up        bool // it did since the machine was last switched on or reset
	resting   bool // file systems were brought to rest, and not let go on
	expected  bool // an earlier run had such an agent
	addresses []string
}

const (
	// markFile lies with the guest's disk, and is copied with it.
	markFile = "guest-agent"
	// bootTime is how long an unmodified guest may take to start its agent.
	bootTime = 5 * time.Minute
	// How often an agent is asked again, which begins anew with every change.
	firstAsk, lastAsk = time.Second, time.Minute
	// pokePace bounds what a guest costs that opens and closes its port.
	pokePace = 200 * time.Millisecond
)

func newGuestAgent(l *link, g guest.Guest, parts engine.Parts) *guestAgent {
	a := &guestAgent{l: l, name: g.Name, mark: filepath.Join(parts.Root.Writable, markFile), poke: make(chan struct{}, 1)}
	for _, n := range parts.NICs {
		a.macs = append(a.macs, n.MAC)
	}
	_, err := os.Lstat(a.mark)
	a.expected = err == nil
	go a.run()
	return a
}

// ask has the agent looked for, or at, soon.
func (a *guestAgent) ask() {
	select {
	case a.poke <- struct{}{}:
	default:
	}
}

// run looks for the agent and at what it says until the guest ends.
func (a *guestAgent) run() {
	var again <-chan time.Time
	next := firstAsk
	for {
		select {
		case <-a.l.life.Done():
			a.forget()
			return
		case <-a.poke:
			next = firstAsk
		case <-again:
			next = min(2*next, lastAsk)
		}
		again = nil
		if a.look() {
			again = time.After(next)
		}
		a.l.sleep(pokePace)
	}
}

// look reports whether there is somebody who is worth asking again.
func (a *guestAgent) look() bool {
	if paused(a.l.state()) {
		return false
	}
	open, err := a.l.portOpen(a.l.life)
	if err != nil {
		return false // the monitor's next session asks
	}
	c, err := a.connect(open)
	if err != nil {
		a.l.e.o.Log.Warn("a guest's QEMU agent cannot be spoken to", "guest", a.name, "err", err)
	}
	if c == nil {
		return false
	}
	if err := a.greet(c); err != nil {
		return true
	}
	a.mu.Lock()
	rests := a.resting
	a.mu.Unlock()
	if rests {
		return true // it could not answer
	}
	found, err := c.Addresses(a.l.life, a.macs)
	if err == nil {
		a.note(func() { a.addresses = found })
	}
	return true
}

// connect returns the client of an agent that listens; nil: nobody does.
func (a *guestAgent) connect(open bool) (*qga.Client, error) {
	a.mu.Lock()
	c := a.client
	a.mu.Unlock()
	if !open {
		a.forget()
		return nil, nil
	}
	if c != nil {
		return c, nil
	}
	f, err := launch.Take(a.l.held, hostEnd(agentAt))
	if err != nil {
		return nil, err
	}
	conn, err := net.FileConn(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	c = qga.New(conn)
	a.mu.Lock()
	a.client = c
	a.mu.Unlock()
	return c, nil
}

// forget lets go of an agent that is not there any more.
func (a *guestAgent) forget() {
	a.note(func() {
		if a.client != nil {
			a.client.Close()
		}
		a.client, a.answered, a.resting, a.addresses = nil, false, false, nil
	})
}

// greet learns what an agent is that has just been found. File systems that
// an earlier daemon brought to rest go on.
func (a *guestAgent) greet(c *qga.Client) error {
	a.mu.Lock()
	known := a.answered
	a.mu.Unlock()
	if known {
		return nil
	}
	ctx := a.l.life
	if frozen, err := c.Frozen(ctx); err == nil && frozen {
		if _, err := c.Thaw(ctx); err != nil {
			return err
		}
	}
	info, err := c.Info(ctx)
	if err != nil {
		return err
	}
	if err := a.expect(); err != nil {
		a.l.e.o.Log.Warn("cannot note that a guest has an agent", "guest", a.name, "err", err)
	}
	a.note(func() { a.answered, a.up, a.info = true, true, info })
	return nil
}

// expect notes that this disk has an agent, for the next run.
func (a *guestAgent) expect() error {
	if a.expected {
		return nil
	}
	return os.WriteFile(a.mark, nil, 0o600)
}

// note changes what is known and tells whoever wants to know.
func (a *guestAgent) note(change func()) {
	a.mu.Lock()
	up, info, addresses := a.up, a.info.Version, a.addresses
	change()
	same := up == a.up && info == a.info.Version && slices.Equal(addresses, a.addresses)
	a.mu.Unlock()
	if !same {
		a.l.e.o.Changed(a.l.id)
	}
}

// reset is told that the machine began anew.
func (a *guestAgent) reset() { a.note(func() { a.up = false }) }

// probe adds to what is seen of the guest what its agent says. One that has not
// answered yet keeps the guest from being ready only where it is known to come.
func (a *guestAgent) probe(p *engine.Probe, started *time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	boots := started != nil && time.Since(*started) < bootTime
	p.Ready = a.up || !(a.expected && boots)
	p.Addresses = a.addresses
	if a.answered {
		p.Agent = "QEMU guest agent " + a.info.Version
	}
}

// speaker returns the client of an agent that answers and knows a command.
func (a *guestAgent) speaker(started *time.Time, command string) (*qga.Client, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.client == nil || !a.answered {
		if started != nil && time.Since(*started) < bootTime || a.expected || a.client != nil {
			return nil, &errs.Error{Op: "qga", Kind: errs.Busy, Msg: "no agent answers in the guest yet",
				Hint: "it may be booting; if it has no agent, install qemu-guest-agent in it, or use lodge console, or the network"}
		}
		return nil, &errs.Error{Op: "qga", Kind: errs.Unsupported, Msg: "the guest has no agent",
			Hint: "install qemu-guest-agent in it, or use lodge console, or the network"}
	}
	if !a.info.Can(command) {
		return nil, &errs.Error{Op: "qga", Kind: errs.Unsupported, Msg: fmt.Sprintf("the guest's QEMU agent does not carry out %s", command),
			Hint: "its administrator may have forbidden it: see /etc/qemu/qemu-ga.conf in the guest"}
	}
	return a.client, nil
}

// powerOff tells the agent, if one answers, that the guest is to stop.
func (a *guestAgent) powerOff(ctx context.Context) bool {
	c, err := a.speaker(nil, "guest-shutdown")
	if err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, toldWithin)
	defer cancel()
	return c.PowerOff(ctx) == nil
}

// setClock makes the guest's clock right after it stood still.
func (a *guestAgent) setClock() {
	go func() {
		c, err := a.speaker(nil, "guest-set-time")
		if err == nil {
			err = c.SetClock(a.l.life, time.Now())
		}
		if err != nil {
			a.l.e.o.Log.Debug("a guest's clock was not set", "guest", a.name, "err", err)
		}
	}()
}

// freeze brings the guest's file systems to rest for at most d.
func (a *guestAgent) freeze(ctx context.Context, c *qga.Client, d time.Duration) (release func() error, err error) {
	a.mu.Lock()
	taken := a.resting
	a.resting = true
	a.mu.Unlock()
	if taken {
		return nil, &errs.Error{Op: "qga", Kind: errs.Busy, Msg: "the guest's disks are frozen already", Hint: "try again in a few seconds"}
	}
	n, err := c.Freeze(ctx)
	if err != nil || n <= 0 {
		go a.thaw(c) // it may yet carry out what it did not answer
		if err == nil {
			err = &errs.Error{Op: "qga", Kind: errs.Unsupported, Msg: "the guest's QEMU agent found nothing to freeze"}
		}
		return nil, refusal(err)
	}
	end := sync.OnceValue(func() error { return a.thawed(c, n) })
	limit := time.AfterFunc(d, func() { _ = end() })
	return func() error {
		inTime := limit.Stop()
		went := make(chan error, 1)
		go func() { went <- end() }()
		select {
		case err := <-went:
			if inTime {
				return err
			}
		case <-time.After(d): // it goes on trying
		}
		return errAwake
	}, nil
}

var errAwake = &errs.Error{Op: "qga", Kind: errs.Busy, Msg: "the guest's disks did not stay frozen", Hint: "try again when the host is less busy"}

// thawed lets n file systems go on. That they all had to be let is what makes a
// copy good that was taken meanwhile.
func (a *guestAgent) thawed(c *qga.Client, n int) error {
	got, err := a.thaw(c)
	if err == nil && got < n {
		err = errAwake
	}
	return err
}

// thaw tries until the agent answers or is gone: there is nobody else who lets
// the guest go on.
func (a *guestAgent) thaw(c *qga.Client) (n int, err error) {
	defer func() {
		a.mu.Lock()
		a.resting = false
		a.mu.Unlock()
		a.ask()
	}()
	for {
		n, err = c.Thaw(a.l.life)
		a.mu.Lock()
		gone := a.client != c
		a.mu.Unlock()
		if !errs.Is(err, errs.Busy) || gone || a.l.life.Err() != nil {
			return n, refusal(err)
		}
		a.l.sleep(firstAsk)
	}
}

// refusal makes an agent's refusal an error for a person.
func refusal(err error) error {
	if refused, ok := errors.AsType[*qga.Error](err); ok {
		return &errs.Error{Op: "qga", Kind: errs.Unsupported, Msg: "the guest's QEMU agent refuses " + refused.Command + ": " + refused.Desc, Err: err}
	}
	return err
}

// portOpen reports whether somebody in the guest listens on the agent's port.
// What nobody reads must not be written: an agent that starts later would take
// it for a wish of that moment.
func (l *link) portOpen(ctx context.Context) (bool, error) {
	var all []struct {
		Label string `json:"label"`
		Open  bool   `json:"frontend-open"`
	}
	err := l.do(ctx, "query-chardev", nil, &all)
	for _, c := range all {
		if c.Label == "agent" {
			return c.Open, err
		}
	}
	return false, err
}
