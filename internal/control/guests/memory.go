package guests

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"lodge/internal/base/errs"
	"lodge/internal/base/fsx"
	"lodge/internal/base/units"
	"lodge/internal/engine"
	"lodge/internal/layer"
	"lodge/internal/model/guest"
	"lodge/internal/storage"
)

// A guest's saved memory lies in its volume, so that a snapshot holds both at
// one moment. It is good only as long as nothing was written to the disks
// since: before a guest goes on, from it or otherwise, it gets another name, and
// it is removed once the guest runs.
const (
	memoryDir  = "memory"
	memoryUsed = "memory.used"
	memoryNew  = "memory.new" // swept if nobody finishes it
)

// copyMark is a folder in a volume that is a copy, with memory, of another
// guest's or a template's, until the guest in that memory has become another. If
// it never does, what makes a guest itself is still the other's, and is replaced
// before it boots.
const copyMark = "copied"

func markCopy(dir string) error {
	if err := os.Mkdir(filepath.Join(dir, copyMark), 0o700); !errors.Is(err, os.ErrExist) {
		return err
	}
	return nil
}

func unmarkCopy(dir string) error { return os.RemoveAll(filepath.Join(dir, copyMark)) }

// notItself has a copy that did not take an identity, which err says, boot when
// it is next tried. One that was saved tries its memory again.
func notItself(dir string, err error) error {
	if exists(filepath.Join(dir, copyMark)) {
		return errs.Also(err, dropMemory(dir))
	}
	return err
}

// ownIdentity makes a copy a guest of its own that is about to boot instead of
// going on from memory.
func ownIdentity(ctx context.Context, dir string) error {
	if !exists(filepath.Join(dir, copyMark)) {
		return nil
	}
	if err := layer.Anonymize(ctx, dir); err != nil {
		return err
	}
	if err := os.RemoveAll(engine.TPMState(dir)); err != nil {
		return err
	}
	return unmarkCopy(dir)
}

// dropMemory removes the memory that lies in a volume.
func dropMemory(dir string) error {
	return errors.Join(os.RemoveAll(filepath.Join(dir, memoryDir)), os.RemoveAll(filepath.Join(dir, memoryUsed)))
}

// withMemory calls act while the guest stands still and its memory lies in its
// volume.
func (r *Reconciler) withMemory(ctx context.Context, g guest.Guest, m engine.Machine, pool storage.Pool, act func() error) error {
	s, ok := m.(engine.Saver)
	if !ok {
		return cannot(g, "save its memory")
	}
	return halted(ctx, m, func() error {
		dir := pool.Path(g.ID)
		if err := saveMemory(ctx, g, s, pool); err != nil {
			return err
		}
		return errs.Also(act(), dropMemory(dir))
	})
}

// saveMemory writes the memory of a guest that stands still into its volume.
func saveMemory(ctx context.Context, g guest.Guest, s engine.Saver, pool storage.Pool) error {
	space, err := pool.Space(ctx)
	if err != nil {
		return err
	}
	if space.Free < g.Spec.Memory+spare {
		return &errs.Error{Op: "guest.save", Kind: errs.NoSpace, Ref: g.Key().String(),
			Msg:  "its memory takes up to " + units.Bytes(g.Spec.Memory+spare) + " on the pool, and " + units.Bytes(space.Free) + " are free",
			Hint: "make room, or make the pool larger"}
	}
	dir := pool.Path(g.ID)
	fresh := filepath.Join(dir, memoryNew)
	if err := os.RemoveAll(fresh); err != nil {
		return err
	}
	if err := os.Mkdir(fresh, 0o700); err != nil {
		return err
	}
	if err := s.Save(ctx, fresh); err != nil {
		return errs.Also(err, os.RemoveAll(fresh))
	}
	if err := syncVolume(dir); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(dir, memoryDir)); err != nil {
		return err
	}
	if err := os.Rename(fresh, filepath.Join(dir, memoryDir)); err != nil {
		return err
	}
	return fsx.SyncDir(dir)
}

// save keeps a guest's memory and takes it down.
func (r *Reconciler) save(ctx context.Context, g guest.Guest) (time.Duration, error) {
	pool, err := r.Pools.Get(g.Spec.Pool)
	if err != nil {
		return 0, err
	}
	r.mu.Lock()
	under := r.stops[g.ID]
	r.mu.Unlock()
	if under.saved {
		return killAgain, r.kill(ctx, g.ID)
	}
	m, _, err := r.machine(ctx, g.ID)
	if err != nil {
		return 0, err
	}
	defer m.Close()
	s, ok := m.(engine.Saver)
	p, pauses := m.(engine.Pauser)
	if !ok || !pauses {
		return 0, cannot(g, "save its memory")
	}
	probe, err := m.Probe(ctx)
	if err != nil {
		return 0, err
	}
	if probe.Paused && exists(filepath.Join(pool.Path(g.ID), memoryDir)) {
		// An earlier daemon saved it and died before it could end it; it stood
		// still since.
		return killAgain, r.kill(ctx, g.ID)
	}
	if err := p.Pause(ctx); err != nil {
		return 0, err
	}
	if err := saveMemory(ctx, g, s, pool); err != nil {
		return 0, errs.Also(err, errors.Join(dropMemory(pool.Path(g.ID)), p.Resume(context.WithoutCancel(ctx))))
	}
	r.mu.Lock()
	r.stops[g.ID] = stopping{deadline: r.Now(), saved: true}
	r.mu.Unlock()
	return killAgain, r.kill(ctx, g.ID)
}

