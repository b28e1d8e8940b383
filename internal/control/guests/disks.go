package guests

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
	"lodge/internal/engine"
	"lodge/internal/model/guest"
	"lodge/internal/storage"
)

// A guest's further disks lie beside its writable layer as files of these
// names.
const (
	diskPrefix = "disk-"
	diskSuffix = ".raw"
)

func diskPath(volume, name string) string {
	return filepath.Join(volume, diskPrefix+name+diskSuffix)
}

// furtherDisk makes a further disk ready: a sparse file as large as it should
// be, or a disc that is there and can be read. A disk never becomes smaller.
func (r *Reconciler) furtherDisk(g guest.Guest, volume string, d guest.FurtherDisk) (engine.Disk, error) {
	disk := engine.Disk{Name: d.Name, Format: "raw", Boot: d.Boot}
	if d.Disc != "" {
		disk.Path, disk.ReadOnly, disk.Optical = d.Disc, true, true
		info, err := os.Stat(d.Disc)
		if err == nil && !info.Mode().IsRegular() {
			err = errors.New("it is no regular file")
		}
		if err != nil {
			return disk, &errs.Error{Kind: errs.NotFound, Ref: g.Key().String(), Field: "disks", Msg: fmt.Sprintf("the file of disc %s cannot be read", d.Name),
				Hint: fmt.Sprintf("put it back, or take the disc out: lodge detach iso %s %s", g.Name, d.Name), Err: err}
		}
		return disk, nil
	}
	disk.Path = diskPath(volume, d.Name)
	return disk, storage.Failed("guest.disk", g.Key().String(), growDisk(disk.Path, int64(d.Size)))
}

func growDisk(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || info.Size() >= size {
		return err
	}
	if err := f.Truncate(size); err != nil {
		return err
	}
	return f.Sync()
}

// sweepDisks removes the files of disks that a guest is to have no more and
// that no run holds.
func (r *Reconciler) sweepDisks(g guest.Guest, held guest.Devices) error {
	pool, err := r.Pools.Get(g.Spec.Pool)
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(pool.Path(g.ID))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		name, ok := strings.CutPrefix(e.Name(), diskPrefix)
		if !ok || !strings.HasSuffix(name, diskSuffix) {
			continue
		}
		name = strings.TrimSuffix(name, diskSuffix)
		called := func(d guest.FurtherDisk) bool { return d.Name == name && d.Disc == "" }
		if slices.ContainsFunc(g.Spec.Disks, called) || slices.ContainsFunc(held.Disks, called) {
			continue
		}
		if err := os.Remove(filepath.Join(pool.Path(g.ID), e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// replug makes the devices of a running guest those of its spec, where its
// engine can; where it cannot they come with the next start.
func (r *Reconciler) replug(ctx context.Context, g guest.Guest, m engine.Machine) error {
	plugs := g.Spec.Plugs(g.Status.Devices)
	p, ok := m.(engine.Plugger)
	if plugs.Empty() || !ok {
		return nil
	}
	have := g.Status.Devices.Clone()
	err := r.plug(ctx, g, p, plugs, have)
	werr := r.report(ctx, g, func(s *guest.Status) { s.Devices = have.Clone() })
	r.mu.Lock()
	r.attached[g.ID] = attachment{used: true} // its parts are others now
	r.mu.Unlock()
	return errors.Join(err, werr, r.sweepDisks(g, *have))
}

// unless passes on an error of any kind but one.
func unless(k errs.Kind, err error) error {
	if errs.Is(err, k) {
		return nil
	}
	return err
}

// plug changes the devices of a run one after the other and keeps have true. What
// is there already, or gone, an earlier daemon did that could not say so.
func (r *Reconciler) plug(ctx context.Context, g guest.Guest, p engine.Plugger, plugs guest.Plugs, have *guest.Devices) error {
	for _, name := range plugs.OutDisks {
		if err := unless(errs.NotFound, p.UnplugDisk(ctx, name)); err != nil {
			return unless(errs.Unsupported, err)
		}
		have.GoneDisk(name)
	}
	for _, name := range plugs.OutNICs {
		if err := unless(errs.NotFound, p.UnplugNIC(ctx, name)); err != nil {
			return unless(errs.Unsupported, err)
		}
		i := slices.IndexFunc(have.NICs, func(n guest.NIC) bool { return n.Name == name })
		if err := r.detachNIC(ctx, g, have.NICs[i]); err != nil {
			return err
		}
		have.GoneNIC(name)
	}
	if len(plugs.InDisks)+len(plugs.InNICs) == 0 {
		return nil
	}
	have.Expect(plugs)
	if err := r.report(ctx, g, func(s *guest.Status) { s.Devices = have.Clone() }); err != nil {
		return err
	}
	if err := r.plugDisks(ctx, g, p, plugs.InDisks, have); err != nil {
		return err
	}
	return r.plugNICs(ctx, g, p, plugs.InNICs, have)
}

// plugDisks gives a run disks. One that its engine cannot give while the guest
// runs comes with the next start.
func (r *Reconciler) plugDisks(ctx context.Context, g guest.Guest, p engine.Plugger, in []guest.FurtherDisk, have *guest.Devices) error {
	pool, err := r.Pools.Get(g.Spec.Pool)
	if err != nil {
		return err
	}
	for _, d := range in {
		disk, err := r.furtherDisk(g, pool.Path(g.ID), d)
		if err == nil {
			err = unless(errs.Exists, p.PlugDisk(ctx, disk))
		}
		switch {
		case errs.Is(err, errs.Unsupported):
			have.GoneDisk(d.Name)
		case err != nil:
			return err
		default:
			have.CameDisk(d.Name)
		}
	}
	return nil
}

// plugNICs gives a run network cards, as plugDisks does disks.
func (r *Reconciler) plugNICs(ctx context.Context, g guest.Guest, p engine.Plugger, in []guest.NIC, have *guest.Devices) error {
	for _, n := range in {
		nic, _, err := r.attachNIC(ctx, g, n)
		if err == nil {
			err = unless(errs.Exists, p.PlugNIC(ctx, nic))
		}
		switch {
		case errs.Is(err, errs.Unsupported):
			have.GoneNIC(n.Name)
		case err != nil:
			return err
		default:
			have.CameNIC(n.Name)
		}
	}
	return nil
}
