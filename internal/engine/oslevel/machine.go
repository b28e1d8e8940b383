package oslevel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
	"lodge/internal/base/proc"
	"lodge/internal/engine"
	"lodge/internal/keeper"
	"lodge/internal/model/guest"
)

// Machine is one running guest. Its methods are safe for concurrent use.
type Machine struct {
	e     *Engine
	g     guest.Guest
	parts engine.Parts
	held  keeper.Held
}

var (
	_ engine.Machine  = (*Machine)(nil)
	_ engine.Pauser   = (*Machine)(nil)
	_ engine.Resizer  = (*Machine)(nil)
	_ engine.Execer   = (*Machine)(nil)
	_ engine.Filer    = (*Machine)(nil)
	_ engine.Admitter = (*Machine)(nil)
	_ engine.Meter    = (*Machine)(nil)
)

// Probe reports whether the guest is paused.
func (m *Machine) Probe(context.Context) (engine.Probe, error) {
	frozen, err := m.e.o.Tree.Frozen(m.parts.Cgroup)
	return engine.Probe{Paused: frozen, Ready: true}, err
}

// Pause stops every process of the guest.
func (m *Machine) Pause(ctx context.Context) error { return m.e.o.Tree.Freeze(ctx, m.parts.Cgroup) }

// Resume lets the guest's processes run on.
func (m *Machine) Resume(ctx context.Context) error { return m.e.o.Tree.Thaw(ctx, m.parts.Cgroup) }

// Shutdown asks the guest's init to stop by the signal that this kind of init
// takes for it. A program that is process 1 in an init's place gets SIGTERM,
// which the kernel drops if the program does not handle it.
func (m *Machine) Shutdown(ctx context.Context) error {
	argv, init := engine.FirstProgram(m.g, m.parts)
	sig := unix.SIGTERM
	if init {
		sig = stopSignal(m.initName(argv))
	}
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", m.held.State().Pid)) // empty when it has just ended
	if err := m.held.Signal(ctx, sig); err != nil {
		return err
	}
	if s := m.g.Status.Started; s != nil && time.Since(*s) < bootTime && !proc.Hears(status, sig) {
		return &errs.Error{Kind: errs.Busy, Ref: m.g.Key().String(), Msg: "may not have heard the signal to stop yet"}
	}
	return nil
}

// bootTime is how long an init may take before it listens to signals: a busy
// host with many guests that boot.
const bootTime = 10 * time.Second

// initName is the kernel's name for the guest's process 1, which its init may
// have chosen itself, or else that of its command line.
func (m *Machine) initName(argv []string) string {
	comm, err := readProc(m.held.State().Pid, "comm", 64)
	if err != nil {
		return filepath.Base(argv[0])
	}
	return strings.TrimSpace(comm)
}

// stopSignal is how an init is told to power off: systemd's documented signal,
// busybox' (SIGUSR2), and the power failure that System V init and OpenRC act
// on. dumb-init, tini and s6 pass SIGTERM on.
func stopSignal(name string) unix.Signal {
	const rtmin = 34 // SIGRTMIN as the C libraries count, which systemd means
	switch name {
	case "systemd":
		return unix.Signal(rtmin + 3)
	case "busybox", "init", "linuxrc":
		return unix.SIGUSR2
	case "openrc-init":
		return unix.SIGINT
	case "sysvinit", "upstart", "finit":
		return unix.SIGPWR
	case "runit":
		return unix.SIGCONT
	}
	return unix.SIGTERM
}

// Kill ends every process of the guest. Process 1 takes all others with it;
// the group is asked as well, for what was put there from outside.
func (m *Machine) Kill(context.Context) error {
	err := unix.PidfdSendSignal(m.held.Pidfd(), unix.SIGKILL, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		err = nil
	}
	return errors.Join(err, m.e.o.Tree.Kill(m.parts.Cgroup))
}

// Close lets go of the guest, which runs on.
func (m *Machine) Close() error { return nil }

// Resize changes the guest's limits while it runs.
func (m *Machine) Resize(_ context.Context, spec guest.Spec) error {
	if err := m.e.o.Tree.Set(m.parts.Cgroup, engine.Limits(spec, m.parts.Root.Disk)); err != nil {
		return fmt.Errorf("limits of %s: %w", m.g.Name, err)
	}
	return nil
}
