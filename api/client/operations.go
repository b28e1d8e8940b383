package client

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"time"

	"lodge/api"
)

// waitRound is how long one request waits at most; a proxy in between may not
// like longer ones.
const waitRound = 30 * time.Second

// operate makes a request that is answered by an operation. It returns after at
// most wait, or at once when wait is 0; the operation may still be working. An
// operation that failed comes with its problem as the error.
func (c *Client) operate(ctx context.Context, r call, wait time.Duration) (api.Operation, error) {
	if wait > 0 {
		q := url.Values{}
		for k, v := range r.query {
			q[k] = v
		}
		q.Set("wait", min(wait, waitRound).String())
		r.query = q
	}
	var op api.Operation
	r.out = &op
	resp, err := c.do(ctx, r)
	if err != nil {
		if resp != nil && op.ID == "" {
			op.ID = resp.Header.Get("Lodge-Operation")
		}
		return op, err
	}
	return op, OperationError(op)
}

// OperationError is the error that an operation ended with; nil while it works
// and after a success.
func OperationError(op api.Operation) error {
	switch op.State {
	case "failed":
		e := &api.Error{Kind: api.KindInternal, Detail: "the operation failed"}
		if len(op.Subjects) == 1 {
			e.Ref = op.Subjects[0]
		}
		if p := op.Problem; p != nil {
			e.Detail, e.Hint = p.Message, p.Hint
			if knownKind(p.Code) {
				e.Kind = p.Code
			}
		}
		return e
	case "cancelled":
		return &api.Error{Kind: api.KindCancelled, Ref: "operation/" + op.ID, Detail: "was cancelled"}
	}
	return nil
}

func knownKind(code string) bool {
	return slices.Contains([]string{api.KindInternal, api.KindInvalid, api.KindNotFound, api.KindExists, api.KindConflict, api.KindDenied,
		api.KindBusy, api.KindUnsupported, api.KindNoSpace, api.KindUnavailable, api.KindCancelled}, code)
}

// Operations lists what is under way, or with all also what has ended.
func (c *Client) Operations(ctx context.Context, all bool) ([]api.Operation, error) {
	q := url.Values{}
	if all {
		q.Set("all", "true")
	}
	return get[[]api.Operation](ctx, c, route("operations"), q)
}

// Operation returns one operation as it is after at most wait. That it failed is
// not an error of this call: see OperationError.
func (c *Client) Operation(ctx context.Context, id string, wait time.Duration) (api.Operation, error) {
	op, err := c.operate(ctx, call{method: http.MethodGet, path: route("operations", id)}, wait)
	if err != nil && wait > 0 && op.ID != "" {
		op, err = c.operate(ctx, call{method: http.MethodGet, path: route("operations", id)}, 0)
	}
	if op.State != "" {
		return op, nil // the receipt came, whatever it says
	}
	return op, err
}

// CancelOperation asks that an operation be given up.
func (c *Client) CancelOperation(ctx context.Context, id string) (api.Operation, error) {
	return post[api.Operation](ctx, c, route("operations", id, "cancel"), nil)
}

// Wait returns when the operation has ended, with its problem as the error if
// it failed. When progress is not nil, it is called, by one goroutine at a time
// and not after Wait returned, with every progress event of the operation or its
// subjects.
func (c *Client) Wait(ctx context.Context, op api.Operation, progress func(api.Event)) (api.Operation, error) {
	if op.State == "done" || op.State == "failed" || op.State == "cancelled" {
		return op, OperationError(op)
	}
	if progress != nil {
		following, stop := context.WithCancel(ctx)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			c.follow(following, op, progress)
		}()
		defer func() { stop(); <-ended }()
	}
	for {
		now, err := c.operate(ctx, call{method: http.MethodGet, path: route("operations", op.ID)}, waitRound)
		if err != nil {
			now.ID = op.ID
			return now, err
		}
		if now.State != "working" {
			return now, nil
		}
	}
}

// follow passes an operation's progress on until ctx ends. Progress is a
// courtesy: when the events cannot be had, the wait goes on without.
func (c *Client) follow(ctx context.Context, op api.Operation, progress func(api.Event)) {
	for e, err := range c.Events(ctx, EventOptions{}) {
		if err != nil {
			return
		}
		if e.Type == "progress" && e.Progress != nil && concerns(e, op) {
			progress(e)
		}
	}
}

// concerns reports whether a progress event is about the operation: about
// itself, about its subjects, or about work that is part of either.
func concerns(e api.Event, op api.Operation) bool {
	ref := e.Kind + "/" + e.Name
	if e.Name == op.ID || slices.Contains(op.Subjects, ref) {
		return true
	}
	return slices.ContainsFunc(e.Progress.Parents, func(p string) bool {
		return p == op.ID || slices.Contains(op.Subjects, p)
	})
}
