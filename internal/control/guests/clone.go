package guests

import (
	"context"
	"errors"
	"time"

	"lodge/internal/base/errs"
	"lodge/internal/base/fsx"
	"lodge/internal/model/guest"
	"lodge/internal/storage"
)

// clone makes a guest's layer of another's. It returns how long to wait before
// that can be done.
func (r *Reconciler) clone(ctx context.Context, g guest.Guest) (time.Duration, error) {
	pool, err := r.Pools.Get(g.Spec.Pool)
	if err != nil {
		return 0, err
	}
	of := g.Spec.Clone
	if !exists(pool.Path(g.ID)) {
		if wait, err := r.cloneVolume(ctx, g, pool); wait > 0 || err != nil {
			return wait, err
		}
	}
	dir := pool.Path(g.ID)
	if err := errors.Join(markCopy(dir), fsx.SyncDir(dir)); err != nil {
		return 0, storage.Failed("guest.clone", g.Key().String(), err)
	}
	if !of.Memory {
		if err := dropMemory(dir); err != nil {
			return 0, err
		}
		if err := ownIdentity(ctx, dir); err != nil {
			return 0, storage.Failed("guest.clone", g.Key().String(), err)
		}
	}
	model, _ := g.InForce()
	return 0, r.report(ctx, g, func(s *guest.Status) { s.Cloned, s.Model = true, model })
}

func (r *Reconciler) cloneVolume(ctx context.Context, g guest.Guest, pool storage.Pool) (time.Duration, error) {
	of := g.Spec.Clone
	if of.Snapshot != "" {
		return 0, pool.Clone(ctx, of.Guest, of.Snapshot, g.ID)
	}
	others, placed := r.company(g)
	if !placed {
		return claimAgain, nil
	}
	if !r.claim(of.Guest) {
		if of.Group != "" {
			return claimAgain, nil // it may be one of them who makes this one's too
		}
		return 0, &errs.Error{Kind: errs.Busy, Ref: "guest/" + of.Guest, Msg: "something else is being done with it"}
	}
	defer r.unclaim(of.Guest)
	if exists(pool.Path(g.ID)) {
		return 0, nil // another made it meanwhile
	}
	source, err := r.Guest(of.Guest)
	if err != nil {
		return 0, err
	}
	_, err = r.still(ctx, source, pool, of.Memory, func() error {
		err := pool.Clone(ctx, source.ID, "", g.ID)
		for _, id := range others {
			if err == nil {
				err = r.cloneFor(ctx, source.ID, id, pool)
			}
		}
		return err
	})
	return 0, err
}

// company are the guests without a layer that are to be copies of the same
// moment as g. It is false while one of them has no place yet: only what a host
// holds is cleared away again.
func (r *Reconciler) company(g guest.Guest) (ids []string, placed bool) {
	for _, rec := range r.Tables.Guests.List() {
		other := guest.Guest{Meta: rec.Meta, Spec: rec.Spec, Status: rec.Status}
		if other.ID == g.ID || !other.SameMoment(g) {
			continue
		}
		holder, err := r.Tables.Holders.ByID(other.ID)
		if err != nil {
			return nil, false
		}
		if holder.Spec.Host == r.Host {
			ids = append(ids, other.ID)
		}
	}
	return ids, true
}

// cloneFor makes the layer of a guest that another of its company came before,
// unless it is not wanted any more. Who holds the claim of the source calls it.
func (r *Reconciler) cloneFor(ctx context.Context, source, id string, pool storage.Pool) error {
	if err := r.claimWait(ctx, id); err != nil {
		return err
	}
	defer r.unclaim(id)
	g, ok := r.record(id)
	if !ok || g.Deleting != nil || !g.CloneWanted() {
		return nil
	}
	return pool.Clone(ctx, source, "", id)
}
