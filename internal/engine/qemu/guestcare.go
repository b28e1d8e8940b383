package qemu

import (
	"cmp"
	"context"
	"time"

	"lodge/internal/agent/dial"
	"lodge/internal/base/account"
)

var _ dial.Carer = theirVoice{}

// SetPassword gives a user of the guest a new password. It goes as its hash: the
// agent may hand it to another program.
func (v theirVoice) SetPassword(ctx context.Context, user, password string) error {
	if err := account.CheckUser(user); err != nil {
		return err
	}
	hash, err := account.HashPassword(password)
	if err != nil {
		return err
	}
	c, err := v.a.speaker(v.g.Status.Started, "guest-set-user-password")
	if err != nil {
		return err
	}
	return refusal(c.SetPassword(ctx, user, hash))
}

// Authorize adds to the keys that a user of the guest may log in with by SSH.
func (v theirVoice) Authorize(ctx context.Context, user string, keys []string) error {
	if err := cmp.Or(account.CheckUser(user), account.CheckKeys(keys)); err != nil {
		return err
	}
	c, err := v.a.speaker(v.g.Status.Started, "guest-ssh-add-authorized-keys")
	if err != nil {
		return err
	}
	return refusal(c.Authorize(ctx, user, keys))
}

// Trim gives back what the guest's file systems do not use.
func (v theirVoice) Trim(ctx context.Context) (uint64, error) {
	c, err := v.a.speaker(v.g.Status.Started, "guest-fstrim")
	if err != nil {
		return 0, err
	}
	n, err := c.Trim(ctx)
	return n, refusal(err)
}

// SetClock sets the guest's clock.
func (v theirVoice) SetClock(ctx context.Context, now time.Time) error {
	c, err := v.a.speaker(v.g.Status.Started, "guest-set-time")
	if err != nil {
		return err
	}
	return refusal(c.SetClock(ctx, now))
}
