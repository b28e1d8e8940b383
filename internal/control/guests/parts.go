package guests

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"lodge/internal/base/blockdev"
	"lodge/internal/base/errs"
	"lodge/internal/engine"
	"lodge/internal/fabric"
	"lodge/internal/model/guest"
)

// Every guest of a host has idsPerGuest user and group ids of its own, from
// firstID + slot * idsPerGuest. 65,536 is what a distribution expects; firstID
// leaves room for the host's own users, for subordinate ids (useradd starts at
// 100,000) and for systemd's dynamic ones.
const (
	firstID     = 1_000_000_000
	idsPerGuest = 65_536
)

// SpareIDs is the first of a range of ids that is no guest's: the last whole
// one that there is.
const SpareIDs = firstID + (1<<32-firstID)/idsPerGuest*idsPerGuest - idsPerGuest

// device returns the name of the host's end of one of a guest's network cards. It
// is at most 15 characters long, as the kernel wants it.
func (r *Reconciler) device(g guest.Guest, n guest.NIC) string {
	return r.devices(g) + strconv.Itoa(n.Number())
}

// devices is what the names of all of a guest's cards begin with, and of no other
// guest's.
func (r *Reconciler) devices(g guest.Guest) string {
	return fmt.Sprintf("%s%dn", r.Cards, g.Holder.Slot)
}

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
	_, info, err := r.engine(ctx, g)
	if err != nil {
		return nil, err
	}
	im := r.imageOf(g)
	form, err := formOf(g, info, im)
	if err != nil {
		return nil, err
	}
	pool, err := r.Pools.Get(g.Spec.Pool)
	if err != nil {
		return nil, err
	}
	if err := pool.Create(ctx, g.ID, quotaOf(g.Spec, form)); err != nil {
		return nil, err
	}
	disk, err := blockdev.Of(pool.Path(g.ID))
	if err != nil {
		return nil, err
	}
	if err := r.Cgroups.Create(g.ID, info.Overhead.Limits(g.Spec, disk)); err != nil {
		return nil, err
	}
	r.mu.Lock()
	if _, ok := r.attached[g.ID]; !ok {
		r.attached[g.ID] = attachment{}
	}
	r.mu.Unlock()
	p := &engine.Parts{Dir: r.dir(g.ID), Cgroup: g.ID, IDBase: uint32(firstID + g.Holder.Slot*idsPerGuest), Image: im}
	p.Root = engine.Root{Writable: pool.Path(g.ID), Disk: disk}
	if err := os.MkdirAll(p.Dir, 0o700); err != nil {
		return nil, err
	}
	if err := r.attachRoot(ctx, g, pool, form, p); err != nil {
		return nil, err
	}
	if err := r.attachMachine(ctx, g, info, p); err != nil {
		return nil, err
	}
	if err := r.attachNICs(ctx, g, p); err != nil {
		return nil, err
	}
	if err := r.attachVolume(ctx, g, info, p); err != nil {
		return nil, err
	}
	r.resumed(g, p)
	r.mu.Lock()
	r.attached[g.ID] = attachment{p, g.Generation, r.attached[g.ID].used}
	r.mu.Unlock()
	return p, nil
}

func (r *Reconciler) attachNICs(ctx context.Context, g guest.Guest, p *engine.Parts) error {
	nics := g.Spec.NICs
	if d := g.Status.Devices; d != nil && wasUp(g.Status) && r.alive(g.ID) {
		nics = d.NICs // what this run has, whatever is wanted by now
	}
	for i, n := range nics {
		if !slices.Contains(g.Spec.NICs, n) && r.vanishing(n.Network) {
			continue
		}
		nic, socket, err := r.attachNIC(ctx, g, n)
		if err != nil {
			return err
		}
		p.NICs = append(p.NICs, nic)
		if i == 0 {
			p.DNS, p.Domain = socket.DNS, r.domain(n.Network)
		}
	}
	return nil
}

func (r *Reconciler) attachNIC(ctx context.Context, g guest.Guest, n guest.NIC) (engine.NIC, fabric.Socket, error) {
	nic := engine.NIC{Name: n.Name, MAC: n.MAC, Device: r.device(g, n)}
	net, err := r.Networks.Get(n.Network)
	if err != nil {
		return nic, fabric.Socket{}, err
	}
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
			return nic, fabric.Socket{}, &errs.Error{Kind: errs.Internal, Ref: g.Key().String(), Msg: "its record holds an address that cannot be read", Err: err}
		}
		*a.to, *a.addr = prefix, prefix.Addr()
	}
	s, err := net.Plug(ctx, port)
	nic.Master, nic.MTU = s.Master, s.MTU
	if nic.IPv4.IsValid() { // else nothing can be reached by it
		nic.Gateway4 = s.Gateway4
	}
	if nic.IPv6.IsValid() {
		nic.Gateway6 = s.Gateway6
	}
	return nic, s, err
}

// domain returns what names are looked up in on a network.
func (r *Reconciler) domain(network string) string {
	rec, err := r.Tables.Networks.Get(network)
	if err != nil {
		return ""
	}
	return rec.Spec.Domain
}

// vanishing reports whether a network is being taken down, or gone.
func (r *Reconciler) vanishing(network string) bool {
	rec, err := r.Tables.Networks.Get(network)
	return err != nil || rec.Deleting != nil
}

// detachNIC takes back the port of a network card.
func (r *Reconciler) detachNIC(ctx context.Context, g guest.Guest, n guest.NIC) error {
	net, err := r.Networks.Get(n.Network)
	if err != nil {
		if r.vanishing(n.Network) {
			return nil // and every port with it
		}
		return err // a daemon that has just started: its guard still knows the port
	}
	return net.Unplug(ctx, r.device(g, n))
}

// strays takes back the guest's ports that are of none of these cards, whatever
// made them: a daemon that died before it could note what a run has leaves ports
// that no record tells of.
func (r *Reconciler) strays(ctx context.Context, g guest.Guest, cards []guest.NIC) (err error) {
	type port struct {
		of     fabric.Fabric
		device string
	}
	var all []port
	r.Networks.All(func(name string, f fabric.Fabric) {
		for _, device := range f.Ports(r.devices(g)) {
			if !slices.ContainsFunc(cards, func(n guest.NIC) bool { return n.Network == name && r.device(g, n) == device }) {
				all = append(all, port{f, device})
			}
		}
	})
	for _, p := range all {
		err = errors.Join(err, p.of.Unplug(ctx, p.device))
	}
	return err
}

// former are the network cards that the last run had, or may have had, and the
// next one is not to have.
func former(g guest.Guest) (nics []guest.NIC) {
	if g.Status.Devices == nil {
		return nil
	}
	for _, n := range g.Status.Devices.NICs {
		if !slices.Contains(g.Spec.NICs, n) {
			nics = append(nics, n)
		}
	}
	return nics
}

// detach takes back what attach lent. The writable layer stays.
func (r *Reconciler) detach(ctx context.Context, g guest.Guest) error {
	for _, n := range append(former(g), g.Spec.NICs...) {
		if err := r.detachNIC(ctx, g, n); err != nil {
			return err
		}
	}
	if err := r.strays(ctx, g, nil); err != nil {
		return err
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
