package guests

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"lodge/internal/base/blockdev"
	"lodge/internal/base/errs"
	"lodge/internal/engine"
	"lodge/internal/fabric"
	"lodge/internal/model/guest"
	"lodge/internal/storage"
)

// Every guest of a host has idsPerGuest user and group ids of its own, from
// firstID + slot * idsPerGuest. 65,536 is what a distribution expects; firstID
// leaves room for the host's own users, for subordinate ids (useradd starts at
// 100,000) and for systemd's dynamic ones.
const (
	firstID     = 1_000_000_000
	idsPerGuest = 65_536
)

// Device returns the name of the host's end of a guest's nth network card. It
// is at most 15 characters long, as the kernel wants it.
func Device(slot, n int) string { return fmt.Sprintf("lg%dn%d", slot, n) }

func (r *Reconciler) dir(id string) string { return filepath.Join(r.Dir, id) }

// attach makes ready what one boot needs, or finds it ready. The group is made
// before anything that does not outlive the run and removed last: its presence
// is what "attached" means.
func (r *Reconciler) attach(ctx context.Context, g guest.Guest) (*engine.Parts, error) {
	r.mu.Lock()
	known := r.attached[g.ID].parts
	r.mu.Unlock()
	if known != nil {
		return known, nil
	}
	pool, err := r.Pools.Get(g.Spec.Pool)
	if err != nil {
		return nil, err
	}
	if err := pool.Create(ctx, g.ID, g.Spec.Disk); err != nil {
		return nil, err
	}
	disk, err := blockdev.Of(pool.Path(g.ID))
	if err != nil {
		return nil, err
	}
	if err := r.Cgroups.Create(g.ID, engine.Limits(g.Spec, disk)); err != nil {
		return nil, err
	}
	r.mu.Lock()
	if _, ok := r.attached[g.ID]; !ok {
		r.attached[g.ID] = attachment{}
	}
	r.mu.Unlock()
	p := &engine.Parts{Dir: r.dir(g.ID), Cgroup: g.ID, IDBase: uint32(firstID + g.Holder.Slot*idsPerGuest)}
	p.Root = engine.Root{Writable: pool.Path(g.ID), Quota: g.Spec.Disk, Disk: disk}
	if q, ok := pool.(storage.Gauged); ok {
		gauges, err := q.Gauges(g.ID)
		if err != nil {
			return nil, err
		}
		p.Root.Used, p.Root.Limit = gauges.Used, gauges.Limit
	}
	if err := os.MkdirAll(p.Dir, 0o700); err != nil {
		return nil, err
	}
	if err := r.attachRoot(ctx, g, p); err != nil {
		return nil, err
	}
	for i, n := range g.Spec.NICs {
		if err := r.attachNIC(ctx, g, i, n, p); err != nil {
			return nil, err
		}
	}
	r.mu.Lock()
	r.attached[g.ID] = attachment{p, g.Generation, r.attached[g.ID].used}
	r.mu.Unlock()
	return p, nil
}

func (r *Reconciler) attachRoot(ctx context.Context, g guest.Guest, p *engine.Parts) error {
	lower, err := r.Images.Mount(ctx, g.Spec.Digest)
	if err != nil {
		return err
	}
	p.Root.Lower = lower
	for _, im := range r.Tables.Images.List() {
		if im.Status.Digest == g.Spec.Digest {
			p.Image = im.Status.Info
		}
	}
	return nil
}

func (r *Reconciler) attachNIC(ctx context.Context, g guest.Guest, i int, n guest.NIC, p *engine.Parts) error {
	net, err := r.Networks.Get(n.Network)
	if err != nil {
		return err
	}
	nic := engine.NIC{Name: n.Name, MAC: n.MAC, Device: Device(g.Holder.Slot, i)}
	port := fabric.Port{Device: nic.Device, MAC: n.MAC}
	for _, a := range []struct {
		text string
		to   *netip.Prefix
		addr *netip.Addr
	}{{n.IPv4, &nic.IPv4, &port.IPv4}, {n.IPv6, &nic.IPv6, &port.IPv6}} {
		if a.text == "" {
			continue
		}
		prefix, err := netip.ParsePrefix(a.text)
		if err != nil {
			return &errs.Error{Kind: errs.Internal, Ref: g.Key().String(), Msg: "its record holds an address that cannot be read", Err: err}
		}
		*a.to, *a.addr = prefix, prefix.Addr()
	}
	s, err := net.Plug(ctx, port)
	if err != nil {
		return err
	}
	nic.Master, nic.MTU, nic.Gateway4, nic.Gateway6 = s.Master, s.MTU, s.Gateway4, s.Gateway6
	p.NICs = append(p.NICs, nic)
	if i == 0 {
		p.DNS = s.DNS
		if rec, err := r.Tables.Networks.Get(n.Network); err == nil {
			p.Domain = rec.Spec.Domain
		}
	}
	return nil
}

// detach takes back what attach lent. The writable layer stays.
func (r *Reconciler) detach(ctx context.Context, g guest.Guest) error {
	for i, n := range g.Spec.NICs {
		net, err := r.Networks.Get(n.Network)
		if err != nil {
			if rec, gone := r.Tables.Networks.Get(n.Network); gone != nil || rec.Deleting != nil {
				continue // it is being taken down, and every port with it
			}
			return err // a daemon that has just started: its guard still knows the port
		}
		if err := net.Unplug(ctx, Device(g.Holder.Slot, i)); err != nil {
			return err
		}
	}
	if err := r.Cgroups.Remove(ctx, g.ID); err != nil {
		return err
	}
	r.mu.Lock()
	delete(r.attached, g.ID)
	r.mu.Unlock()
	return nil
}

// destroy removes the guest's data, last of all: nothing of it is left on this
// host.
func (r *Reconciler) destroy(ctx context.Context, g guest.Guest) error {
	pool, err := r.Pools.Get(g.Spec.Pool)
	if err != nil {
		return err
	}
	if err := pool.Remove(ctx, g.ID); err != nil {
		return err
	}
	if err := os.RemoveAll(r.dir(g.ID)); err != nil {
		return err
	}
	return r.report(ctx, g, func(s *guest.Status) {
		s.Phase, s.Doing, s.Problem = guest.Gone, guest.Rest, nil
	})
}
