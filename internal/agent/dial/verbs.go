package dial

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"sync"
	"time"

	"lodge/internal/agent"
	"lodge/internal/base/account"
	"lodge/internal/base/errs"
	"lodge/internal/base/hostkeys"
	"lodge/internal/base/mux"
)

// slow is how long the agent may take for what moves the whole guest.
const slow = 2 * time.Minute

// Stats asks what the guest says of itself.
func (l *Link) Stats(ctx context.Context) (agent.Stats, error) {
	r, err := l.ask(ctx, agent.Request{Op: agent.OpStats}, answerTimeout)
	if err == nil && r.Stats == nil {
		err = l.trouble(ctx, errMisbehaves)
	}
	if err != nil {
		return agent.Stats{}, err
	}
	return *r.Stats, nil
}

// Shutdown asks the guest's init to power off, and returns once it was asked.
// An error of kind Busy says that it may not have heard.
func (l *Link) Shutdown(ctx context.Context) error { return l.stop(ctx, agent.OpShutdown) }

// Reboot asks the guest's init to start anew, likewise.
func (l *Link) Reboot(ctx context.Context) error { return l.stop(ctx, agent.OpReboot) }

// stop asks for the guest's end, which may be faster than the answer.
func (l *Link) stop(ctx context.Context, op agent.Op) error {
	c, err := l.begin(ctx, agent.Request{Op: op})
	if err != nil {
		return err
	}
	defer c.end()
	_, err = c.answer(ctx, slow)
	if errs.Is(err, errs.Conflict) || errors.Is(err, io.EOF) {
		return nil // it hung up, or is gone
	}
	return err
}

// Online makes the guest use memory that was plugged and as many of its
// processors as cpus says; 0: all.
func (l *Link) Online(ctx context.Context, cpus int) error {
	_, err := l.ask(ctx, agent.Request{Op: agent.OpOnline, CPUs: cpus}, slow)
	return err
}

// Grow makes the guest's writable layer as large as its device now is.
func (l *Link) Grow(ctx context.Context) error { return l.plain(ctx, agent.OpGrow) }

func (l *Link) plain(ctx context.Context, op agent.Op) error {
	_, err := l.ask(ctx, agent.Request{Op: op}, slow)
	return err
}

// Trim tells the guest's disk what the guest does not use, and returns how many
// bytes that is.
func (l *Link) Trim(ctx context.Context) (uint64, error) {
	r, err := l.ask(ctx, agent.Request{Op: agent.OpTrim}, slow)
	return r.Bytes, err
}

// SetClock sets the guest's clock.
func (l *Link) SetClock(ctx context.Context, now time.Time) error {
	_, err := l.ask(ctx, agent.Request{Op: agent.OpClock, Time: now.UnixNano()}, answerTimeout)
	return err
}

// SetPassword gives a user of the guest a new password.
func (l *Link) SetPassword(ctx context.Context, user, password string) error {
	if err := account.CheckUser(user); err != nil {
		return err
	}
	hash, err := account.HashPassword(password)
	if err != nil {
		return err
	}
	_, err = l.ask(ctx, agent.Request{Op: agent.OpPassword, User: user, Hash: hash}, answerTimeout)
	return err
}

// Authorize lets who has one of the keys log in as a user of the guest.
func (l *Link) Authorize(ctx context.Context, user string, keys []string) error {
	if err := cmp.Or(account.CheckUser(user), account.CheckKeys(keys)); err != nil {
		return err
	}
	_, err := l.ask(ctx, agent.Request{Op: agent.OpKeys, User: user, Keys: keys}, answerTimeout)
	return err
}

// entropySize is how much randomness a copied guest is given.
const entropySize = 64

func entropy() string {
	b := make([]byte, entropySize)
	rand.Read(b)
	return hex.EncodeToString(b)
}

// Renew makes the guest, which may be a copy of another that ran, the one that
// c describes.
func (l *Link) Renew(ctx context.Context, c agent.Config) error {
	out, err := l.ask(ctx, agent.Request{Op: agent.OpRenew, Config: &c, Time: time.Now().UnixNano(), Entropy: entropy(), Served: true}, slow)
	if err == nil && len(out.Kinds) > 0 {
		go l.serve(out.Kinds)
	}
	return err
}

// makingKeys is held by who makes keys: nobody waits for them, and many guests
// may be copied at once.
var makingKeys sync.Mutex

// serve gives a copied guest keys of its own for its server of the secure shell.
// Its own processor may take minutes for what is done here in a moment; without
// an answer it makes them itself.
func (l *Link) serve(kinds []string) {
	makingKeys.Lock()
	defer makingKeys.Unlock()
	var keys []agent.HostKey
	for _, kind := range kinds[:min(len(kinds), agent.HostKeysMax)] {
		if !hostkeys.Known(kind) {
			continue
		}
		secret, public, err := hostkeys.Make(kind)
		if err != nil {
			return
		}
		keys = append(keys, agent.HostKey{Kind: kind, Secret: string(secret), Public: string(public)})
	}
	ctx, cancel := context.WithTimeout(context.Background(), slow)
	defer cancel()
	if _, err := l.ask(ctx, agent.Request{Op: agent.OpServe, HostKeys: keys}, slow); err != nil && l.o.Log != nil {
		l.o.Log.Debug("a copied guest makes its keys itself", "err", err)
	}
}

// Freeze brings the guest's writable layer to rest, for at most d. thaw ends
// that; it fails if the guest went on by itself before, so that a copy made
// meanwhile may be no good.
func (l *Link) Freeze(ctx context.Context, d time.Duration) (thaw func() error, err error) {
	// The rest outlasts the call that began it.
	alive, until := context.WithoutCancel(ctx), time.Now().Add(d)
	c, err := l.begin(ctx, agent.Request{Op: agent.OpFreeze, Seconds: d.Seconds()})
	if err != nil {
		return nil, err
	}
	if _, err := c.answer(ctx, answerTimeout); err != nil {
		c.end()
		return nil, err
	}
	c.over()
	return func() error {
		defer c.end()
		return l.thaw(alive, c, until)
	}, nil
}

func (l *Link) thaw(ctx context.Context, c *call, until time.Time) error {
	c.SetReadDeadline(time.Now().Add(-time.Second))
	if _, _, err := c.frames.Next(); !errors.Is(err, mux.ErrTimeout) || time.Now().After(until) {
		return &errs.Error{Op: "agent", Kind: errs.Busy, Msg: "the guest's disk did not stay frozen", Hint: "try again when the host is less busy", Err: err}
	}
	c.Stream.Close()
	c.SetReadDeadline(time.Now().Add(answerTimeout))
	if _, _, err := c.frames.Next(); !errors.Is(err, io.EOF) {
		return l.trouble(ctx, err)
	}
	return nil
}
