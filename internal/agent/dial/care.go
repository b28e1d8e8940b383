package dial

import (
	"context"
	"time"

	"lodge/internal/base/errs"
)

// Care is what a guest's owner may ask of its agent, for the machines of engines
// to embed.
type Care struct {
	Agent func() (*Link, error) // that can answer now, or why it cannot
	Ref   string                // of the guest, for errors
}

// SetPassword gives a user of the guest a new password.
func (c Care) SetPassword(ctx context.Context, user, password string) error {
	return c.do(func(l *Link) error { return l.SetPassword(ctx, user, password) })
}

// Authorize adds to the keys that a user of the guest may log in with by SSH.
func (c Care) Authorize(ctx context.Context, user string, keys []string) error {
	return c.do(func(l *Link) error { return l.Authorize(ctx, user, keys) })
}

// Trim gives back what the guest's volume holds and the guest does not use.
func (c Care) Trim(ctx context.Context) (n uint64, err error) {
	err = c.do(func(l *Link) (err error) {
		n, err = l.Trim(ctx)
		return err
	})
	return n, err
}

// SetClock sets the guest's clock.
func (c Care) SetClock(ctx context.Context, now time.Time) error {
	return c.do(func(l *Link) error { return l.SetClock(ctx, now) })
}

func (c Care) do(ask func(*Link) error) error {
	l, err := c.Agent()
	if err == nil {
		err = ask(l)
	}
	return errs.About(err, c.Ref)
}
