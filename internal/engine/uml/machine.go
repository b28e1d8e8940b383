package uml

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
	line  *line
}

var (
	_ engine.Machine  = (*Machine)(nil)
	_ engine.Pauser   = (*Machine)(nil)
	_ engine.Resizer  = (*Machine)(nil)
	_ engine.Execer   = (*Machine)(nil)
	_ engine.Filer    = (*Machine)(nil)
	_ engine.Meter    = (*Machine)(nil)
	_ engine.Plugger  = (*Machine)(nil)
	_ engine.Debugger = (*Machine)(nil)
	_ engine.Quiescer = (*Machine)(nil)

	_ engine.Admitter   = (*Machine)(nil)
	_ engine.Trimmer    = (*Machine)(nil)
	_ engine.Timekeeper = (*Machine)(nil)
)

// Probe tells what the agent says and whether it does.
func (m *Machine) Probe(context.Context) (engine.Probe, error) {
	frozen, err := m.e.o.Tree.Frozen(m.parts.Cgroup)
	s := m.line.State()
	p := engine.Probe{Paused: frozen, Ready: s.Ready}
	m.line.mu.Lock()
	full := m.line.full
	m.line.mu.Unlock()
	switch {
	case full != "":
		p.Trouble = "what it writes waits because there is no space left for its disk " + full
	case s.Silent && !frozen:
		p.Trouble = engine.AgentSilent
	}
	return p, err
}

// Pause stops the guest's kernel and with it all of the guest.
func (m *Machine) Pause(ctx context.Context) error { return m.e.o.Tree.Freeze(ctx, m.parts.Cgroup) }

// Resume lets the guest's kernel run on.
func (m *Machine) Resume(ctx context.Context) error {
	m.line.Revive()
	return m.e.o.Tree.Thaw(ctx, m.parts.Cgroup)
}

// runs fails for a guest that is paused, whose agent would not answer.
func (m *Machine) runs() error {
	if frozen, err := m.e.o.Tree.Frozen(m.parts.Cgroup); err == nil && frozen {
		return &errs.Error{Op: "uml", Kind: errs.Conflict, Ref: m.g.Key().String(), Msg: "the guest is paused", Hint: "resume it first"}
	}
	return nil
}

// askTime is how long the agent may take to pass on a wish.
const askTime = 5 * time.Second

// Shutdown asks the guest's init by the agent, and if that is lost by the keys
// that every init knows. While a guest boots nobody hears either.
func (m *Machine) Shutdown(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	if m.line.State().Connected {
		err := m.line.Shutdown(ctx)
		if err == nil || m.held.State().Exit != nil {
			return nil
		}
		m.e.o.Log.Warn("an agent does not pass on the wish to stop", "guest", m.g.Name, "err", err)
	}
	_, init := engine.FirstProgram(m.g, m.parts)
	s := m.line.State()
	if !init || time.Since(s.Since) < askTime {
		return &errs.Error{Op: "uml.shutdown", Kind: errs.Busy, Ref: m.g.Key().String(), Msg: "its agent does not answer yet"}
	}
	_, err := m.manage(ctx, "cad")
	return err
}

// Kill ends every process of the guest. The kernel's takes all others with it;
// the group is asked as well, for a guest that is paused.
func (m *Machine) Kill(context.Context) error {
	err := unix.PidfdSendSignal(m.held.Pidfd(), unix.SIGKILL, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		err = nil
	}
	return errors.Join(err, m.e.o.Tree.Kill(m.parts.Cgroup))
}

// Close lets go of the guest, which runs on. Its line is kept for the next.
func (m *Machine) Close() error { return nil }

// Exec runs a program inside the guest.
func (m *Machine) Exec(ctx context.Context, r session.Request) (session.Session, error) {
	if err := m.runs(); err != nil {
		return nil, err
	}
	return m.line.Exec(ctx, r)
}

// Pack writes a path of the guest as a tar stream.
func (m *Machine) Pack(ctx context.Context, path string, w io.Writer) error {
	if err := m.runs(); err != nil {
		return err
	}
	return m.line.Pack(ctx, path, w)
}

// Unpack makes what a tar stream holds below a directory of the guest.
func (m *Machine) Unpack(ctx context.Context, dir string, r io.Reader) error {
	if err := m.runs(); err != nil {
		return err
	}
	return m.line.Unpack(ctx, dir, r)
}

// restTime is how long a guest's file systems may rest.
const restTime = 10 * time.Second

// Quiesce brings the guest's writable layer to rest. One that is paused rests
// already.
func (m *Machine) Quiesce(ctx context.Context) (release func() error, err error) {
	if m.runs() != nil {
		return func() error { return nil }, nil
	}
	return m.line.Freeze(ctx, restTime)
}
