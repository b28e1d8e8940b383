package guests

import (
	"context"

	"lodge/internal/keeper"
	"lodge/internal/model/guest"
)

// adopt counts a guest that runs as started, if a daemon that died before it
// could say so started it. g is brought up to date. Taken for one that is still
// to be booted it would be stopped, and the memory it went on from be lost.
func (r *Reconciler) adopt(ctx context.Context, g *guest.Guest, held keeper.Held) error {
	if wasUp(g.Status) || r.goingBy(guest.Guest{Meta: g.Meta, Spec: g.Spec, Status: guest.Status{Boots: g.Spec.Boots}}) {
		return nil
	}
	if runs, comes := r.standby.comes(g.ID); comes {
		return r.become(ctx, g, held, runs)
	}
	parts, err := r.attach(ctx, *g)
	if err != nil {
		return err
	}
	_, info, err := r.engine(ctx, *g)
	if err != nil {
		return err
	}
	change := r.started(*g, info, *parts, held.State().Pid)
	if err := r.report(ctx, *g, change); err != nil {
		return err
	}
	change(&g.Status)
	return nil
}
