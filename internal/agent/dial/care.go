package dial

import (
	"context"
	"time"

	"lodge/internal/base/errs"
)

// Carer is an agent that a guest's owner may ask something of, as a Link is.
type Carer interface {
	SetPassword(ctx context.Context, user, password string) error
	Authorize(ctx context.Context, user string, keys []string) error
	Trim(ctx context.Context) (uint64, error)
	SetClock(ctx context.Context, now time.Time) error
}

// Care is what a guest's owner may ask of its agent, for the machines of engines
// to embed.
type Care struct {
	Agent func() (Carer, error) // that can answer now, or why it cannot
	Ref   string                // of the guest, for errors
}

// SetPassword gives a user of the guest a new password.
func (c Care) SetPassword(ctx context.Context, user, password string) error {
	return c.do(func(a Carer) error { return a.SetPassword(ctx, user, password) })
}

// Authorize adds to the keys that a user of the guest may log in with by SSH.
func (c Care) Authorize(ctx context.Context, user string, keys []string) error {
	return c.do(func(a Carer) error { return a.Authorize(ctx, user, keys) })
}

// Trim gives back what the guest's volume holds and the guest does not use.
func (c Care) Trim(ctx context.Context) (n uint64, err error) {
	err = c.do(func(a Carer) (err error) {
		n, err = a.Trim(ctx)
		return err
	})
	return n, err
}

// SetClock sets the guest's clock.
func (c Care) SetClock(ctx context.Context, now time.Time) error {
	return c.do(func(a Carer) error { return a.SetClock(ctx, now) })
}

func (c Care) do(ask func(Carer) error) error {
	a, err := c.Agent()
	if err == nil {
		err = ask(a)
	}
	return errs.About(err, c.Ref)
}
