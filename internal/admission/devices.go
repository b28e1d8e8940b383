package admission

import (
	"context"
	"fmt"
	"slices"

	"lodge/internal/base/errs"
	"lodge/internal/model/guest"
	"lodge/internal/model/network"
	"lodge/internal/store"
	"lodge/internal/store/tables"
)

// AttachDisk gives a guest one more disk or disc. A guest that runs gets it at
// once if its engine can do that, else with its next start.
func (d *Door) AttachDisk(ctx context.Context, by, name string, f guest.FurtherDisk) (Operation, error) {
	return d.edit(ctx, by, "guest.attach", name, func(_ *store.Tx, r *tables.GuestRecord) error {
		if slices.ContainsFunc(r.Spec.Disks, func(o guest.FurtherDisk) bool { return o.Name == f.Name }) {
			return &errs.Error{Kind: errs.Exists, Ref: "guest/" + name, Field: "name", Msg: "has a disk " + f.Name + " already", Hint: "choose another name"}
		}
		e, err := d.engine(r.Spec)
		if err != nil {
			return err
		}
		r.Spec.Disks = append(slices.Clone(r.Spec.Disks), f)
		return d.checkMachine(r.Spec, e, d.imageInfo(r.Spec))
	})
}

// DetachDisk takes a disk or disc away. What was on a disk is lost.
func (d *Door) DetachDisk(ctx context.Context, by, name, disk string) (Operation, error) {
	return d.edit(ctx, by, "guest.detach", name, func(_ *store.Tx, r *tables.GuestRecord) error {
		i := slices.IndexFunc(r.Spec.Disks, func(f guest.FurtherDisk) bool { return f.Name == disk })
		if i < 0 {
			return &errs.Error{Kind: errs.NotFound, Ref: "guest/" + name, Field: "disk", Msg: "has no disk " + disk, Hint: "lodge show " + name}
		}
		r.Spec.Disks = slices.Delete(slices.Clone(r.Spec.Disks), i, i+1)
		return nil
	})
}

// AttachNIC puts a guest on one more network. A guest that runs gets the card at
// once if its engine can do that, else with its next start.
func (d *Door) AttachNIC(ctx context.Context, by, name, on string) (Operation, error) {
	var free []func()
	defer func() {
		for _, f := range free {
			f()
		}
	}()
	return d.edit(ctx, by, "guest.attach", name, func(tx *store.Tx, r *tables.GuestRecord) error {
		net, err := there(d.Tables.Networks, network.Kind, on)
		if err != nil {
			return inField("network", err, "see lodge network ls")
		}
		number := 0
		for _, n := range r.Spec.NICs {
			if n.Network == on {
				return &errs.Error{Kind: errs.Exists, Ref: "guest/" + name, Field: "network", Msg: fmt.Sprintf("is on network %s already, with %s", on, n.Name), Hint: "choose another network"}
			}
			number = max(number, n.Number()+1)
		}
		place, release, err := d.addresses.take(on, net.Spec)
		if err != nil {
			return err
		}
		free = append(free, release)
		for _, lease := range place.names(on) {
			d.Tables.Leases.CreateIn(tx, lease, network.LeaseSpec{Guest: r.ID})
		}
		r.Spec.NICs = append(slices.Clone(r.Spec.NICs), guest.NIC{
			Name: guest.NICName(number), Network: on, MAC: guest.MACOf(r.ID, number), IPv4: text(place.IPv4), IPv6: text(place.IPv6),
		})
		return nil
	})
}

// DetachNIC takes a network card away; its addresses are free for others. It is
// refused while a guest runs that would keep using them.
func (d *Door) DetachNIC(ctx context.Context, by, name, card string) (Operation, error) {
	return d.edit(ctx, by, "guest.detach", name, func(tx *store.Tx, r *tables.GuestRecord) error {
		i := slices.IndexFunc(r.Spec.NICs, func(n guest.NIC) bool { return n.Name == card })
		if i < 0 {
			return &errs.Error{Kind: errs.NotFound, Ref: "guest/" + name, Field: "nic", Msg: "has no network card " + card, Hint: "lodge show " + name}
		}
		if up(r) {
			e, err := d.Engine(r.Spec.Model, r.Status.Engine)
			if err != nil || !e.Plug {
				return &errs.Error{Kind: errs.Conflict, Ref: "guest/" + name, Msg: "runs, and its engine cannot take cards out of a running guest", Hint: "lodge stop " + name}
			}
		}
		if i == 0 && len(d.PublishOf(r.ID)) > 0 {
			return &errs.Error{Kind: errs.Conflict, Ref: "guest/" + name, Field: "nic", Msg: "ports of the host lead to " + card, Hint: fmt.Sprintf("take them away first: lodge set %s --publish \"\"", name)}
		}
		n := r.Spec.NICs[i]
		for _, a := range []string{n.IPv4, n.IPv6} {
			if l, err := d.Tables.Leases.Get(network.LeaseName(n.Network, a)); a != "" && err == nil && l.Spec.Guest == r.ID {
				d.Tables.Leases.DeleteIn(tx, l)
			}
		}
		r.Spec.NICs = slices.Delete(slices.Clone(r.Spec.NICs), i, i+1)
		return nil
	})
}
