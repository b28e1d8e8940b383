package control

import (
	"context"
	"time"

	"lodge/internal/base/errs"
	"lodge/internal/model"
	"lodge/internal/store"
)

// Remark writes err beside the status of the record r and returns it, so that
// the runner tries again when its kind says so. A record that can never get
// where it was asked to be has thereby answered its generation. parts marks the
// status as troubled and says where its problem and its generation are.
func Remark[S, T any](ctx context.Context, t *store.Table[S, T], r store.Record[S, T], err error, now time.Time,
	parts func(*T) (problem **model.Problem, generation *int64)) error {
	_, werr := t.SetStatus(ctx, r.ID, func(s *T) error {
		problem, generation := parts(s)
		*problem = model.ProblemOf(err, now, *problem)
		if !errs.KindOf(err).Retry() {
			*generation = r.Generation
		}
		return nil
	})
	if werr != nil && !errs.Is(werr, errs.NotFound) {
		return werr
	}
	return err
}