// resuming gives a guest that is about to start the memory that it goes on from,
// if there is one. From here on the memory is used up: if the guest ends, its
// disks have gone on. An engine that cannot use it starts the guest afresh.
func (r *Reconciler) resuming(g guest.Guest, info engine.Info, parts *engine.Parts) error {
	if held, err := r.Keepers.Find(g.ID); err == nil && held.State().Exit == nil {
		return nil // an earlier daemon started it and could not say so
	}
	dir := parts.Root.Writable
	memory, used := filepath.Join(dir, memoryDir), filepath.Join(dir, memoryUsed)
	if err := takeBack(dir); err != nil {
		return err
	}
	if !exists(memory) {
		return nil // unless it is a template's
	}
	if !info.Can.Save {
		return dropMemory(dir)
	}
	if err := os.Rename(memory, used); err != nil {
		return err
	}
	parts.Memory = used
	return fsx.SyncDir(dir)
}

// takeBack keeps the memory of a start that was cut off before anything was
// written to the guest's disks, and removes any other that was used.
func takeBack(dir string) error {
	used, memory := filepath.Join(dir, memoryUsed), filepath.Join(dir, memoryDir)
	if !exists(used) {
		return nil
	}
	good, err := unwritten(dir, used)
	if err != nil {
		return err
	}
	if !good || exists(memory) {
		return os.RemoveAll(used)
	}
	return os.Rename(used, memory)
}

// unwritten reports whether the disks in a volume are older than the memory in
// it, which was written while the guest stood still.
func unwritten(dir, memory string) (bool, error) {
	saved, err := newest(memory)
	if err != nil {
		return false, err
	}
	disk, err := newest(dir)
	return !disk.After(saved), err
}

// newest returns when the files in a folder were last written to.
func newest(dir string) (last time.Time, err error) {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		if !e.Type().IsRegular() {
			continue
		}
		info, err := e.Info()
		if err != nil {
			return last, err
		}
		if info.ModTime().After(last) {
			last = info.ModTime()
		}
	}
	return last, err
}

// resumed says what memory a guest that runs already may still be going on from:
// the daemon that started it died before it had.
func (r *Reconciler) resumed(g guest.Guest, parts *engine.Parts) {
	used := filepath.Join(parts.Root.Writable, memoryUsed)
	if parts.Memory == "" && exists(used) && r.alive(g.ID) {
		parts.Memory = used
	}
}

// notResumed takes back what resuming did, for a guest that did not start.
func notResumed(parts *engine.Parts) error {
	used := filepath.Join(parts.Root.Writable, memoryUsed)
	if parts.Memory != used {
		return nil
	}
	parts.Memory = ""
	return os.Rename(used, filepath.Join(parts.Root.Writable, memoryDir))
}

// settleMemory removes the memory that a guest which runs has gone on from. If it
// is still there, the daemon that started the guest died before it could tell it
// who it is and what time.
func (r *Reconciler) settleMemory(ctx context.Context, g guest.Guest) error {
	pool, err := r.Pools.Get(g.Spec.Pool)
	if err != nil {
		return err
	}
	dir := pool.Path(g.ID)
	if exists(filepath.Join(dir, memoryUsed)) {
		if err := r.giveIdentity(ctx, g); err != nil {
			if exists(filepath.Join(dir, copyMark)) {
				err = errors.Join(err, r.kill(context.WithoutCancel(ctx), g.ID)) // it is another
			}
			return err
		}
	}
	return errors.Join(unmarkCopy(dir), dropMemory(dir))
}

func (r *Reconciler) giveIdentity(ctx context.Context, g guest.Guest) error {
	ctx, cancel := context.WithTimeout(ctx, renewTime)
	defer cancel()
	m, _, err := r.machine(ctx, g.ID)
	if err != nil {
		return err
	}
	defer m.Close()
	n, ok := m.(engine.Renewer)
	if !ok {
		return cannot(g, "be given an identity while it runs")
	}
	return n.Renew(ctx)
}

// tidyMemory removes what memory lies in the volume of a guest that rests and
// is good for nothing any more, and reports whether it goes on from it with its
// next start. Whoever wants a guest off, and not saved, wants no more of it.
func (r *Reconciler) tidyMemory(ctx context.Context, g guest.Guest, at guest.Phase) (saved bool, err error) {
	switch at {
	case guest.Running:
		return false, r.settleMemory(ctx, g)
	case guest.Paused:
		return false, nil // it may not have read all of it yet
	}
	pool, err := r.Pools.Get(g.Spec.Pool)
	if err != nil {
		return g.Status.Saved, nil // what was
	}
	dir := pool.Path(g.ID)
	if !exists(filepath.Join(dir, memoryDir)) {
		return false, nil
	}
	if g.Spec.Power == guest.Off {
		return false, dropMemory(dir)
	}
	return true, nil
}
