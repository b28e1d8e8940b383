package guests

import (
	"context"

	"lodge/internal/base/errs"
	"lodge/internal/engine"
	"lodge/internal/model/guest"
)

// answering connects to a guest that runs and is not paused.
func (r *Reconciler) answering(ctx context.Context, id string) (engine.Machine, guest.Guest, error) {
	m, g, err := r.live(ctx, id)
	if err == nil && g.Status.Phase == guest.Paused {
		m.Close()
		err = &errs.Error{Kind: errs.Conflict, Ref: g.Key().String(), Msg: "is paused", Hint: "lodge resume " + g.Name}
	}
	return m, g, err
}

// admit has the engine of a running guest let its owner in; what is that in
// words, for engines that cannot.
func (r *Reconciler) admit(ctx context.Context, id, what string, do func(engine.Admitter) error) error {
	m, g, err := r.answering(ctx, id)
	if err != nil {
		return err
	}
	defer m.Close()
	a, ok := m.(engine.Admitter)
	if !ok {
		return cannot(g, what)
	}
	return errs.About(do(a), g.Key().String())
}

// SetPassword gives a user of a running guest a new password.
func (r *Reconciler) SetPassword(ctx context.Context, id, user, password string) error {
	return r.admit(ctx, id, "change passwords in it", func(a engine.Admitter) error { return a.SetPassword(ctx, user, password) })
}

// Authorize adds to the keys that a user of a running guest may log in with by
// SSH.
func (r *Reconciler) Authorize(ctx context.Context, id, user string, keys []string) error {
	return r.admit(ctx, id, "let keys into it", func(a engine.Admitter) error { return a.Authorize(ctx, user, keys) })
}

// Trim gives back to the pool what a running guest's volume holds and the guest
// does not use, and returns how many bytes were offered.
func (r *Reconciler) Trim(ctx context.Context, id string) (uint64, error) {
	m, g, err := r.answering(ctx, id)
	if err != nil {
		return 0, err
	}
	defer m.Close()
	t, ok := m.(engine.Trimmer)
	if ok {
		return t.Trim(ctx)
	}
	e := &errs.Error{Kind: errs.Unsupported, Ref: g.Key().String(), Msg: "its engine cannot trim its disk", Hint: "lodge engine ls"}
	if g.Spec.Model == guest.OS {
		e.Msg, e.Hint = "has nothing to trim", "its files lie on the pool itself: what it removes is free at once"
	}
	return 0, e
}

// SetClock sets the clock of a running guest to that of the host.
func (r *Reconciler) SetClock(ctx context.Context, id string) error {
	m, g, err := r.answering(ctx, id)
	if err != nil {
		return err
	}
	defer m.Close()
	t, ok := m.(engine.Timekeeper)
	if ok {
		return t.SetClock(ctx, r.Now())
	}
	e := &errs.Error{Kind: errs.Unsupported, Ref: g.Key().String(), Msg: "its engine cannot set its clock", Hint: "lodge engine ls"}
	if g.Spec.Model == guest.OS {
		e.Msg, e.Hint = "has no clock of its own", "it shows the host's: set that"
	}
	return e
}
