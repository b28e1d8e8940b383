// Package placements gives each guest a host, and forgets guests of which
// nothing is left. On a single host the choice is simple; what it lends - a
// slot, from which ids and device names follow - must still be unique.
package placements

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"lodge/internal/base/errs"
	"lodge/internal/model"
	"lodge/internal/model/guest"
	"lodge/internal/model/network"
	"lodge/internal/reconcile"
	"lodge/internal/store"
	"lodge/internal/store/tables"
)

// MaxSlots is how many guests one host can hold: as many as disjoint ranges of
// 65,536 ids fit between the first guest's and 2^32.
const MaxSlots = 50_000

// Reconciler implements reconcile.Reconciler for holders.
type Reconciler struct {
	store  *store.Store
	tables *tables.Tables
	host   string

	mu     sync.Mutex
	used   map[int]bool
	claims map[string]int // slots kept for guests that have no place yet, by id
	free   int            // no slot below it is free
}

// New returns a reconciler that places guests on host.
func New(s *store.Store, t *tables.Tables, host string) *Reconciler {
	r := &Reconciler{store: s, tables: t, host: host, used: map[int]bool{}, claims: map[string]int{}}
	for _, h := range t.Holders.List() {
		r.used[h.Spec.Slot] = true
	}
	return r
}

// Name returns the reconciler's name in the graph and the log.
func (*Reconciler) Name() string { return "placements" }

// Reads says what wakes it.
func (*Reconciler) Reads() []reconcile.Read { return []reconcile.Read{{Kind: guest.Kind}} }

// All returns what it looks after.
func (r *Reconciler) All() []string { return r.tables.Guests.IDs() }

// Writes says what it alone writes.
func (*Reconciler) Writes() []model.Kind { return []model.Kind{guest.HolderKind} }

// Reconcile places the guest with id, or forgets it.
func (r *Reconciler) Reconcile(ctx context.Context, log *slog.Logger, id string) (time.Duration, error) {
	rec, err := r.tables.Guests.ByID(id)
	if err != nil {
		return 0, nil
	}
	holder, err := r.tables.Holders.ByID(id)
	held := err == nil
	if rec.Status.Phase == guest.Gone {
		return 0, r.forget(ctx, log, rec, holder.Spec.Slot, held)
	}
	if held {
		return 0, nil // its host takes the steps now
	}
	g := guest.Guest{Meta: rec.Meta, Spec: rec.Spec, Status: rec.Status}
	switch guest.Next(g, guest.Unplaced, guest.Seen{}) {
	case guest.Place:
		return 0, r.place(ctx, log, rec)
	case guest.Forget:
		return 0, r.forget(ctx, log, rec, 0, false)
	}
	return 0, nil
}

func (r *Reconciler) place(ctx context.Context, log *slog.Logger, g store.Record[guest.Spec, guest.Status]) error {
	slot, claimed, err := r.take(g.ID)
	if err != nil {
		return err
	}
	_, err = r.tables.Holders.Create(ctx, g.ID, guest.Holder{Host: r.host, Epoch: 1, Slot: slot}, store.WithID(g.ID))
	if err != nil {
		if !claimed {
			r.give(slot)
		}
		return err
	}
	r.placed(g.ID)
	log.Debug("placed", "guest", g.Name, "slot", slot)
	return nil
}

// forget removes the record and everything that only existed for it, in one
// transaction.
func (r *Reconciler) forget(ctx context.Context, log *slog.Logger, g store.Record[guest.Spec, guest.Status], slot int, held bool) error {
	tx := r.store.Begin()
	for _, n := range g.Spec.NICs {
		for _, a := range []string{n.IPv4, n.IPv6} {
			if l, err := r.tables.Leases.Get(network.LeaseName(n.Network, a)); err == nil && l.Spec.Guest == g.ID {
				r.tables.Leases.DeleteIn(tx, l)
			}
		}
	}
	for _, f := range r.tables.Forwards.List() {
		if f.Spec.Guest == g.ID {
			r.tables.Forwards.DeleteIn(tx, f)
		}
	}
	if held {
		if h, err := r.tables.Holders.ByID(g.ID); err == nil {
			r.tables.Holders.DeleteIn(tx, h)
		}
	}
	r.tables.Guests.DeleteIn(tx, g)
	if _, err := tx.Commit(ctx); err != nil {
		return err
	}
	if held {
		r.give(slot)
	}
	log.Debug("forgotten", "guest", g.Name)
	return nil
}

// take returns the slot that was claimed for a guest, or else takes one.
func (r *Reconciler) take(id string) (slot int, claimed bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if slot, claimed = r.claims[id]; claimed {
		return slot, true, nil
	}
	if slot, err = r.lowest(); err == nil {
		r.used[slot] = true
	}
	return slot, false, err
}

// lowest returns the lowest free slot, so that ids and names stay small. Callers
// hold mu.
func (r *Reconciler) lowest() (int, error) {
	for ; r.free < MaxSlots; r.free++ {
		if !r.used[r.free] {
			return r.free, nil
		}
	}
	return 0, &errs.Error{Kind: errs.NoSpace, Ref: "host/" + r.host, Msg: "holds as many guests as it can number", Hint: "remove guests that nobody uses: lodge ls"}
}

func (r *Reconciler) give(slot int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.used, slot)
	r.free = min(r.free, slot)
}

var _ reconcile.Reconciler = (*Reconciler)(nil)
