package admission

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"lodge/internal/base/errs"
	"lodge/internal/model/forward"
	"lodge/internal/model/guest"
	"lodge/internal/model/operation"
	"lodge/internal/store"
	"lodge/internal/store/tables"
)

// checkPublish reads port forwards and says whether the host's ports are free.
// mine is the id of the guest they are for: its own do not count as taken.
func (d *Door) checkPublish(field, mine string, all []string) ([]forward.Spec, error) {
	specs := make([]forward.Spec, 0, len(all))
	have := d.Tables.Forwards.List()
	for _, text := range all {
		s, err := ParsePublish(field, text)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(specs, func(o forward.Spec) bool { return overlap(o, s) }) {
			return nil, errs.Bad(field, fmt.Sprintf("port %d is named twice", s.Port), "name each port of the host once")
		}
		held, err := d.portTaken(field, mine, s, have)
		if err != nil {
			return nil, err
		}
		if !held && d.PortFree != nil {
			if err := d.PortFree(s.Protocol, s.Listen, s.Port); err != nil {
				return nil, &errs.Error{Kind: errs.Conflict, Field: field, Msg: fmt.Sprintf("port %d of the host is in use", s.Port), Hint: fmt.Sprintf("choose another, or see who has it: ss -lnp 'sport = :%d'", s.Port), Err: err}
			}
		}
		specs = append(specs, s)
	}
	return specs, nil
}

// portTaken refuses a port that leads to another guest, and reports whether it
// leads to mine already.
func (d *Door) portTaken(field, mine string, s forward.Spec, have []tables.ForwardRecord) (held bool, err error) {
	for _, f := range have {
		switch {
		case !overlap(f.Spec, s):
		case f.Spec.Guest == mine:
			held = true
		default:
			return false, &errs.Error{Kind: errs.Exists, Ref: "forward/" + f.Name, Field: field, Msg: fmt.Sprintf("port %d leads to %s already", s.Port, d.guestName(f.Spec.Guest)), Hint: "choose another port, or: lodge forward rm " + f.Name}
		}
	}
	return held, nil
}

func (d *Door) guestName(id string) string {
	if g, err := d.Tables.Guests.ByID(id); err == nil {
		return "guest/" + g.Name
	}
	return "a guest that is gone"
}

// replaceForwards makes the forwards of r be exactly those of all.
func (d *Door) replaceForwards(tx *store.Tx, r *tables.GuestRecord, all []string) error {
	if len(r.Spec.NICs) == 0 && len(all) > 0 {
		return errs.Bad("publish", "a guest without a network has no ports", "")
	}
	wanted, err := d.checkPublish("publish", r.ID, all)
	if err != nil {
		return err
	}
	for i := range wanted {
		wanted[i].Guest = r.ID
	}
	for _, f := range d.Tables.Forwards.List() {
		if f.Spec.Guest != r.ID {
			continue
		}
		i := slices.IndexFunc(wanted, func(s forward.Spec) bool { return ForwardName(s) == f.Name })
		if i < 0 {
			d.Tables.Forwards.DeleteIn(tx, f)
			continue
		}
		if wanted[i] != f.Spec {
			f.Spec = wanted[i]
			d.Tables.Forwards.UpdateIn(tx, f)
		}
		wanted = slices.Delete(wanted, i, i+1)
	}
	for _, s := range wanted {
		d.Tables.Forwards.CreateIn(tx, ForwardName(s), s)
	}
	return nil
}

// CreateForward leads a port of the host to a guest.
func (d *Door) CreateForward(ctx context.Context, by, guestName, publish string) (Operation, error) {
	return d.transact(ctx, by, "forward.create", func(tx *store.Tx) ([]operation.Subject, error) {
		g, err := there(d.Tables.Guests, guest.Kind, guestName)
		if err != nil {
			return nil, inField("guest", err, "see lodge ls")
		}
		if len(g.Spec.NICs) == 0 {
			return nil, errs.Bad("guest", "has no network", "")
		}
		all, err := d.checkPublish("publish", "", []string{publish})
		if err != nil {
			return nil, err
		}
		all[0].Guest = g.ID
		r := d.Tables.Forwards.CreateIn(tx, ForwardName(all[0]), all[0])
		return []operation.Subject{subject(forward.Kind, r.Meta)}, nil
	})
}

// RemoveForward closes a port of the host. Nothing is to be torn down by an
// owner: the network is made to match the forwards that are left.
func (d *Door) RemoveForward(ctx context.Context, by, name string) (Operation, error) {
	return d.transact(ctx, by, "forward.remove", func(tx *store.Tx) ([]operation.Subject, error) {
		r, err := d.Tables.Forwards.Get(name)
		if err != nil {
			return nil, err
		}
		d.Tables.Forwards.DeleteIn(tx, r)
		return []operation.Subject{gone(forward.Kind, r.Meta)}, nil
	})
}

// personal is the part of an error that is for a person.
func personal(err error) string {
	if e, ok := errors.AsType[*errs.Error](err); ok {
		return e.Msg
	}
	return err.Error()
}

func refOf(err error) string {
	if e, ok := errors.AsType[*errs.Error](err); ok {
		return e.Ref
	}
	return ""
}
