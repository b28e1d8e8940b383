// Package snapshots takes the snapshots of this host's guests, and removes them.
// Going back to one is a step of the guest.
package snapshots

import (
	"context"
	"log/slog"
	"time"

	"lodge/internal/base/errs"
	"lodge/internal/control"
	"lodge/internal/model"
	"lodge/internal/model/guest"
	"lodge/internal/model/pool"
	"lodge/internal/model/snapshot"
	"lodge/internal/reconcile"
	"lodge/internal/storage"
	"lodge/internal/store/tables"
)

// Guests brings guests to rest for a snapshot.
type Guests interface {
	// TakeSnapshot keeps what a guest's volume holds as the pool's snapshot of
	// that name, with its memory if that is asked for. One that is there
	// already is left as it is.
	TakeSnapshot(ctx context.Context, guestID, name string, memory bool) (snapshot.Taken, error)
}

// Reconciler implements reconcile.Reconciler for snapshots. On the pool each has
// the name of its record's id.
type Reconciler struct {
	Tables *tables.Tables
	Host   string
	Pools  *control.Handles[storage.Pool]
	Guests Guests
	Now    func() time.Time
}

// Name returns the reconciler's name in the graph and the log.
func (*Reconciler) Name() string { return "snapshots" }

// Reads says what wakes it: a snapshot, a guest that one waits for, a pool that
// came up.
func (r *Reconciler) Reads() []reconcile.Read {
	return []reconcile.Read{
		{Kind: snapshot.Kind},
		{Kind: guest.Kind, Wake: func(id string) []string { return r.unfinished(func(s snapshot.Spec) bool { return s.Guest == id }) }},
		{Kind: pool.Kind, Wake: func(string) []string { return r.unfinished(func(snapshot.Spec) bool { return true }) }},
	}
}

// unfinished returns the snapshots that wait for something.
func (r *Reconciler) unfinished(about func(snapshot.Spec) bool) (ids []string) {
	for _, s := range r.Tables.Snapshots.List() {
		if (s.Status.Taken == nil || s.Deleting != nil) && about(s.Spec) {
			ids = append(ids, s.ID)
		}
	}
	return ids
}

// All returns what it looks after.
func (r *Reconciler) All() []string { return r.Tables.Snapshots.IDs() }

// Writes says whose status it alone writes.
func (*Reconciler) Writes() []model.Kind { return []model.Kind{snapshot.Kind} }

// Reconcile takes a snapshot, or removes it.
func (r *Reconciler) Reconcile(ctx context.Context, log *slog.Logger, id string) (time.Duration, error) {
	rec, err := r.Tables.Snapshots.ByID(id)
	if errs.Is(err, errs.NotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	if rec.Deleting != nil {
		err = r.remove(ctx, rec)
	} else if rec.Status.Taken == nil || rec.Status.Generation != rec.Generation {
		err = r.take(ctx, log, rec)
	}
	if err == nil || ctx.Err() != nil {
		return 0, err
	}
	return 0, control.Remark(ctx, r.Tables.Snapshots, rec, err, r.Now(), func(s *snapshot.Status) (**model.Problem, *int64) {
		return &s.Problem, &s.Generation
	})
}

func (r *Reconciler) take(ctx context.Context, log *slog.Logger, rec tables.SnapshotRecord) error {
	taken := rec.Status.Taken
	if taken == nil {
		if rec.Status.Problem != nil && rec.Status.Generation == rec.Generation {
			return nil // it failed for good; whoever asked has been told
		}
		t, err := r.Guests.TakeSnapshot(ctx, rec.Spec.Guest, rec.ID, rec.Spec.Memory)
		if err != nil {
			return err
		}
		taken = &t
		log.Info("snapshot taken", "guest", rec.Spec.Guest, "snapshot", rec.Spec.Name, "rest", t.Rest, "memory", t.Memory)
	}
	_, err := r.Tables.Snapshots.SetStatus(ctx, rec.ID, func(s *snapshot.Status) error {
		*s = snapshot.Status{Generation: rec.Generation, Taken: taken}
		return nil
	})
	if errs.Is(err, errs.NotFound) {
		return nil
	}
	return err
}

func (r *Reconciler) remove(ctx context.Context, rec tables.SnapshotRecord) error {
	p, err := r.Pools.Get(rec.Spec.Pool)
	if err != nil {
		if _, gone := r.Tables.Pools.Get(rec.Spec.Pool); errs.Is(gone, errs.NotFound) {
			return r.Tables.Snapshots.Delete(ctx, rec.ID)
		}
		return err
	}
	if err := p.RemoveSnapshot(ctx, rec.Spec.Guest, rec.ID); err != nil {
		return err
	}
	return r.Tables.Snapshots.Delete(ctx, rec.ID)
}

var _ reconcile.Reconciler = (*Reconciler)(nil)
