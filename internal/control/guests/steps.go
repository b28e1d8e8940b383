package guests

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"lodge/internal/base/errs"
	"lodge/internal/engine"
	"lodge/internal/keeper"
	"lodge/internal/layer"
	"lodge/internal/model/guest"
	"lodge/internal/storage"
)

// take does one step and returns how long to wait before looking again; 0 is at
// once.
func (r *Reconciler) take(ctx context.Context, g guest.Guest, s guest.Step) (time.Duration, error) {
	switch s {
	case guest.Clone:
		return r.clone(ctx, g)
	case guest.Recover:
		return 0, r.recover(ctx, g)
	case guest.Convert:
		return 0, r.convert(ctx, g)
	case guest.Prepare:
		_, err := r.attach(ctx, g)
		return 0, err
	case guest.Start:
		return r.start(ctx, g)
	case guest.Freeze, guest.Thaw:
		return 0, r.freeze(ctx, g, s == guest.Freeze)
	case guest.Stop:
		return r.stop(ctx, g)
	case guest.Save:
		return r.save(ctx, g)
	case guest.Release:
		return 0, r.detach(ctx, g)
	case guest.Destroy:
		return 0, r.destroy(ctx, g)
	}
	return 0, &errs.Error{Op: "guest." + string(s), Kind: errs.Internal, Ref: g.Key().String(), Msg: "no such step"}
}

// engine returns what runs g: the engine that it was started by while it is up,
// also if another would be chosen by now, else the one it is to be started by.
func (r *Reconciler) engine(ctx context.Context, g guest.Guest) (engine.Engine, engine.Info, error) {
	if wasUp(g.Status) && g.Status.Engine != "" {
		return r.Engines.Find(ctx, g.Status.Engine)
	}
	model, name := g.InForce()
	return r.Engines.Pick(ctx, model, name)
}

// start runs the guest, unless others have to boot first. One that was started
// by a daemon that died before it could say so is found and counts as started.
func (r *Reconciler) start(ctx context.Context, g guest.Guest) (time.Duration, error) {
	e, info, err := r.engine(ctx, g)
	if err != nil {
		return 0, err
	}
	if wait := r.crowded(g, info); wait > 0 {
		return wait, nil
	}
	err = r.boot(ctx, g, e, info)
	if err != nil {
		r.notBooting(g)
	}
	return 0, err
}

func (r *Reconciler) boot(ctx context.Context, g guest.Guest, e engine.Engine, info engine.Info) error {
	if err := r.renew(ctx, g); err != nil {
		return err
	}
	parts, err := r.attach(ctx, g)
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.attached[g.ID] = attachment{parts, g.Generation, true}
	r.mu.Unlock()
	parts.CPUSet = r.pin(g, info)
	if info.Form != guest.Tree {
		if err := r.sweepDisks(g, guest.Devices{}); err != nil {
			return err
		}
	}
	if err := r.resuming(g, info, parts); err != nil {
		return err
	}
	if parts.Memory == "" && !r.alive(g.ID) {
		if err := ownIdentity(ctx, parts.Root.Writable); err != nil {
			return storage.Failed("guest.start", g.Key().String(), err)
		}
	}
	if err := layer.Touch(parts.Root.Writable); err != nil {
		return err
	}
	held, err := r.run(ctx, g, e, *parts)
	if err != nil {
		return errs.Also(err, notResumed(parts))
	}
	if parts.Memory != "" {
		if err := r.awake(ctx, e, g, *parts, held); err != nil {
			return notItself(parts.Root.Writable, err)
		}
		if exists(filepath.Join(parts.Root.Writable, copyMark)) {
			if err := errors.Join(unmarkCopy(parts.Root.Writable), dropMemory(parts.Root.Writable)); err != nil {
				return err
			}
		}
	}
	r.mu.Lock()
	delete(r.stops, g.ID)
	r.mu.Unlock()
	r.booted(g, *parts)
	pid := held.State().Pid
	return r.report(ctx, g, r.started(g, info, *parts, pid))
}

// run starts the guest's program, or finds it running.
func (r *Reconciler) run(ctx context.Context, g guest.Guest, e engine.Engine, parts engine.Parts) (keeper.Held, error) {
	parts, err := engine.ForBoot(parts)
	if err != nil {
		return nil, err
	}
	p, err := e.Program(g, parts)
	if err != nil {
		return nil, err
	}
	held, err := r.Keepers.Start(ctx, g.ID, p)
	if errs.Is(err, errs.Exists) {
		return r.Keepers.Find(g.ID)
	}
	return held, err
}

