package guests

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
	"lodge/internal/engine"
	"lodge/internal/model/guest"
	"lodge/internal/model/snapshot"
	"lodge/internal/storage"
)

// claim takes a guest for one piece of work: a pass of the reconciler, or a
// snapshot. It is false while somebody else has it.
func (r *Reconciler) claim(id string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.claimed[id] {
		return false
	}
	r.claimed[id] = true
	return true
}

func (r *Reconciler) unclaim(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.claimed, id)
}

// claimAgain is how long to wait for a guest that somebody else works on, and
// claimTime after which time whoever asked is told so.
const (
	claimAgain = 20 * time.Millisecond
	claimTime  = 10 * time.Second
)

// claimWait takes a guest, or says that it is busy.
func (r *Reconciler) claimWait(ctx context.Context, id string) error {
	deadline := time.NewTimer(claimTime)
	defer deadline.Stop()
	for !r.claim(id) {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-deadline.C:
			return &errs.Error{Kind: errs.Busy, Ref: "guest/" + id, Msg: "something else is being done with it"}
		case <-time.After(claimAgain):
		}
	}
	return nil
}

// TakeSnapshot keeps what a guest's volume holds as the pool's snapshot of that
// name. A guest that runs is brought to rest for the moment: it writes
// everything to its disks if its engine can ask for that, and is halted. With
// memory, what it was doing is part of the snapshot. One that is there already
// is left as it is.
func (r *Reconciler) TakeSnapshot(ctx context.Context, id, name string, memory bool) (snapshot.Taken, error) {
	if err := r.claimWait(ctx, id); err != nil {
		return snapshot.Taken{}, err
	}
	defer r.unclaim(id)
	g, err := r.Guest(id)
	if err != nil {
		return snapshot.Taken{}, err
	}
	if g.CloneWanted() {
		return snapshot.Taken{}, &errs.Error{Kind: errs.Busy, Ref: g.Key().String(), Msg: "is being cloned itself"}
	}
	pool, err := r.Pools.Get(g.Spec.Pool)
	if err != nil {
		return snapshot.Taken{}, err
	}
	model, _ := g.InForce()
	taken := snapshot.Taken{At: r.Now(), Model: string(model), Rest: snapshot.Stopped}
	have, err := pool.Snapshots(ctx, id)
	if err != nil {
		return taken, err
	}
	if !slices.Contains(have, name) {
		taken.Rest, err = r.still(ctx, g, pool, memory, func() error { return pool.Snapshot(ctx, id, name) })
		if err != nil {
			return taken, err
		}
	}
	taken.Memory = exists(filepath.Join(pool.SnapshotPath(id, name), memoryDir))
	return taken, nil
}

// still calls act while a guest writes nothing to its volume, and says how it
// was brought to rest.
func (r *Reconciler) still(ctx context.Context, g guest.Guest, pool storage.Pool, memory bool, act func() error) (snapshot.Rest, error) {
	held, err := r.Keepers.Find(g.ID)
	if err != nil && !errs.Is(err, errs.NotFound) {
		return "", err
	}
	if err != nil || held.State().Exit != nil {
		if memory && !exists(filepath.Join(pool.Path(g.ID), memoryDir)) {
			return "", &errs.Error{Kind: errs.Conflict, Ref: g.Key().String(), Msg: "does not run, so it has no memory to keep", Hint: "leave out --memory, or start it first: lodge start " + g.Name}
		}
		return snapshot.Stopped, act()
	}
	m, _, err := r.machine(ctx, g.ID)
	if err != nil {
		return "", err
	}
	defer m.Close()
	if memory {
		return snapshot.Frozen, r.withMemory(ctx, g, m, pool, act)
	}
	quiesced, release := quiesce(ctx, m)
	err = halted(ctx, m, func() error {
		if err := syncVolume(pool.Path(g.ID)); err != nil {
			return err
		}
		return act()
	})
	err = errs.Also(err, release())
	if quiesced {
		return snapshot.Quiesced, err
	}
	return snapshot.Frozen, err
}

// quiesce asks the guest to write everything to its disks and wait. One that
// cannot, or does not answer, is as after a power cut.
func quiesce(ctx context.Context, m engine.Machine) (bool, func() error) {
	none := func() error { return nil }
	q, ok := m.(engine.Quiescer)
	if !ok {
		return false, none
	}
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	release, err := q.Quiesce(ctx)
	if err != nil {
		return false, none
	}
	return true, release
}

// halted calls act while the guest's processors stand still, and lets them go on
// whatever happens.
func halted(ctx context.Context, m engine.Machine, act func() error) error {
	p, ok := m.(engine.Pauser)
	if !ok {
		return act()
	}
	probe, err := m.Probe(ctx)
	if err != nil {
		return err
	}
	if probe.Paused {
		return act()
	}
	if err := p.Pause(ctx); err != nil {
		return err
	}
	return errs.Also(act(), p.Resume(context.WithoutCancel(ctx)))
}

// syncVolume writes back what the host still holds in memory of a volume.
func syncVolume(dir string) error {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(fd)
	return unix.Syncfs(fd)
}

// recover takes a guest's layer back to a snapshot.
func (r *Reconciler) recover(ctx context.Context, g guest.Guest) error {
	wish := g.Spec.Restore
	pool, err := r.Pools.Get(g.Spec.Pool)
	if err != nil {
		return err
	}
	done := func(s *guest.Status) { s.Restored, s.Exit, s.NotBefore = wish.Wish, nil, nil }
	err = pool.Restore(ctx, g.ID, wish.Snapshot)
	if errs.Is(err, errs.NotFound) {
		// It will never be there again: the guest stays as it is.
		return errs.Also(r.report(ctx, g, done), err)
	}
	if err != nil {
		return err
	}
	if !wish.Memory {
		if err := dropMemory(pool.Path(g.ID)); err != nil {
			return err
		}
	}
	return r.report(ctx, g, done)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}
