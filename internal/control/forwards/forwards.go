// Package forwards keeps the port forwards of this host in force. A network
// takes all of its forwards at once, so any change is answered by telling the
// network the whole set.
package forwards

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"time"

	"lodge/internal/base/errs"
	"lodge/internal/control"
	"lodge/internal/fabric"
	"lodge/internal/model"
	"lodge/internal/model/forward"
	"lodge/internal/model/guest"
	"lodge/internal/model/network"
	"lodge/internal/reconcile"
	"lodge/internal/store/tables"
)

// Reconciler implements reconcile.Reconciler for forwards.
type Reconciler struct {
	Tables *tables.Tables
	Open   *control.Handles[fabric.Fabric]
	Now    func() time.Time
}

// Name returns the reconciler's name in the graph and the log.
func (*Reconciler) Name() string { return "forwards" }

// Reads says what wakes it: a forward, and a network that came up.
func (r *Reconciler) Reads() []reconcile.Read {
	return []reconcile.Read{{Kind: forward.Kind}, {Kind: network.Kind, Wake: r.one}}
}

// one returns the first forward, if any: one pass does them all.
func (r *Reconciler) one(string) []string {
	for _, f := range r.Tables.Forwards.List() {
		return []string{f.ID}
	}
	return nil
}

// All returns what it looks after.
func (r *Reconciler) All() []string { return r.Tables.Forwards.IDs() }

// Writes says whose status it alone writes.
func (*Reconciler) Writes() []model.Kind { return []model.Kind{forward.Kind} }

// Reconcile brings all forwards into force. id may be a forward that is no
// more.
func (r *Reconciler) Reconcile(ctx context.Context, _ *slog.Logger, _ string) (time.Duration, error) {
	sets := map[string][]fabric.Forward{}
	for _, n := range r.Tables.Networks.List() {
		sets[n.Name] = nil
	}
	records := r.Tables.Forwards.List()
	on := make([]string, len(records))
	for i, rec := range records {
		if net, f, ok := r.resolve(rec.Spec); ok && rec.Deleting == nil {
			sets[net], on[i] = append(sets[net], f), net
		}
	}
	failed, done := map[string]error{}, map[string]bool{}
	for name, set := range sets {
		net, err := r.Open.Get(name)
		if err == nil {
			err = net.Forward(ctx, set)
		}
		if err != nil {
			failed[name] = err
		}
		done[name] = err == nil
	}
	for i, rec := range records {
		if rec.Deleting != nil {
			if err := r.Tables.Forwards.Delete(ctx, rec.ID); err != nil {
				return 0, err
			}
			continue
		}
		if err := r.report(ctx, rec, done[on[i]], failed[on[i]]); err != nil {
			return 0, err
		}
	}
	for name, err := range failed {
		if len(sets[name]) > 0 {
			return 0, err
		}
	}
	return 0, nil
}

func (r *Reconciler) report(ctx context.Context, rec tables.ForwardRecord, active bool, err error) error {
	if err != nil {
		werr := control.Remark(ctx, r.Tables.Forwards, rec, err, r.Now(), func(s *forward.Status) (**model.Problem, *int64) {
			s.Active = false
			return &s.Problem, &s.Generation
		})
		if errors.Is(werr, err) {
			return nil // it is told to the runner once for all
		}
		return werr
	}
	_, werr := r.Tables.Forwards.SetStatus(ctx, rec.ID, func(s *forward.Status) error {
		*s = forward.Status{Generation: rec.Generation, Active: active}
		return nil
	})
	if errs.Is(werr, errs.NotFound) {
		return nil
	}
	return werr
}

// resolve finds the network and the addresses that a forward leads to: those of
// the guest's first network card.
func (r *Reconciler) resolve(s forward.Spec) (net string, f fabric.Forward, ok bool) {
	g, err := r.Tables.Guests.ByID(s.Guest)
	if err != nil || len(g.Spec.NICs) == 0 || g.Status.Phase == guest.Gone {
		return "", f, false
	}
	nic := g.Spec.NICs[0]
	f = fabric.Forward{Protocol: s.Protocol, Listen: s.Listen, Port: s.Port, Target: s.Target}
	if p, err := netip.ParsePrefix(nic.IPv4); err == nil {
		f.To4 = p.Addr()
	}
	if p, err := netip.ParsePrefix(nic.IPv6); err == nil {
		f.To6 = p.Addr()
	}
	return nic.Network, f, true
}

var _ reconcile.Reconciler = (*Reconciler)(nil)
