package guests

import (
	"context"
	"syscall"
	"time"

	"lodge/internal/engine"
	"lodge/internal/keeper"
	"lodge/internal/model/guest"
)

// unknownCode is the exit status shown for a run whose end nobody saw.
const unknownCode = 255

// ended records how a run ended, once, and lets the keeper forget it. g is
// brought up to date.
func (r *Reconciler) ended(ctx context.Context, g *guest.Guest, e keeper.Exit) error {
	if err := r.recordEnd(ctx, g, e); err != nil {
		return err
	}
	r.mu.Lock()
	delete(r.stops, g.ID)
	delete(r.pins, g.ID)
	r.mu.Unlock()
	return r.Keepers.Forget(ctx, g.ID)
}

// WentDownWithHost reports whether g was up when its host was last up, and the
// host has been started anew since.
func (r *Reconciler) WentDownWithHost(g guest.Guest) bool {
	return wasUp(g.Status) && g.Status.Exit == nil && g.Status.HostBoot != r.HostBoot
}

// missed records the end of a run that no keeper knows of any more: it ended
// with the host that ran it, or while nobody was there to see.
func (r *Reconciler) missed(ctx context.Context, g *guest.Guest) error {
	switch {
	case !wasUp(g.Status) || g.Status.Exit != nil || g.Status.Lost:
		return nil
	case g.Status.HostBoot == r.HostBoot:
		return r.recordEnd(ctx, g, keeper.Exit{Unknown: true, At: r.Now()})
	}
	lost := func(s *guest.Status) { s.Pid, s.Lost = 0, true }
	if err := r.report(ctx, *g, lost); err != nil {
		return err
	}
	lost(&g.Status)
	return nil
}

// truly translates how a guest's program ended into how the guest did, where
// its engine tells them apart, and says what the guest said last. The parts may
// be lost to a daemon that has just started; where the guest's files are is
// known all the same.
func (r *Reconciler) truly(ctx context.Context, g guest.Guest, e keeper.Exit) (is keeper.Exit, last string) {
	eng, _, err := r.Engines.Find(ctx, g.Status.Engine)
	ender, ok := eng.(engine.Ender)
	if err != nil || !ok {
		return e, ""
	}
	r.mu.Lock()
	parts := r.attached[g.ID].parts
	r.mu.Unlock()
	if parts == nil {
		parts = &engine.Parts{Dir: r.dir(g.ID), Cgroup: g.ID}
	}
	is, last = ender.Ended(g, *parts, e)
	return is, guest.Words(last)
}

func (r *Reconciler) recordEnd(ctx context.Context, g *guest.Guest, e keeper.Exit) error {
	e, last := r.truly(ctx, *g, e)
	down := r.goingDown()
	asked := down || g.Spec.Power == guest.Off || g.Spec.Power == guest.Saved || g.Deleting != nil || g.Spec.Boots > g.Status.Boots
	// The kernel ends the init of a pid namespace with SIGHUP when the guest
	// reboots itself, and with SIGINT when it powers off (reboot(2)).
	reboot, poweroff := e.Signal == syscall.SIGHUP, e.Signal == syscall.SIGINT
	oom := e.Signal == syscall.SIGKILL && r.outOfMemory(g.ID)
	change := func(s *guest.Status) {
		s.Pid, s.Ready, s.Exit, s.NotBefore = 0, false, nil, nil
		s.Phase = guest.Ready
		if down {
			// As after a crash of the host: the run ended with it.
			s.Phase, s.HostBoot = guest.Running, ""
			return
		}
		if asked {
			return
		}
		var ran time.Duration
		if s.Started != nil {
			ran = e.At.Sub(*s.Started)
		}
		wait, again := guest.Backoff(s.Restarts, ran)
		until := e.At.Add(wait)
		if !reboot {
			s.Exit = exitOf(e, poweroff, oom)
		}
		if s.Exit != nil && s.Exit.Code != 0 {
			s.Last = last
		}
		if reboot || g.Restarts(*s.Exit) {
			s.Restarts, s.NotBefore = again, &until
		}
		if reboot && ran >= guest.SettledAfter {
			s.NotBefore = nil
		}
	}
	if err := r.report(ctx, *g, change); err != nil {
		return err
	}
	change(&g.Status)
	return nil
}

func exitOf(e keeper.Exit, poweroff, oom bool) *guest.Exit {
	x := &guest.Exit{Code: e.Code, OOM: oom, At: e.At}
	switch {
	case e.Unknown:
		x.Code = unknownCode
	case poweroff:
		x.Code = 0
	case e.Signal != 0:
		x.Code, x.Signal = 128+int(e.Signal), e.Signal.String()
	}
	return x
}

func (r *Reconciler) outOfMemory(id string) bool {
	u, err := r.Cgroups.Usage(id)
	return err == nil && u.OOMKills > 0
}
