package admission

import (
	"cmp"
	"context"
	"fmt"

	"lodge/internal/base/errs"
	"lodge/internal/model/guest"
	"lodge/internal/model/operation"
	"lodge/internal/store"
	"lodge/internal/store/tables"
)

// ModelWish asks that a guest be of another model.
type ModelWish struct {
	Model   guest.Model
	Engine  string // empty: the first that runs Model here
	Restart bool   // take the guest down for it, and boot it again
}

// ChangeModel makes a guest one of another model. Its private data is copied
// into the form that this needs before it boots again; what cannot be carried
// out leaves it as it was, and the receipt says why.
func (d *Door) ChangeModel(ctx context.Context, by, name string, w ModelWish) (Operation, error) {
	return d.transact(ctx, by, "guest.model", func(tx *store.Tx) ([]operation.Subject, error) {
		r, err := there(d.Tables.Guests, guest.Kind, name)
		if err != nil {
			return nil, err
		}
		if err := d.CheckChange(r, w); err != nil {
			return nil, err
		}
		if running(&r) && !w.Restart {
			return nil, &errs.Error{Kind: errs.Conflict, Ref: "guest/" + name, Msg: "is running, and changes its model only while it is down",
				Hint: fmt.Sprintf("lodge model %s %s --restart, or stop it first", name, w.Model)}
		}
		if running(&r) {
			r.Spec.Power, r.Spec.Force, r.Spec.Within = guest.On, false, 0
			r.Spec.Boots++
		}
		if r.Spec.Model != w.Model {
			r.Spec.Hardware = guest.Hardware{} // it was chosen for another kind of machine
		}
		r.Spec.Model, r.Spec.Engine = w.Model, w.Engine
		if err := d.checkKernel(r.Spec); err != nil {
			return nil, err
		}
		r.Spec.Models++
		r = d.Tables.Guests.UpdateIn(tx, r)
		s := guestSubject(r)
		s.Wish = r.Spec.Models
		return []operation.Subject{s}, nil
	})
}

// CheckChange says why a guest cannot be of another model, whether or not it
// runs.
func (d *Door) CheckChange(r tables.GuestRecord, w ModelWish) error {
	next := r.Spec
	next.Model, next.Engine = w.Model, w.Engine
	e, err := d.engine(next)
	if err != nil {
		return err
	}
	now := guest.Guest{Spec: r.Spec, Status: r.Status}
	model, engine := now.InForce()
	if model == w.Model && cmp.Or(w.Engine, e.Name) == cmp.Or(engine, r.Status.Engine, e.Name) {
		return &errs.Error{Kind: errs.Conflict, Ref: "guest/" + r.Name, Field: "model", Msg: "is of model " + string(model) + " already", Hint: "lodge show " + r.Name}
	}
	if r.Status.Saved {
		return &errs.Error{Kind: errs.Conflict, Ref: "guest/" + r.Name, Field: "model", Msg: "was saved in the middle of its work, which only goes on as it is",
			Hint: fmt.Sprintf("let it go on and stop it first: lodge start %s && lodge stop %s", r.Name, r.Name)}
	}
	for _, im := range d.Tables.Images.List() {
		if im.Status.Digest == r.Spec.Digest && im.Status.Info.Disk != "" && !e.Disk {
			return &errs.Error{Kind: errs.Unsupported, Ref: "guest/" + r.Name, Field: "model",
				Msg:  fmt.Sprintf("boots a disk with a boot loader of its own, which engine %s cannot", e.Name),
				Hint: "guests of disk images stay of model vm; make one of a root-tree image, such as debian/12, and copy the data"}
		}
	}
	if next.Model != r.Spec.Model {
		next.Hardware, next.Disks = guest.Hardware{}, nil // further disks wait until it is of a model that has them
	}
	return d.checkMachine(next, e, d.imageInfo(next))
}
