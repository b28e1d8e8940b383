package guests

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"lodge/internal/base/errs"
	"lodge/internal/base/ids"
	"lodge/internal/base/session"
	"lodge/internal/engine"
	"lodge/internal/keeper"
	"lodge/internal/layer"
	"lodge/internal/model"
	"lodge/internal/model/guest"
)

// standbyName is what a standby is called until it is somebody's. No name is
// shorter, so that files with a guest's own grow: that is less work for it than
// to have them shrink.
const standbyName = "t"

// makeStandby makes one guest ready. A kind that cannot be made is dropped until
// one is wanted again.
func (r *Reconciler) makeStandby(ctx context.Context, log *slog.Logger, name string, k kind) {
	id := ids.New()
	slot, err := r.Slots.Claim(id)
	if err != nil {
		log.Debug("no place for a guest to stand ready", "error", err)
		r.dropKind(name)
		return
	}
	g := guest.Guest{
		Meta: model.Meta{ID: id, Name: standbyName}, Spec: k.like.Spec.Standby(id),
		Holder: guest.Holder{Host: r.Host, Epoch: 1, Slot: slot},
	}
	began := time.Now()
	b := standby{g: g, kind: name}
	err = r.markStandby(g)
	if err == nil {
		b.kernel, b.version, err = r.prepareStandby(ctx, g)
	}
	s := &r.standby
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.left = append(s.left, g)
		delete(s.kinds, name)
		if ctx.Err() == nil && !errs.Is(err, errs.NotFound) {
			log.Warn("no guest could be made ready", "image", g.Spec.Image, "error", err)
		}
		return
	}
	s.have[id] = b
	log.Debug("a guest stands ready", "id", id, "image", g.Spec.Image, "memory", g.Spec.Memory, "took", time.Since(began))
}

func (r *Reconciler) dropKind(name string) {
	r.standby.mu.Lock()
	defer r.standby.mu.Unlock()
	delete(r.standby.kinds, name)
}

// prepareStandby starts a copy of a template, has it do once what guests are
// asked first, and lets it stand still. It returns what kernel it runs, and the
// version of its engine.
func (r *Reconciler) prepareStandby(ctx context.Context, g guest.Guest) (kernel engine.Kernel, version string, err error) {
	if !r.claim(g.ID) {
		return kernel, "", &errs.Error{Kind: errs.Internal, Msg: "its id is a guest's"}
	}
	defer r.unclaim(g.ID)
	e, info, err := r.engine(ctx, g)
	if err != nil {
		return kernel, "", err
	}
	parts, err := r.attach(ctx, g)
	if err == nil && parts.Memory == "" {
		err = &errs.Error{Kind: errs.NotFound, Msg: "there is no template any more"}
	}
	if err == nil {
		err = r.startStandby(ctx, e, g, parts)
	}
	if err != nil {
		return kernel, "", err
	}
	return parts.Kernel, info.Version, nil
}

func (r *Reconciler) startStandby(ctx context.Context, e engine.Engine, g guest.Guest, parts *engine.Parts) error {
	// If this daemon dies, the next one finds a guest, if it is one by then, that
	// goes on from memory and is still to be told who it is.
	if err := os.Mkdir(filepath.Join(parts.Root.Writable, memoryUsed), 0o700); err != nil {
		return err
	}
	if err := layer.Touch(parts.Root.Writable); err != nil {
		return err
	}
	held, err := r.run(ctx, g, e, *parts)
	if err != nil {
		return err
	}
	if err := r.awake(ctx, e, g, *parts, held); err != nil {
		return err
	}
	m, err := e.Connect(ctx, g, *parts, held)
	if err != nil {
		return err
	}
	defer m.Close()
	if err := r.exercise(ctx, g.ID, m); err != nil {
		return err
	}
	p, ok := m.(engine.Pauser)
	if !ok {
		return cannot(g, "pause")
	}
	return p.Pause(ctx)
}

const (
	// exercises is how often a standby runs a program before it stands still:
	// after two nothing of that is new to it.
	exercises = 3
	// calmTime is how long it is watched whether it has come to rest, calmShare
	// what part of a processor it may still use then, and calmMost how long that
	// is waited for.
	calmTime  = time.Second
	calmShare = 0.05
	calmMost  = time.Minute
)

// exercise runs a program in a guest a few times and waits until it has come to
// rest.
func (r *Reconciler) exercise(ctx context.Context, id string, m engine.Machine) error {
	x, ok := m.(engine.Execer)
	if !ok {
		return nil
	}
	until := time.Now().Add(calmMost)
	for calm := false; !calm && time.Now().Before(until); {
		before, err := r.Cgroups.Usage(id)
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(calmTime):
		}
		after, err := r.Cgroups.Usage(id)
		if err != nil {
			return err
		}
		calm = after.CPUSeconds-before.CPUSeconds < calmShare*calmTime.Seconds()
	}
	for range exercises {
		ctx, cancel := context.WithTimeout(ctx, renewTime)
		p, err := x.Exec(ctx, session.Request{Argv: []string{"true"}})
		if err == nil {
			_, err = p.Wait(ctx)
		}
		cancel()
		if err != nil && !errs.Is(err, errs.NotFound) { // the image may have no such program
			return err
		}
	}
	return nil
}

// become makes a standby the guest of the record that was written for it, and
// lets it run. g is brought up to date. One that does not take its identity is
// ended, and the guest boots.
func (r *Reconciler) become(ctx context.Context, g *guest.Guest, held keeper.Held, runs engine.Kernel) error {
	r.mu.Lock()
	delete(r.attached, g.ID) // what was attached was the standby's
	r.mu.Unlock()
	parts, err := r.attach(ctx, *g)
	if err != nil {
		return err
	}
	e, info, err := r.engine(ctx, *g)
	if err != nil {
		return err
	}
	parts.Kernel = runs // as it was started
	r.mu.Lock()
	r.attached[g.ID] = attachment{parts, g.Generation, true}
	r.mu.Unlock()
	dir := parts.Root.Writable
	if err := r.goOn(ctx, e, *g, *parts, held); err != nil {
		r.standby.done(g.ID)
		return errors.Join(notItself(dir, err), r.unmarkStandby(g.ID))
	}
	if err := errors.Join(unmarkCopy(dir), dropMemory(dir), r.unmarkStandby(g.ID)); err != nil {
		return err
	}
	change := r.started(*g, info, *parts, held.State().Pid)
	if err := r.report(ctx, *g, change); err != nil {
		return err
	}
	r.standby.done(g.ID)
	change(&g.Status)
	r.Standby(*g)
	return nil
}

// booted hears that a guest was started anew, maybe from a template: the next
// like it need not wait so long. It may have been a standby that did not live to
// become it.
func (r *Reconciler) booted(g guest.Guest, parts engine.Parts) {
	r.standby.done(g.ID)
	if parts.Memory != "" && g.Status.Boots == 0 {
		r.Standby(g)
	}
}

// goOn lets a standby run as g.
func (r *Reconciler) goOn(ctx context.Context, e engine.Engine, g guest.Guest, parts engine.Parts, held keeper.Held) error {
	m, err := e.Connect(ctx, g, parts, held)
	if err == nil {
		defer m.Close()
		if p, ok := m.(engine.Pauser); ok {
			err = p.Resume(ctx)
		} else {
			err = cannot(g, "be resumed")
		}
	}
	if err != nil { // as what it is nobody may find it
		return errors.Join(err, r.kill(context.WithoutCancel(ctx), g.ID))
	}
	return r.awake(ctx, e, g, parts, held)
}
