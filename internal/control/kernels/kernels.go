// Package kernels makes the kernels that are asked for, and removes them.
package kernels

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"lodge/internal/base/errs"
	"lodge/internal/control"
	contract "lodge/internal/kernels"
	"lodge/internal/model"
	"lodge/internal/model/kernel"
	"lodge/internal/model/operation"
	"lodge/internal/reconcile"
	"lodge/internal/store/tables"
)

// Options is what a Reconciler works with.
type Options struct {
	Tables  *tables.Tables
	Store   *contract.Store
	Sources []contract.Source
	Now     func() time.Time
	Tell    func(operation.Progress)
	Wake    func(id string) // makes the runner look again
	Log     *slog.Logger
}

// Reconciler implements reconcile.Reconciler for kernels. A build takes minutes,
// so it runs beside the reconciler, once for each kernel however many ask.
type Reconciler struct {
	Options
	builds *control.Builds[contract.Built]
}

// New returns a reconciler that builds nothing yet.
func New(o Options) *Reconciler {
	return &Reconciler{Options: o, builds: control.NewBuilds[contract.Built](o.Wake)}
}

// Name returns the reconciler's name in the graph and the log.
func (*Reconciler) Name() string { return "kernels" }

// Reads says what wakes it.
func (*Reconciler) Reads() []reconcile.Read { return []reconcile.Read{{Kind: kernel.Kind}} }

// All returns what it looks after.
func (r *Reconciler) All() []string { return r.Tables.Kernels.IDs() }

// Writes says whose status it alone writes.
func (*Reconciler) Writes() []model.Kind { return []model.Kind{kernel.Kind} }

// Source finds what makes the kernel called name.
func Source(sources []contract.Source, name string) (contract.Source, error) {
	var all []string
	for _, s := range sources {
		if slices.Contains(s.Makes(), name) {
			return s, nil
		}
		all = append(all, s.Makes()...)
	}
	slices.Sort(all)
	return nil, &errs.Error{Kind: errs.Invalid, Field: "name", Msg: "there is no kernel " + name + " to build", Hint: "use " + list(all)}
}

func list(names []string) (text string) {
	for i, n := range names {
		switch {
		case i == 0:
		case i == len(names)-1:
			text += " or "
		default:
			text += ", "
		}
		text += n
	}
	return text
}

// Reconcile starts what has to be built and reports what has been. A kernel
// that is not what was built, or not there, is built again.
func (r *Reconciler) Reconcile(ctx context.Context, log *slog.Logger, id string) (time.Duration, error) {
	rec, err := r.Tables.Kernels.ByID(id)
	if err != nil {
		r.builds.Drop(id)
		return 0, nil
	}
	if rec.Deleting != nil {
		if r.builds.Drop(id) {
			return 0, nil // its end wakes us
		}
		return 0, r.remove(ctx, rec)
	}
	if rec.Status.Wish >= rec.Spec.Wish && rec.Status.Digest != "" && r.Store.Digest(rec.Name) == rec.Status.Digest {
		r.builds.Drop(id)
		if rec.Status.Generation == rec.Generation {
			return 0, nil
		}
		_, err := r.Tables.Kernels.SetStatus(ctx, id, func(s *kernel.Status) error {
			s.Generation, s.Problem = rec.Generation, nil
			return nil
		})
		return 0, err
	}
	if rec.Status.Problem != nil && rec.Status.Generation >= rec.Generation {
		return 0, nil // it failed for good; whoever wants it still asks again
	}
	built, done, failed := r.builds.Do(id, rec.Spec.Wish, func(ctx context.Context) (contract.Built, error) { return r.make(ctx, rec, log) })
	if !done {
		return 0, nil // under way; its end wakes us
	}
	if failed != nil {
		log.Warn("a kernel could not be made", "kernel", rec.Name, "error", failed)
	}
	return 0, r.finish(ctx, rec, built, failed)
}

func (r *Reconciler) make(ctx context.Context, rec tables.KernelRecord, log *slog.Logger) (contract.Built, error) {
	source, err := Source(r.Sources, rec.Name)
	if err != nil {
		return contract.Built{}, err
	}
	start := r.Now()
	log.Info("building", "kernel", rec.Name)
	built, err := r.Store.Build(ctx, source, rec.Name, control.Telling(r.Tell, model.Key{Kind: kernel.Kind, Name: rec.Name}))
	if err == nil {
		log.Info("built", "kernel", rec.Name, "version", built.Info.Version, "size", built.Size, "took", r.Now().Sub(start).Round(time.Millisecond))
	}
	return built, err
}

func (r *Reconciler) finish(ctx context.Context, rec tables.KernelRecord, built contract.Built, failed error) error {
	now := r.Now()
	_, err := r.Tables.Kernels.SetStatus(ctx, rec.ID, func(s *kernel.Status) error {
		if failed == nil {
			*s = kernel.Status{Wish: rec.Spec.Wish, Generation: rec.Generation, Digest: built.Digest, Size: built.Size, Built: &now, Info: built.Info}
			return nil
		}
		control.Failed(failed, now, &s.Problem, &s.Generation, rec.Generation)
		return nil
	})
	if err == nil && control.GoesOn(failed) {
		return failed
	}
	return err
}

// remove deletes the files first: a record without files is built again, files
// without a record would be in nobody's way and nobody's hand.
func (r *Reconciler) remove(ctx context.Context, rec tables.KernelRecord) error {
	if err := r.Store.Remove(rec.Name); err != nil {
		return err
	}
	return r.Tables.Kernels.Delete(ctx, rec.ID)
}

// OnItsWay makes of a store's "there is none" that there will soon be one, if
// it is being built.
func (r *Reconciler) OnItsWay(err error) error {
	underWay := map[string]*model.Problem{}
	for _, k := range r.Tables.Kernels.List() {
		if k.Deleting == nil {
			underWay[k.Name] = k.Status.Problem
		}
	}
	return kernel.OnItsWay(err, underWay)
}

// Close ends all builds and waits until they have cleaned up.
func (r *Reconciler) Close() { r.builds.Close() }

var _ reconcile.Reconciler = (*Reconciler)(nil)
