// Package reconcile runs reconcilers.
package reconcile

import (
	"context"
	"log/slog"
	"time"

	"lodge/internal/model"
	"lodge/internal/store"
)

type Read struct {
	Kind model.Kind
	Wake func(id string) []string
}

type Reconciler interface {
	Name() string
	Reads() []Read
	Writes() []model.Kind
	Reconcile(ctx context.Context, log *slog.Logger, id string) (again time.Duration, err error)
}

type Lister interface{ All() []string }

type Runner struct{}

func New(log *slog.Logger, workers int) *Runner { panic("soon") }

func (r *Runner) Add(rec Reconciler) error      { panic("soon") }
func (r *Runner) Feed(s *store.Store)           { panic("soon") }
func (r *Runner) Wake(reconciler, id string)    { panic("soon") }
func (r *Runner) Run(ctx context.Context) error { panic("soon") }
func (r *Runner) Graph() []string               { panic("soon") }
