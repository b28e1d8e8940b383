package guests

import (
	"cmp"
	"context"
	"fmt"
	"path/filepath"

	"lodge/internal/base/diskfile"
	"lodge/internal/base/errs"
	"lodge/internal/engine"
	"lodge/internal/layer"
	"lodge/internal/model/guest"
	"lodge/internal/model/image"
	"lodge/internal/storage"
)

// The files that a guest's writable layer lies in, where it is no tree.
const (
	volumeFile = layer.File
	diskFile   = "root.qcow2"
)

// alive reports whether a program of the guest runs, whatever its record says.
func (r *Reconciler) alive(id string) bool {
	held, err := r.Keepers.Find(id)
	return err == nil && held.State().Exit == nil
}

// imageOf returns what is known of the image that a guest was made from: of the
// same content, or if that was replaced, of the same name.
func (r *Reconciler) imageOf(g guest.Guest) image.Info {
	var info image.Info
	for _, im := range r.Tables.Images.List() {
		switch {
		case im.Status.Digest == g.Spec.Digest:
			return im.Status.Info
		case im.Name == g.Spec.Image:
			info = im.Status.Info
		}
	}
	return info
}

// formOf says what the writable layer of a guest has to lie in for its engine.
func formOf(g guest.Guest, info engine.Info, im image.Info) (guest.Form, error) {
	switch {
	case im.Disk == "":
		return info.Form, nil
	case info.Can.Disk:
		return guest.Disk, nil
	}
	return "", &errs.Error{Kind: errs.Unsupported, Ref: g.Key().String(), Field: "model",
		Msg: fmt.Sprintf("its image is a disk, which engine %s cannot boot", info.Name), Hint: "use --model vm"}
}

// quotaOf is the quota of a guest's volume. A layer that lies in one file takes
// no more than that file's size.
func quotaOf(s guest.Spec, form guest.Form) uint64 {
	if form == guest.Tree {
		return s.Disk
	}
	return 0
}

// attachRoot makes ready what the guest's root is made of.
func (r *Reconciler) attachRoot(ctx context.Context, g guest.Guest, pool storage.Pool, form guest.Form, p *engine.Parts) (err error) {
	if form == guest.Tree {
		return r.attachTree(ctx, g, pool, p)
	}
	if p.Root.Base, err = r.Images.File(g.Spec.Digest); err != nil {
		return err
	}
	if form == guest.Disk {
		return r.attachDisk(ctx, g, p)
	}
	p.Root.Volume = filepath.Join(p.Root.Writable, volumeFile)
	return nil // attachVolume makes it, once it is known what the guest is made of
}

// What a guest of a disk image has beside the disks of its spec: its own disk,
// and the disc that it is installed from if the image is one. Firmware tries
// them after all that have a place in the spec; no disk there can be called as
// the disc is.
const (
	ownDisk, ownBoot = "root", 100
	ownDisc          = "_disc"
)

// attachDisk makes the disk ready that a guest boots. Of an image that is a
// disc it is empty at first.
func (r *Reconciler) attachDisk(ctx context.Context, g guest.Guest, p *engine.Parts) error {
	size := max(g.Spec.Disk, p.Image.DiskSize)
	if p.Image.Disk == string(diskfile.ISO) {
		p.Disks = append(p.Disks, engine.Disk{Name: ownDisc, Path: p.Root.Base, Format: "raw", ReadOnly: true, Optical: true, Boot: ownBoot + 1})
		p.Root.Base, size = "", cmp.Or(g.Spec.Disk, discGuestDisk)
	}
	p.Root.Own = &engine.Disk{Name: ownDisk, Path: filepath.Join(p.Root.Writable, diskFile), Format: "qcow2", Boot: ownBoot}
	if r.alive(g.ID) {
		return nil
	}
	return r.Layers.Overlay(ctx, p.Root.Own.Path, p.Root.Base, size)
}

// discGuestDisk is the size of the disk of a guest that is installed from a
// disc and has no limit.
const discGuestDisk = 10 << 30

func (r *Reconciler) attachTree(ctx context.Context, g guest.Guest, pool storage.Pool, p *engine.Parts) (err error) {
	p.Root.Quota = g.Spec.Disk
	if q, ok := pool.(storage.Gauged); ok {
		gauges, err := q.Gauges(g.ID)
		if err != nil {
			return err
		}
		p.Root.Used, p.Root.Limit = gauges.Used, gauges.Limit
	}
	p.Root.Lower, err = r.Images.Mount(ctx, g.Spec.Digest)
	return err
}

// attachMachine makes ready what only guests with a machine of their own have:
// a kernel, further disks, a processor. One that runs has them already, and does
// without what is not there any more.
func (r *Reconciler) attachMachine(ctx context.Context, g guest.Guest, info engine.Info, p *engine.Parts) (err error) {
	if cpu := g.Status.CPU; cpu != nil && wasUp(g.Status) {
		p.CPUSet = []int{*cpu}
	}
	alive := r.alive(g.ID)
	if info.Kernel != "" && p.Root.Own == nil && !alive {
		if p.Kernel, err = r.Kernels.For(ctx, info.Kernel, p.Image, g.Spec.Hardware.Kernel); err != nil {
			return err
		}
	}
	for _, d := range g.Spec.Disks {
		disk, err := r.furtherDisk(g, p.Root.Writable, d)
		if err != nil && !alive {
			return err
		}
		p.Disks = append(p.Disks, disk)
	}
	return nil
}

// pin chooses the processor of the host that a guest runs on which is about to
// start, if its engine wants one.
func (r *Reconciler) pin(g guest.Guest, info engine.Info) []int {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.pins, g.ID)
	if !info.Pin || !info.Single && !g.Spec.Single() {
		return nil
	}
	others := make([]int, 0, len(r.pins))
	for _, cpu := range r.pins {
		others = append(others, cpu)
	}
	cpu, ok := guest.PickCPU(r.CPUs, others, g.Status.CPU)
	if !ok {
		return nil
	}
	r.pins[g.ID] = cpu
	return []int{cpu}
}

// pinned takes up the pins of the guests that an earlier daemon left running.
func (r *Reconciler) pinned() {
	for _, g := range r.Tables.Guests.List() {
		if g.Status.CPU != nil && wasUp(g.Status) {
			r.pins[g.ID] = *g.Status.CPU
		}
	}
}