// started says what a start changes in a guest's status.
func (r *Reconciler) started(g guest.Guest, info engine.Info, parts engine.Parts, pid int) func(*guest.Status) {
	now := r.Now()
	again := g.Status.NotBefore != nil && g.Spec.Boots <= g.Status.Boots
	return func(s *guest.Status) {
		s.Phase, s.Boots, s.Pid, s.Started, s.HostBoot = guest.Running, g.Spec.Boots, pid, &now, r.HostBoot
		s.Generation = g.Generation
		s.Exit, s.NotBefore, s.Problem, s.Lost = nil, nil, nil, false
		s.Model, _ = g.InForce()
		s.Engine, s.Kernel, s.Devices = info.Name, strings.TrimSpace(parts.Kernel.Name+" "+parts.Kernel.Version), g.Spec.Devices()
		s.CPU = nil
		if len(parts.CPUSet) == 1 {
			s.CPU = &parts.CPUSet[0]
		}
		// Whoever shares the host's kernel is there at once; others say so.
		s.Ready = info.Form == guest.Tree
		if !again {
			s.Restarts, s.Last = 0, ""
		}
	}
}

// renew takes away the group of an earlier run, and forgets what was made for
// an older spec, so that attach makes both again. A group that was ever killed
// is of no more use: the kernel ends at once what is cloned into it (seen with
// 6.18).
func (r *Reconciler) renew(ctx context.Context, g guest.Guest) error {
	r.mu.Lock()
	a := r.attached[g.ID]
	r.mu.Unlock()
	if a.parts != nil && !a.used && a.generation == g.Generation {
		return nil
	}
	if r.alive(g.ID) {
		return nil // an earlier daemon started it and could not say so
	}
	for _, n := range former(g) {
		if err := r.detachNIC(ctx, g, n); err != nil {
			return err
		}
	}
	if err := r.strays(ctx, g, g.Spec.NICs); err != nil {
		return err
	}
	if err := r.Cgroups.Remove(ctx, g.ID); err != nil {
		return err
	}
	r.mu.Lock()
	r.attached[g.ID] = attachment{}
	r.mu.Unlock()
	return nil
}

// lookTime bounds how long a guest's monitor may take to answer a look: one
// that hangs must not keep the others of the host waiting.
const lookTime = 5 * time.Second

func (r *Reconciler) connect(ctx context.Context, g guest.Guest, held keeper.Held) (engine.Machine, error) {
	parts, err := r.attach(ctx, g)
	if err != nil {
		return nil, err
	}
	e, _, err := r.engine(ctx, g)
	if err != nil {
		return nil, err
	}
	return e.Connect(ctx, g, *parts, held)
}

// machine connects to a guest that is up, or says that it is not.
func (r *Reconciler) machine(ctx context.Context, id string) (engine.Machine, guest.Guest, error) {
	g, err := r.Guest(id)
	if err != nil {
		return nil, g, err
	}
	held, err := r.Keepers.Find(id)
	if err != nil || held.State().Exit != nil {
		return nil, g, &errs.Error{Kind: errs.Conflict, Ref: g.Key().String(), Msg: "is not running", Hint: "lodge start " + g.Name}
	}
	m, err := r.connect(ctx, g, held)
	return m, g, err
}

func (r *Reconciler) freeze(ctx context.Context, g guest.Guest, freeze bool) error {
	m, _, err := r.machine(ctx, g.ID)
	if err != nil {
		return err
	}
	defer m.Close()
	p, ok := m.(engine.Pauser)
	if !ok {
		return &errs.Error{Kind: errs.Unsupported, Ref: g.Key().String(), Msg: "its engine cannot pause"}
	}
	if freeze {
		return p.Pause(ctx)
	}
	// What a save or a snapshot that was cut off left is not true any more from
	// here on.
	pool, err := r.Pools.Get(g.Spec.Pool)
	if err == nil {
		err = os.RemoveAll(filepath.Join(pool.Path(g.ID), memoryDir))
	}
	if err != nil {
		return err
	}
	return p.Resume(ctx)
}

