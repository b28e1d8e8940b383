// Package pools keeps the storage pools of this host open.
package pools

import (
	"context"
	"log/slog"
	"path/filepath"
	"time"

	"lodge/internal/base/errs"
	"lodge/internal/control"
	"lodge/internal/model"
	"lodge/internal/model/pool"
	"lodge/internal/reconcile"
	"lodge/internal/storage"
	"lodge/internal/store/tables"
)

// Reconciler implements reconcile.Reconciler for pools.
type Reconciler struct {
	Tables  *tables.Tables
	Drivers map[string]storage.Driver
	Open    *control.Handles[storage.Pool]
	Dir     string // each pool gets a directory below it
	Now     func() time.Time
}

// Name returns the reconciler's name in the graph and the log.
func (*Reconciler) Name() string { return "pools" }

// Reads says what wakes it.
func (*Reconciler) Reads() []reconcile.Read { return []reconcile.Read{{Kind: pool.Kind}} }

// All returns what it looks after.
func (r *Reconciler) All() []string { return r.Tables.Pools.IDs() }

// Writes says whose status it alone writes.
func (*Reconciler) Writes() []model.Kind { return []model.Kind{pool.Kind} }

// Reconcile opens the pool with id, or takes it away.
func (r *Reconciler) Reconcile(ctx context.Context, log *slog.Logger, id string) (time.Duration, error) {
	rec, err := r.Tables.Pools.ByID(id)
	if err != nil {
		return 0, nil
	}
	if rec.Deleting != nil {
		err = r.remove(ctx, rec)
	} else {
		err = r.open(ctx, log, rec)
	}
	if err != nil {
		return 0, control.Remark(ctx, r.Tables.Pools, rec, err, r.Now(), func(s *pool.Status) (**model.Problem, *int64) {
			s.Ready = false
			return &s.Problem, &s.Generation
		})
	}
	return 0, nil
}

func (r *Reconciler) open(ctx context.Context, log *slog.Logger, rec tables.PoolRecord) error {
	p, err := r.Open.Get(rec.Name)
	if err != nil {
		driver, err := r.driver(rec)
		if err != nil {
			return err
		}
		if p, err = driver.Open(ctx, rec.Name, rec.Spec, r.dir(rec)); err != nil {
			return err
		}
		r.Open.Put(rec.Name, p)
		log.Info("pool is open", "pool", rec.Name, "driver", rec.Spec.Driver, "quota", p.Quota())
	}
	_, err = r.Tables.Pools.SetStatus(ctx, rec.ID, func(s *pool.Status) error {
		*s = pool.Status{Generation: rec.Generation, Ready: true, Path: filepath.Dir(p.Path("x")), Quota: p.Quota()}
		return nil
	})
	return err
}

// remove destroys the pool, which must hold no volume, and then its record.
func (r *Reconciler) remove(ctx context.Context, rec tables.PoolRecord) error {
	p, err := r.Open.Get(rec.Name)
	if err != nil {
		driver, err := r.driver(rec)
		if err != nil {
			return err
		}
		if p, err = driver.Open(ctx, rec.Name, rec.Spec, r.dir(rec)); err != nil {
			return err
		}
	}
	if err := p.Destroy(ctx); err != nil {
		return err
	}
	r.Open.Take(rec.Name)
	return r.Tables.Pools.Delete(ctx, rec.ID)
}

func (r *Reconciler) dir(rec tables.PoolRecord) string { return filepath.Join(r.Dir, rec.ID) }

func (r *Reconciler) driver(rec tables.PoolRecord) (storage.Driver, error) {
	d, ok := r.Drivers[rec.Spec.Driver]
	if !ok {
		return nil, &errs.Error{Kind: errs.Unsupported, Ref: "pool/" + rec.Name, Field: "driver", Msg: "there is no driver " + rec.Spec.Driver}
	}
	return d, nil
}

var _ reconcile.Reconciler = (*Reconciler)(nil)
