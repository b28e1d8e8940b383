package qemu

import (
	"context"
	"errors"
	"io"
	"time"

	"golang.org/x/sys/unix"

	"lodge/internal/agent/dial"
	"lodge/internal/base/errs"
	"lodge/internal/base/session"
	"lodge/internal/engine"
	"lodge/internal/keeper"
	"lodge/internal/model/guest"
)

// Machine is one running guest. Its methods are safe for concurrent use.
type Machine struct {
	dial.Care
	e     *Engine
	g     guest.Guest
	parts engine.Parts
	held  keeper.Held
	link  *link
}

var (
	_ engine.Machine = (*Machine)(nil)
	_ engine.Pauser  = (*Machine)(nil)
	_ engine.Resizer = (*Machine)(nil)
	_ engine.Execer  = (*Machine)(nil)
	_ engine.Filer   = (*Machine)(nil)
	_ engine.Meter   = (*Machine)(nil)

	_ engine.Plugger  = (*Machine)(nil)
	_ engine.Saver    = (*Machine)(nil)
	_ engine.Mover    = (*Machine)(nil)
	_ engine.Renewer  = (*Machine)(nil)
	_ engine.Quiescer = (*Machine)(nil)
	_ engine.Screener = (*Machine)(nil)
	_ engine.Debugger = (*Machine)(nil)

	_ engine.Admitter   = (*Machine)(nil)
	_ engine.Trimmer    = (*Machine)(nil)
	_ engine.Timekeeper = (*Machine)(nil)
)

// Probe tells how the guest is. A monitor that does not answer is trouble of
// the guest's, not a failure of the look: it can still be killed.
func (m *Machine) Probe(context.Context) (engine.Probe, error) {
	l := m.link
	l.mu.Lock()
	defer l.mu.Unlock()
	p := engine.Probe{Paused: paused(l.status), Trouble: l.trouble, NoBoot: l.noBoot}
	if l.agent != nil {
		p.Ready = l.agent.State().Ready
	} else {
		l.theirs.probe(&p, m.g.Status.Started)
	}
	switch {
	case l.monitor == nil && l.failure != nil:
		p.Trouble = "QEMU does not answer: " + l.failure.Error()
	case p.Trouble == "" && l.agent != nil && l.agent.State().Silent && (l.status == "running" || l.status == ""): // or QEMU has not said yet
		p.Trouble = engine.AgentSilent
	case p.Trouble == "" && (l.status == "internal-error" || l.status == "io-error" || l.status == "guest-panicked"):
		p.Trouble = "QEMU has stopped it: " + l.status
	}
	return p, nil
}

// paused reports whether QEMU's word for a guest's state is one that somebody
// wanted: a guest that was saved has another.
func paused(status string) bool { return status == "paused" || status == "postmigrate" }

// Pause stops the guest's processors.
func (m *Machine) Pause(ctx context.Context) error {
	if err := m.link.still(); err != nil {
		return m.about(err)
	}
	if err := m.link.do(ctx, "stop", nil, nil); err != nil {
		return m.about(err)
	}
	m.link.note(func() {
		if !paused(m.link.status) {
			m.link.status = "paused"
		}
	})
	return nil
}

// Resume lets the guest's processors run on.
func (m *Machine) Resume(ctx context.Context) error {
	m.link.mu.Lock()
	gone := m.link.killed
	m.link.mu.Unlock()
	if gone || m.held.State().Exit != nil {
		return nil
	}
	if err := m.link.still(); err != nil {
		return m.about(err)
	}
	if m.link.agent != nil {
		m.link.agent.Revive()
	}
	if err := m.link.do(ctx, "cont", nil, nil); err != nil {
		return m.about(err)
	}
	m.link.note(func() { m.link.status = "running" })
	if m.link.theirs != nil {
		m.link.theirs.setClock()
	}
	return nil
}

// about says which guest an error is about.
func (m *Machine) about(err error) error {
	return errs.About(err, m.g.Key().String())
}

