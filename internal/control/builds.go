package control

import (
	"context"
	"sync"
	"time"

	"lodge/internal/base/errs"
	"lodge/internal/model"
	"lodge/internal/model/operation"
)

// Builds runs what takes minutes beside a reconciler, once for each record
// however many ask.
type Builds[T any] struct {
	wake    func(id string) // makes the runner look again
	mu      sync.Mutex
	running map[string]*build[T]
	wg      sync.WaitGroup
}

type build[T any] struct {
	wish   int64
	cancel context.CancelFunc
	done   bool
	built  T
	err    error
}

// NewBuilds returns a set of builds of which none runs; wake is called when one
// ends.
func NewBuilds[T any](wake func(id string)) *Builds[T] {
	return &Builds[T]{wake: wake, running: map[string]*build[T]{}}
}

// Do returns what came of the build that answers a record's wish, once. Until
// it has ended, done is false; if there is none yet it begins.
func (b *Builds[T]) Do(id string, wish int64, work func(ctx context.Context) (T, error)) (built T, done bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	one := b.running[id]
	switch {
	case one != nil && !one.done:
		return built, false, nil
	case one != nil && one.wish == wish:
		delete(b.running, id)
		return one.built, true, one.err
	}
	ctx, cancel := context.WithCancel(context.Background())
	one = &build[T]{wish: wish, cancel: cancel}
	b.running[id] = one
	b.wg.Go(func() {
		defer cancel()
		built, err := work(ctx)
		b.mu.Lock()
		one.done, one.built, one.err = true, built, err
		b.mu.Unlock()
		b.wake(id)
	})
	return built, false, nil
}

// Drop forgets a record's build, and ends it if it still runs, which is then
// true: its end wakes the reconciler.
func (b *Builds[T]) Drop(id string) (running bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	one := b.running[id]
	if one == nil {
		return false
	}
	one.cancel()
	if one.done {
		delete(b.running, id)
	}
	return !one.done
}

// Close ends all builds and waits until they have cleaned up.
func (b *Builds[T]) Close() {
	b.mu.Lock()
	for _, one := range b.running {
		one.cancel()
	}
	b.mu.Unlock()
	b.wg.Wait()
}

// GoesOn reports whether a build that failed is tried again by itself: when
// space was made it goes on, but a mirror that failed is asked again only by
// whoever wants what was to be built.
func GoesOn(err error) bool { return errs.Is(err, errs.NoSpace) }

// Failed notes beside a status that a build failed. One that is not tried again
// has thereby answered its generation, asked.
func Failed(err error, now time.Time, problem **model.Problem, answered *int64, asked int64) {
	*problem = model.ProblemOf(err, now, *problem)
	if (*problem).Final = !GoesOn(err); (*problem).Final {
		*answered = asked
	}
}

// Telling tells of a build's steps as those of its subject.
func Telling(tell func(operation.Progress), subject model.Key) func(step string, done, total uint64, unit, note string) {
	return func(step string, done, total uint64, unit, note string) {
		tell(operation.Progress{
			Subject: subject, Step: step, Parents: []string{"building " + subject.Name},
			Done: done, Total: total, Unit: unit, Note: note,
		})
	}
}
