// Package images makes the images that are asked for, and removes them.
package images

import (
	"context"
	"log/slog"
	"time"

	"lodge/internal/base/errs"
	"lodge/internal/control"
	contract "lodge/internal/images"
	"lodge/internal/model"
	"lodge/internal/model/image"
	"lodge/internal/model/operation"
	"lodge/internal/reconcile"
	"lodge/internal/store/tables"
)

// Options is what a Reconciler works with.
type Options struct {
	Tables  *tables.Tables
	Store   *contract.Store
	Sources map[string]contract.Source
	Now     func() time.Time
	Tell    func(operation.Progress)
	Wake    func(id string)           // makes the runner look again
	Spooled func(upload string) error // an import's upload is not needed any more
	Log     *slog.Logger
}

// Reconciler implements reconcile.Reconciler for images. A build takes minutes,
// so it runs beside the reconciler, once for each image however many ask.
type Reconciler struct {
	Options
	builds *control.Builds[contract.Built]
}

// New returns a reconciler that builds nothing yet.
func New(o Options) *Reconciler {
	return &Reconciler{Options: o, builds: control.NewBuilds[contract.Built](o.Wake)}
}

// Name returns the reconciler's name in the graph and the log.
func (*Reconciler) Name() string { return "images" }

// Reads says what wakes it.
func (*Reconciler) Reads() []reconcile.Read { return []reconcile.Read{{Kind: image.Kind}} }

// All returns what it looks after.
func (r *Reconciler) All() []string { return r.Tables.Images.IDs() }

// Writes says whose status it alone writes.
func (*Reconciler) Writes() []model.Kind { return []model.Kind{image.Kind} }

// Reconcile starts what has to be built and reports what has been.
func (r *Reconciler) Reconcile(ctx context.Context, log *slog.Logger, id string) (time.Duration, error) {
	rec, err := r.Tables.Images.ByID(id)
	if err != nil {
		r.builds.Drop(id)
		return 0, nil
	}
	if rec.Deleting != nil {
		r.builds.Drop(id)
		return 0, r.remove(ctx, rec)
	}
	if rec.Status.Wish >= rec.Spec.Wish && rec.Status.Digest != "" {
		r.builds.Drop(id)
		if rec.Status.Generation == rec.Generation {
			return 0, nil
		}
		_, err := r.Tables.Images.SetStatus(ctx, id, func(s *image.Status) error {
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
		log.Warn("an image could not be made", "image", rec.Name, "error", failed)
	}
	return 0, r.finish(ctx, rec, built, failed)
}

func (r *Reconciler) make(ctx context.Context, rec tables.ImageRecord, log *slog.Logger) (contract.Built, error) {
	source, ok := r.Sources[rec.Spec.Source]
	if !ok {
		return contract.Built{}, errs.Bad("source", "there is no source "+rec.Spec.Source, "lodge image build --help lists what can be built")
	}
	start := r.Now()
	log.Info("building", "image", rec.Name, "source", rec.Spec.Source)
	built, err := r.Store.Build(ctx, source, rec.Spec, control.Telling(r.Tell, model.Key{Kind: image.Kind, Name: rec.Name}))
	if err == nil {
		log.Info("built", "image", rec.Name, "digest", built.Digest, "size", built.Size, "took", r.Now().Sub(start).Round(time.Millisecond))
	}
	return built, err
}

func (r *Reconciler) finish(ctx context.Context, rec tables.ImageRecord, built contract.Built, failed error) error {
	now := r.Now()
	old := rec.Status.Digest
	_, err := r.Tables.Images.SetStatus(ctx, rec.ID, func(s *image.Status) error {
		if failed != nil {
			control.Failed(failed, now, &s.Problem, &s.Generation, rec.Generation)
			return nil
		}
		*s = image.Status{Wish: rec.Spec.Wish, Generation: rec.Generation, Digest: built.Digest, Size: built.Size, Built: &now, Info: built.Info}
		return nil
	})
	if err != nil {
		return err
	}
	if failed == nil && rec.Spec.Upload != "" {
		if err := r.Spooled(rec.Spec.Upload); err != nil {
			return err
		}
	}
	if failed == nil && old != "" && old != built.Digest {
		return r.sweep(ctx, old)
	}
	if control.GoesOn(failed) {
		return failed
	}
	return nil
}

func (r *Reconciler) remove(ctx context.Context, rec tables.ImageRecord) error {
	if err := r.Tables.Images.Delete(ctx, rec.ID); err != nil {
		return err
	}
	if rec.Spec.Upload != "" {
		if err := r.Spooled(rec.Spec.Upload); err != nil {
			return err
		}
	}
	if rec.Status.Digest == "" {
		return nil
	}
	return r.sweep(ctx, rec.Status.Digest)
}

// sweep removes the content with digest unless an image or a guest needs it.
func (r *Reconciler) sweep(ctx context.Context, digest string) error {
	for _, im := range r.Tables.Images.List() {
		if im.Status.Digest == digest {
			return nil
		}
	}
	for _, g := range r.Tables.Guests.List() {
		if g.Spec.Digest == digest {
			return nil
		}
	}
	if err := r.Store.Unmount(ctx, digest); err != nil {
		return err
	}
	return r.Store.Remove(ctx, digest)
}

// SweepAll removes all content that nothing needs: what was left when a daemon
// died between removing a record and removing its content.
func (r *Reconciler) SweepAll(ctx context.Context) error {
	blobs, err := r.Store.Blobs()
	if err != nil {
		return err
	}
	for _, b := range blobs {
		if err := r.sweep(ctx, b.Digest); err != nil {
			return err
		}
	}
	return nil
}

// Close ends all builds and waits until they have cleaned up.
func (r *Reconciler) Close() { r.builds.Close() }

var _ reconcile.Reconciler = (*Reconciler)(nil)