const (
	// toldWithin is how long an agent may take to be told that the guest is to
	// stop. A guest that boots is told later.
	toldWithin = 3 * time.Second
	// deafFor is how long firmware and boot loaders may take, which press of
	// the power button is lost on.
	deafFor = 30 * time.Second
)

// Shutdown asks the guest's init through the agent. Other guests are asked
// through the agent that they brought along. Those without either, and those
// whose agent is silent, see the power button pressed.
func (m *Machine) Shutdown(ctx context.Context) error {
	if m.link.agent != nil && m.link.agent.State().Silent {
		return m.about(m.link.do(ctx, "system_powerdown", nil, nil))
	}
	if m.link.agent != nil {
		ctx, cancel := context.WithTimeout(ctx, toldWithin)
		defer cancel()
		return m.about(m.link.agent.Shutdown(ctx))
	}
	if m.link.theirs.powerOff(ctx) {
		return nil
	}
	if err := m.link.do(ctx, "system_powerdown", nil, nil); err != nil {
		return m.about(err)
	}
	if s := m.g.Status.Started; s != nil && time.Since(*s) < deafFor {
		return &errs.Error{Kind: errs.Busy, Ref: m.g.Key().String(), Msg: "may not have seen yet that its power button was pressed"}
	}
	return nil
}

// Kill ends QEMU, which is the first process of its namespace and takes all
// others there with it.
func (m *Machine) Kill(context.Context) error {
	m.link.note(func() { m.link.killed = true })
	return kill(m.held)
}

func kill(held keeper.Held) error {
	fd := held.Pidfd()
	if fd < 0 { // it is not even known any more
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}

// Close lets go of the guest, which runs on. The lines to it are the engine's.
func (m *Machine) Close() error { return nil }

// voice is an agent in a guest: Lodge's, or QEMU's.
type voice interface {
	Exec(ctx context.Context, r session.Request) (session.Session, error)
	Pack(ctx context.Context, path string, w io.Writer) error
	Unpack(ctx context.Context, dir string, r io.Reader) error
	Freeze(ctx context.Context, d time.Duration) (thaw func() error, err error)
}

// voice returns the agent of a guest that can answer.
func (m *Machine) voice() (voice, error) {
	if err := m.awake(); err != nil {
		return nil, err
	}
	if m.link.agent != nil {
		return m.link.agent, nil
	}
	return theirVoice{m.link.theirs, m.g}, nil
}

// carer is voice for what a guest's owner may ask of either agent.
func (m *Machine) carer() (dial.Carer, error) {
	if err := m.awake(); err != nil {
		return nil, err
	}
	if m.link.agent != nil {
		return m.link.agent, nil
	}
	return theirVoice{m.link.theirs, m.g}, nil
}

// awake says that a guest cannot answer because it stands still.
func (m *Machine) awake() error {
	if paused(m.link.state()) {
		return &errs.Error{Op: "qemu", Kind: errs.Conflict, Ref: m.g.Key().String(), Msg: "is paused", Hint: "lodge resume " + m.g.Name}
	}
	return nil
}

// Exec runs a program inside the guest.
func (m *Machine) Exec(ctx context.Context, r session.Request) (session.Session, error) {
	a, err := m.voice()
	if err != nil {
		return nil, err
	}
	s, err := a.Exec(ctx, r)
	return s, m.about(err)
}

// Pack writes a file or tree of the guest as a tar stream.
func (m *Machine) Pack(ctx context.Context, path string, w io.Writer) error {
	a, err := m.voice()
	if err != nil {
		return err
	}
	return m.about(a.Pack(ctx, path, w))
}

// Unpack makes what the tar stream r holds below the guest's dir.
func (m *Machine) Unpack(ctx context.Context, dir string, r io.Reader) error {
	a, err := m.voice()
	if err != nil {
		return err
	}
	return m.about(a.Unpack(ctx, dir, r))
}
