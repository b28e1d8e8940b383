package daemon

import (
	"context"
	"errors"

	"lodge/api"
	"lodge/internal/base/errs"
	"lodge/internal/model/guest"
)

// foresee tells the server what a change of a guest's model would mean.
func (d *daemon) foresee(ctx context.Context, id string, to guest.Model, engine string) (api.ModelChange, error) {
	c, err := d.guests.Foresee(ctx, id, to, engine)
	if err != nil {
		return api.ModelChange{}, err
	}
	m := api.ModelChange{
		From: string(c.From), To: string(c.To), Engine: c.Engine, Running: c.Running, Copies: c.Copies,
		Files: c.Files, Bytes: c.Bytes, NeedsBytes: c.Needs, FreeBytes: c.Free, Seconds: c.Time.Seconds(), Changes: []string{},
	}
	if c.Refusal != nil {
		m.Refusal = c.Refusal.Error()
		if ours, ok := errors.AsType[*errs.Error](c.Refusal); ok {
			m.Refusal, m.Hint = ours.Words(), ours.Hint
		}
	}
	return m, nil
}
