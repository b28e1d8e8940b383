// Package networks keeps the networks of this host up.
package networks

import (
	"context"
	"log/slog"
	"time"

	"lodge/internal/base/errs"
	"lodge/internal/control"
	"lodge/internal/fabric"
	"lodge/internal/model"
	"lodge/internal/model/network"
	"lodge/internal/reconcile"
	"lodge/internal/store/tables"
)

// Reconciler implements reconcile.Reconciler for networks.
type Reconciler struct {
	Tables  *tables.Tables
	Drivers map[string]fabric.Driver
	Open    *control.Handles[fabric.Fabric]
	Now     func() time.Time
}

// Name returns the reconciler's name in the graph and the log.
func (*Reconciler) Name() string { return "networks" }

// Reads says what wakes it.
func (*Reconciler) Reads() []reconcile.Read { return []reconcile.Read{{Kind: network.Kind}} }

// All returns what it looks after.
func (r *Reconciler) All() []string { return r.Tables.Networks.IDs() }

// Writes says whose status it alone writes.
func (*Reconciler) Writes() []model.Kind { return []model.Kind{network.Kind} }

// Reconcile makes the host's network match the record with id, or takes it
// away.
func (r *Reconciler) Reconcile(ctx context.Context, log *slog.Logger, id string) (time.Duration, error) {
	rec, err := r.Tables.Networks.ByID(id)
	if err != nil {
		return 0, nil
	}
	if rec.Deleting != nil {
		err = r.remove(ctx, rec)
	} else {
		err = r.ensure(ctx, log, rec)
	}
	if err != nil {
		return 0, control.Remark(ctx, r.Tables.Networks, rec, err, r.Now(), func(s *network.Status) (**model.Problem, *int64) {
			s.Ready = false
			return &s.Problem, &s.Generation
		})
	}
	return ensureAgain, nil
}

// ensureAgain is how long another firewall that was started or loaded anew may
// keep guests from the outside before Lodge's exceptions are in it again.
const ensureAgain = time.Minute

func (r *Reconciler) ensure(ctx context.Context, log *slog.Logger, rec tables.NetworkRecord) error {
	driver, err := r.driver(rec)
	if err != nil {
		return err
	}
	f, err := driver.Ensure(ctx, rec.Name, rec.Spec)
	if err != nil {
		return err
	}
	if _, err := r.Open.Get(rec.Name); err != nil {
		r.Open.Put(rec.Name, f)
		log.Info("network is up", "network", rec.Name, "device", f.Device())
	}
	_, err = r.Tables.Networks.SetStatus(ctx, rec.ID, func(s *network.Status) error {
		*s = network.Status{Generation: rec.Generation, Ready: true, Device: f.Device()}
		return nil
	})
	return err
}

func (r *Reconciler) remove(ctx context.Context, rec tables.NetworkRecord) error {
	driver, err := r.driver(rec)
	if err != nil {
		return err
	}
	if f, open := r.Open.Take(rec.Name); open {
		f.Close()
	}
	if err := driver.Remove(ctx, rec.Name); err != nil {
		return err
	}
	return r.Tables.Networks.Delete(ctx, rec.ID)
}

func (r *Reconciler) driver(rec tables.NetworkRecord) (fabric.Driver, error) {
	d, ok := r.Drivers[rec.Spec.Driver]
	if !ok {
		return nil, &errs.Error{Kind: errs.Unsupported, Ref: "network/" + rec.Name, Field: "driver", Msg: "there is no driver " + rec.Spec.Driver}
	}
	return d, nil
}

var _ reconcile.Reconciler = (*Reconciler)(nil)
