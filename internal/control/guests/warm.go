package guests

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"lodge/internal/base/errs"
	"lodge/internal/engine"
	"lodge/internal/keeper"
	"lodge/internal/layer"
	"lodge/internal/model/guest"
)

// Templates are memory images of freshly booted guests, from which others like
// them start in a moment.
type Templates interface {
	// Find returns the folder of the memory image that a guest about to start
	// for the first time can go on from, and that of the disk that goes with
	// it, or false.
	Find(g guest.Guest, info engine.Info, parts engine.Parts) (memory, disk string, ok bool)
	// Want says that a guest has booted which others might be like. It returns
	// at once.
	Want(g guest.Guest, info engine.Info, parts engine.Parts)
}

// attachVolume makes the ext4 file of a guest's writable layer, or finds it. A
// guest that was never started gets a copy of a template's disk, if there is
// one, and goes on from its memory: only as long as nothing was written to the
// disk since, for memory and disk must be of the same moment.
func (r *Reconciler) attachVolume(ctx context.Context, g guest.Guest, info engine.Info, p *engine.Parts) error {
	if p.Root.Volume == "" || r.alive(g.ID) {
		return nil // it has none, or runs on it
	}
	dir := p.Root.Writable
	_, err := os.Lstat(p.Root.Volume)
	fresh := errors.Is(err, fs.ErrNotExist)
	if g.Status.Boots == 0 && !wasUp(g.Status) && (fresh || layer.Pristine(dir, r.HostBoot)) {
		if memory, disk, ok := r.Templates.Find(g, info, *p); ok {
			if fresh {
				if err := markCopy(dir); err != nil {
					return err
				}
				if err := layer.CopyVolume(ctx, disk, dir, r.HostBoot); err != nil {
					return err
				}
			}
			p.Memory = memory
			return nil
		}
	}
	return r.Layers.Volume(ctx, p.Root.Volume, g.Spec.Disk)
}

// renewTime is how long a guest that goes on from a memory image may take to become
// itself: it answers in a fraction of a second, or something is wrong.
const renewTime = 30 * time.Second

// awake has a guest that was just started from a memory image go on. A copy of
// another is given its own identity and the time first; one that does not take it
// is ended, and boots when it is next tried. Any other is itself already, and
// nobody waits until it has heard what time it is: that is told it when it rests.
func (r *Reconciler) awake(ctx context.Context, e engine.Engine, g guest.Guest, parts engine.Parts, held keeper.Held) error {
	ctx, cancel := context.WithTimeout(ctx, renewTime)
	defer cancel()
	m, err := e.Connect(ctx, g, parts, held)
	if err == nil {
		defer m.Close()
		renewer, ok := m.(engine.Renewer)
		switch {
		case !exists(filepath.Join(parts.Root.Writable, copyMark)):
			err = goesOn(ctx, g, m)
		case ok:
			err = renewer.Renew(ctx)
		}
	}
	if err == nil {
		return nil
	}
	return errors.Join(err, r.kill(context.WithoutCancel(ctx), g.ID))
}

// goesOn says so if a guest cannot go on from its memory.
func goesOn(ctx context.Context, g guest.Guest, m engine.Machine) error {
	p, err := m.Probe(ctx)
	if err == nil && p.Trouble != "" {
		err = &errs.Error{Op: "guest.start", Kind: errs.Unavailable, Ref: g.Key().String(), Msg: p.Trouble}
	}
	return err
}

// wantTemplate asks for a template for guests as g, which is up since it booted
// the ordinary way.
func (r *Reconciler) wantTemplate(ctx context.Context, g guest.Guest) {
	r.mu.Lock()
	parts := r.attached[g.ID].parts
	r.mu.Unlock()
	if parts == nil || parts.Memory != "" || parts.Kernel.Path == "" {
		return // it did not boot, or under an earlier daemon
	}
	if g.Spec.Hardware.TPM {
		return // what goes on from a memory has the module that it knows
	}
	if _, info, err := r.engine(ctx, g); err == nil {
		r.Templates.Want(g, info, *parts)
	}
}
