package cli

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"lodge/api"
	"lodge/api/client"
)

// firstWait is how long a request itself waits. Most work is over by then, with
// one round trip; what takes longer is known by its id from then on, so that it
// can be followed and named.
const firstWait = 250 * time.Millisecond

// together is how many requests are under way at once when several things are
// named.
const together = 16

// Ask makes one request that is answered by an operation; wait is how long the
// request may take.
type Ask func(ctx context.Context, c *client.Client, wait time.Duration) (api.Operation, error)

// Do makes the request and, unless told not to, waits for the end of the work
// with its progress on a terminal. Without waiting it prints the operation's id.
func (f *Factory) Do(ctx context.Context, w *Waiting, ask Ask) (api.Operation, error) {
	var p *progress
	if f.Streams.ErrTTY && !w.no && !w.quiet {
		p = newProgress(f.Streams)
		defer p.close()
	}
	op, err := f.do(ctx, w, ask, p)
	if err == nil && w.no {
		fmt.Fprintln(f.Streams.Out, op.ID)
	}
	return op, err
}

func (f *Factory) do(ctx context.Context, w *Waiting, ask Ask, p *progress) (api.Operation, error) {
	c, err := f.Client()
	if err != nil {
		return api.Operation{}, err
	}
	ctx, cancel := w.Bound(ctx)
	defer cancel()
	first := firstWait
	if w.no {
		first = 0
	}
	op, err := ask(ctx, c, first)
	if err == nil && !w.no {
		var show func(api.Event)
		if p != nil {
			show = p.event
		}
		id := op.ID
		op, err = c.Wait(ctx, op, show)
		op.ID = id
	}
	return op, pending(op, err)
}

// pending says how to go on after a wait that was given up.
func pending(op api.Operation, err error) error {
	if errors.Is(err, ErrInterrupted) || errors.Is(err, context.DeadlineExceeded) {
		return &PendingError{Operation: op.ID, Err: err}
	}
	return err
}

// Follow waits for an operation that somebody asked for.
func (f *Factory) Follow(ctx context.Context, w *Waiting, id string) (api.Operation, error) {
	return f.Do(ctx, w, func(ctx context.Context, c *client.Client, wait time.Duration) (api.Operation, error) {
		return c.Operation(ctx, id, wait)
	})
}

// Each asks for the same with several names, some at once, and waits for all of
// it. What failed does not keep the others from being done; it is returned as a
// ManyError. Told not to wait, it prints the operations' ids in the names' order.
func (f *Factory) Each(ctx context.Context, w *Waiting, names []string, ask func(ctx context.Context, c *client.Client, name string, wait time.Duration) (api.Operation, error)) error {
	if _, err := f.Client(); err != nil { // made here, used by all below
		return err
	}
	var p *progress
	if f.Streams.ErrTTY && !w.no {
		p = newProgress(f.Streams)
		defer p.close()
	}
	errs, ops := make([]error, len(names)), make([]api.Operation, len(names))
	var wg sync.WaitGroup
	slots := make(chan struct{}, together)
	for i, name := range names {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			ops[i], errs[i] = f.do(ctx, w, func(ctx context.Context, c *client.Client, wait time.Duration) (api.Operation, error) {
				return ask(ctx, c, name, wait)
			}, p)
		})
	}
	wg.Wait()
	var many ManyError
	for i, err := range errs {
		if err != nil {
			many = append(many, err)
		} else if w.no {
			fmt.Fprintln(f.Streams.Out, ops[i].ID)
		}
	}
	if len(many) == 0 {
		return nil
	}
	if len(many) == 1 {
		return many[0]
	}
	return many
}
