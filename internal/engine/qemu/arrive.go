package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"lodge/internal/base/errs"
	"lodge/internal/engine"
	"lodge/internal/engine/qemu/qmp"
)

// landing is a QEMU whose guest comes.
type landing struct {
	m     *Machine
	l     *link
	v     *move
	end   func()
	disks []string
}

// Receive makes a QEMU that waits for a guest ready for it.
func (m *Machine) Receive(ctx context.Context, a engine.Arrival) (engine.Landing, error) {
	l := m.link
	if status := l.state(); status != "inmigrate" {
		return nil, m.about(&errs.Error{Op: "qemu.move", Kind: errs.Conflict, Msg: "it does not wait for a guest: " + orElse(status, "QEMU does not answer")})
	}
	w, err := l.asStarted()
	if err != nil {
		return nil, m.about(err)
	}
	for _, name := range a.Disks {
		if err := w.writes(name); err != nil {
			return nil, m.about(err)
		}
	}
	v, end := l.beginMove()
	x := &landing{m: m, l: l, v: v, end: end, disks: a.Disks}
	err = l.with(ctx, func(ctx context.Context, c *qmp.Client) error {
		if err := c.Do(ctx, "migrate-set-capabilities", ways(moveWays(a.PostCopy)), nil); err != nil {
			return err
		}
		if err := x.serve(ctx, c, a); err != nil {
			return err
		}
		if err := c.PassFile(ctx, moveName, a.Stream); err != nil {
			return err
		}
		return c.Do(ctx, "migrate-incoming", map[string]any{"uri": "fd:" + moveName}, nil)
	})
	if err != nil {
		end()
		return nil, m.about(err)
	}
	return x, nil
}

// serve lets the sender fill disks.
func (x *landing) serve(ctx context.Context, c *qmp.Client, a engine.Arrival) error {
	if len(a.Disks) == 0 {
		return nil
	}
	const listener = "disks"
	if err := c.PassFile(ctx, listener, a.Listen); err != nil {
		return err
	}
	at := map[string]any{"type": "fd", "data": map[string]any{"str": listener}}
	if err := c.Do(ctx, "nbd-server-start", map[string]any{"addr": at}, nil); err != nil {
		return err
	}
	for i, name := range a.Disks {
		export := map[string]any{"type": "nbd", "id": copyNode(i), "node-name": movedNode(name), "name": name, "writable": true}
		if err := c.Do(ctx, "block-export-add", export, nil); err != nil {
			return err
		}
	}
	return nil
}

// Release ends the service of the disks. The guest cannot have them before.
func (x *landing) Release(ctx context.Context) error {
	if len(x.disks) == 0 {
		return nil
	}
	return x.m.about(x.l.with(ctx, func(ctx context.Context, c *qmp.Client) error {
		for i := range x.disks {
			if err := c.Do(ctx, "block-export-del", map[string]any{"id": copyNode(i), "mode": "hard"}, nil); err != nil {
				return err
			}
		}
		return c.Do(ctx, "nbd-server-stop", nil, nil)
	}))
}

// Wait returns when the guest is here.
func (x *landing) Wait(ctx context.Context) (time.Time, error) {
	for {
		if x.l.life.Err() != nil {
			return time.Time{}, x.m.about(&errs.Error{Op: "qemu.move", Kind: errs.Conflict, Msg: "the QEMU that the guest was to go on in has ended"})
		}
		var s struct{ Status string }
		err := x.l.do(ctx, "query-status", nil, &s)
		if err == nil && s.Status != "inmigrate" {
			_, resumed := x.v.times()
			x.l.note(func() { x.l.status = s.Status })
			x.end()
			return resumed, nil
		}
		if !x.v.wait(ctx) {
			return time.Time{}, ctx.Err()
		}
	}
}

// abortTime is how long a QEMU may take to end that was killed.
const abortTime = 30 * time.Second

// Abort kills the QEMU, and returns when it has ended.
func (x *landing) Abort(ctx context.Context) error {
	defer x.end()
	if err := x.m.Kill(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, abortTime)
	defer cancel()
	select {
	case <-x.l.life.Done():
		return nil
	case <-ctx.Done():
		return errors.New("the QEMU that the guest was to go on in does not end")
	}
}

// comes takes the machine from the QEMU where the guest runs.
func (b *builder) comes(a engine.Arriving) error {
	was := b.w
	b.w = hardware{}
	if err := json.Unmarshal(a.Machine, &b.w); err != nil {
		return &errs.Error{Op: "qemu.program", Kind: errs.Internal, Ref: b.g.Key().String(), Msg: "what is told of the guest's machine makes no sense", Err: err}
	}
	b.moving, b.Faults = true, a.PostCopy
	return b.same(was)
}
