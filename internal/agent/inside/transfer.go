package inside

import (
	"context"
	"errors"
	"io"

	"golang.org/x/sys/unix"

	"lodge/internal/agent"
	"lodge/internal/base/errs"
)

// pack sends a file or tree.
func (a *Agent) pack(s *stream, r agent.Request) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	out := agent.NewOutflow(s, agent.KindOut, a.Mailbox, r.Slots)
	go func() {
		defer cancel()
		defer out.Abort(errHungUp)
		for {
			kind, payload, err := s.frames.Next()
			if err != nil || kind != agent.KindFree || out.Freed(payload) != nil {
				return
			}
		}
	}()
	if err := agent.Pack(ctx, r.Path, out); err != nil {
		return complaint(err)
	}
	return out.Finish()
}

// unpack takes a tree.
func (a *Agent) unpack(s *stream, r agent.Request) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	in := agent.NewInflow(s, s.frames, agent.KindIn, a.Mailbox, r.Slots)
	if err := agent.Unpack(ctx, r.Path, in); err != nil {
		return complaint(err)
	}
	return nil
}

// complaint gives what went wrong with files its kind.
func complaint(err error) error {
	e := &errs.Error{Kind: errs.Invalid, Field: "path", Msg: err.Error(), Err: err}
	switch {
	case errors.Is(err, agent.ErrMissing):
		e.Kind = errs.NotFound
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		e.Kind = errs.NoSpace
	case errors.Is(err, errHungUp), errors.Is(err, io.ErrUnexpectedEOF):
		e.Kind = errs.Cancelled
	}
	return e
}