// adjust gives a running guest the limits of its spec.
func (r *Reconciler) adjust(ctx context.Context, g guest.Guest) error {
	m, _, err := r.machine(ctx, g.ID)
	if err != nil {
		return err
	}
	defer m.Close()
	if z, ok := m.(engine.Resizer); ok {
		if err := z.Resize(ctx, g.Spec); err != nil {
			return err
		}
	}
	_, info, err := r.engine(ctx, g)
	if err != nil {
		return err
	}
	form, err := formOf(g, info, r.imageOf(g))
	if err != nil {
		return err
	}
	pool, err := r.Pools.Get(g.Spec.Pool)
	if err != nil {
		return err
	}
	if err := pool.SetQuota(ctx, g.ID, quotaOf(g.Spec, form)); err != nil {
		return err
	}
	return r.replug(ctx, g, m)
}

// killAgain is how long an end that was forced may take before it is forced
// again.
const killAgain = 2 * time.Second

// tellAgain is how long a guest that boots is left before it is asked again to
// stop.
const tellAgain = 200 * time.Millisecond

// stop takes a guest down without waiting for it: the keeper's word that it
// ended wakes the reconciler. A clean stop becomes a kill when its time is over.
// A guest that goes back to a snapshot is ended at once: whatever it would still
// write is thrown away.
func (r *Reconciler) stop(ctx context.Context, g guest.Guest) (time.Duration, error) {
	now := r.Now()
	r.mu.Lock()
	under, asked := r.stops[g.ID]
	r.mu.Unlock()
	if g.Spec.Force || g.RestoreWanted() || asked && !now.Before(under.deadline) {
		return killAgain, r.kill(ctx, g.ID)
	}
	if under.told {
		return under.deadline.Sub(now), nil
	}
	if !asked {
		under.deadline = now.Add(g.Spec.Patience())
	}
	// The time runs from now on, also for a guest that cannot be asked.
	r.mu.Lock()
	r.stops[g.ID] = under
	r.mu.Unlock()
	again := under.deadline.Sub(now)
	err := r.ask(ctx, g)
	switch {
	case errs.Is(err, errs.Busy):
		again = min(again, tellAgain)
	case err != nil:
		return killAgain, r.kill(ctx, g.ID)
	default:
		under.told = true
		r.mu.Lock()
		r.stops[g.ID] = under
		r.mu.Unlock()
	}
	return again, r.report(ctx, g, func(s *guest.Status) { s.Doing = guest.Stop })
}

// ask tells a guest's init to stop; a paused guest is let go on for it. It is
// errs.Busy if the guest should be asked again.
func (r *Reconciler) ask(ctx context.Context, g guest.Guest) error {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	cannot := func(err error) error {
		return &errs.Error{Op: "guest.stop", Kind: errs.Busy, Ref: g.Key().String(), Msg: "cannot be asked to stop yet", Err: err}
	}
	m, _, err := r.machine(ctx, g.ID)
	if err != nil {
		return cannot(err)
	}
	defer m.Close()
	p, err := m.Probe(ctx)
	if err != nil {
		return cannot(err)
	}
	if pauser, ok := m.(engine.Pauser); ok && p.Paused {
		if err := pauser.Resume(ctx); err != nil {
			return cannot(err)
		}
	}
	return m.Shutdown(ctx)
}

// kill ends a guest: by its engine, and where that does not answer by the
// kernel. A frozen process does not die before it is thawed.
func (r *Reconciler) kill(ctx context.Context, id string) error {
	err := r.killed(ctx, id)
	if err == nil {
		return nil
	}
	if held, ferr := r.Keepers.Find(id); ferr == nil && held.State().Exit == nil {
		if serr := held.Signal(ctx, syscall.SIGKILL); serr != nil {
			return errors.Join(err, serr)
		}
	}
	if err := r.Cgroups.Kill(id); err != nil {
		return err
	}
	return r.Cgroups.Thaw(ctx, id)
}

func (r *Reconciler) killed(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	m, _, err := r.machine(ctx, id)
	if err != nil {
		return err
	}
	defer m.Close()
	if err := m.Kill(ctx); err != nil {
		return err
	}
	if p, ok := m.(engine.Pauser); ok {
		return p.Resume(ctx)
	}
	return nil
}

// GoDown makes every guest stop, cleanly, without a change of what is wanted of
// it. The caller wakes the reconciler for each guest.
func (r *Reconciler) GoDown() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.down = true
}

func (r *Reconciler) goingDown() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.down
}
