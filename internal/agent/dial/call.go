package dial

import (
	"context"
	"errors"
	"time"

	"lodge/internal/agent"
	"lodge/internal/base/errs"
	"lodge/internal/base/mux"
)

// answerTimeout is how long the agent may take for what is done at once.
const answerTimeout = 30 * time.Second

// call is one request under way.
type call struct {
	*mux.Stream
	l      *Link
	frames *agent.Frames
	over   func() bool
}

// begin sends a request, once there is somebody to send it to. It returns when
// ctx ends, whatever the agent does; what it began then ends by itself.
func (l *Link) begin(ctx context.Context, r agent.Request) (*call, error) {
	select {
	case l.calls <- struct{}{}:
	case <-ctx.Done():
		return nil, l.gaveUp(ctx)
	case <-l.ended:
		return nil, gone()
	}
	type outcome struct {
		c   *call
		err error
	}
	done := make(chan outcome)
	go func() {
		c, err := l.send(ctx, r)
		if err != nil {
			<-l.calls
		}
		select {
		case done <- outcome{c, err}:
		case <-ctx.Done():
			if c != nil {
				c.end()
			}
		}
	}()
	select {
	case o := <-done:
		return o.c, o.err
	case <-ctx.Done():
		return nil, l.gaveUp(ctx)
	}
}

// send is begin without a way out.
func (l *Link) send(ctx context.Context, r agent.Request) (*call, error) {
	s, err := l.connected(ctx)
	if err != nil {
		return nil, err
	}
	st, err := s.Open()
	if err != nil {
		return nil, l.trouble(ctx, err)
	}
	c := &call{Stream: st, l: l, frames: agent.NewFrames(st)}
	c.over = context.AfterFunc(ctx, func() { st.SetDeadline(time.Unix(1, 0)) })
	if err := agent.SendJSON(st, agent.KindRequest, r); err != nil {
		c.over()
		st.Close()
		return nil, l.trouble(ctx, err)
	}
	return c, nil
}

// end lets go of a call.
func (c *call) end() {
	c.over()
	c.Stream.Close()
	<-c.l.calls
}

// connected waits for a session, as long as patience lasts.
func (l *Link) connected(ctx context.Context) (s *mux.Session, err error) {
	ctx, cancel := context.WithTimeout(ctx, l.o.Patience)
	defer cancel()
	err = l.until(ctx, func() bool {
		s = l.session
		return s != nil && !s.Over()
	})
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		err = &errs.Error{Op: "agent", Kind: errs.Busy, Msg: "the guest's agent does not answer",
			Hint: "the guest may still be booting, or hang: look at its console with lodge logs GUEST"}
	}
	return s, err
}

// answer reads the result of a call; the agent has so long for it.
func (c *call) answer(ctx context.Context, within time.Duration) (agent.Result, error) {
	if within > 0 {
		c.SetReadDeadline(time.Now().Add(within))
		defer c.SetReadDeadline(time.Time{})
	}
	if ctx.Err() != nil { // the deadline above must not outlive it
		return agent.Result{}, c.l.gaveUp(ctx)
	}
	r, err := result(c.frames)
	if err != nil {
		return r, c.l.trouble(ctx, err)
	}
	return r, r.Error.Err()
}

// result reads frames until one is a result.
func result(frames *agent.Frames) (agent.Result, error) {
	kind, payload, err := frames.Next()
	if err != nil {
		return agent.Result{}, err
	}
	if kind != agent.KindResult {
		return agent.Result{}, errMisbehaves
	}
	return agent.ParseResult(payload)
}

// ask is a call that is one answer.
func (l *Link) ask(ctx context.Context, r agent.Request, within time.Duration) (agent.Result, error) {
	c, err := l.begin(ctx, r)
	if err != nil {
		return agent.Result{}, err
	}
	defer c.end()
	return c.answer(ctx, within)
}

// trouble makes an error of the line one for a person. An agent that did not
// answer in time is looked for anew: it may have been started again.
func (l *Link) trouble(ctx context.Context, err error) error {
	var known *errs.Error
	select {
	case <-l.ended:
		return gone()
	default:
	}
	switch {
	case errors.As(err, &known):
		return known
	case ctx.Err() != nil:
		return l.gaveUp(ctx)
	case errors.Is(err, mux.ErrTimeout), errors.Is(err, agent.ErrStuck):
		l.line.Say(agent.Word{Kind: agent.Mark, ID: newID()})
		return &errs.Error{Op: "agent", Kind: errs.Busy, Msg: "the guest's agent did not answer in time", Err: err,
			Hint: "the guest may be paused or overloaded: try again, or look at its console with lodge logs GUEST"}
	}
	return &errs.Error{Op: "agent", Kind: errs.Busy, Msg: "the connection to the guest's agent was lost", Hint: "try again", Err: err}
}

// gaveUp is why a call ended whose ctx did.
func (l *Link) gaveUp(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return &errs.Error{Op: "agent", Kind: errs.Busy, Msg: "the guest's agent did not answer in time", Err: ctx.Err(),
			Hint: "the guest may be booting, paused or overloaded: look at its console with lodge logs GUEST"}
	}
	return &errs.Error{Op: "agent", Kind: errs.Cancelled, Msg: "the caller gave up", Err: ctx.Err()}
}
