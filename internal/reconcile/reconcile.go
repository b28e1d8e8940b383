// Package reconcile runs reconcilers: it hands each one the ids of its records
// that something happened to, one at a time per id, and tries again what failed.
//
// Reconcilers don't know each other. What one writes wakes those that declared
// to read it, directly and in this process; nothing polls. A reconciler is
// never told what changed: it looks, decides and takes a step.
package reconcile

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"lodge/internal/base/errs"
	"lodge/internal/model"
	"lodge/internal/store"
)

// Read is a kind of record that a reconciler looks at.
type Read struct {
	Kind model.Kind
	// Wake says which of the reconciler's own records must be looked at when
	// the record id of Kind changes or goes. It is called for every change and
	// must be quick. Nil stands for the same id.
	Wake func(id string) []string
}

// Reconciler brings the records of one kind to where their specs want them.
type Reconciler interface {
	// Name is unique among reconcilers: "guests".
	Name() string
	// Reads lists every kind whose change may give it something to do, its own
	// included.
	Reads() []Read
	// Writes lists the kinds whose status it alone writes, or whose records it
	// alone makes.
	Writes() []model.Kind
	// All returns the ids that it looks after. They are all looked at when the
	// runner starts, when events were missed, and every ResyncEvery.
	All() []string
	// Reconcile looks at a record, which may be gone, and takes what steps it
	// can. It is called with the reconciler's own ids, by many goroutines but
	// never by two for the same id. It is called again after again, or when
	// woken, or, if it fails, after a while. What it wrote itself wakes it too,
	// unless it fails: so a step may end by writing its result, and noting an
	// error in the status does not hasten the next attempt.
	Reconcile(ctx context.Context, log *slog.Logger, id string) (again time.Duration, err error)
}

const (
	// ResyncEvery is the interval after which every id is looked at even if
	// nothing happened, which heals what changed outside the house.
	ResyncEvery = 5 * time.Minute

	firstRetry = 100 * time.Millisecond // after an error that may pass by itself; doubled each time
	lastRetry  = 30 * time.Second
	slowRetry  = time.Minute // after an error that only a change can mend

	quietAttempts = 5 // that fail because something is not ready yet before the log tells
)

// Runner runs reconcilers. Make it with New; Add and Feed come before Run.
type Runner struct {
	log     *slog.Logger
	workers int
	loops   map[string]*loop
	writer  map[model.Kind]string
	readers map[model.Kind][]reader
	feeds   []feed
}

// feed is a store and how far its events have been taken.
type feed struct {
	store *store.Store
	from  store.Rev
}

// reader is a reconciler's interest in a kind.
type reader struct {
	*loop
	wake func(id string) []string
	owns bool // it is the one who writes the kind's status
}

// New returns a runner without reconcilers. Of each reconciler at most workers
// ids are worked on at once (at least one), so a slow one holds up no other.
func New(log *slog.Logger, workers int) *Runner {
	return &Runner{
		log: log, workers: max(workers, 1), loops: map[string]*loop{},
		writer: map[model.Kind]string{}, readers: map[model.Kind][]reader{},
	}
}

// Add takes in a reconciler. It is an error of kind Exists if there is one of
// that name, and of kind Conflict if another one writes the same kind.
func (r *Runner) Add(rec Reconciler) error {
	name := rec.Name()
	if r.loops[name] != nil {
		return &errs.Error{Op: "reconcile.add", Kind: errs.Exists, Ref: name, Msg: "is there already"}
	}
	for _, kind := range rec.Writes() {
		if other, taken := r.writer[kind]; taken {
			return &errs.Error{
				Op: "reconcile.add", Kind: errs.Conflict, Ref: name,
				Msg: fmt.Sprintf("writes %q, which %q writes already", kind, other),
			}
		}
	}
	l := newLoop(rec, r.log.With("reconciler", name), r.workers)
	r.loops[name] = l
	for _, kind := range rec.Writes() {
		r.writer[kind] = name
	}
	for _, read := range rec.Reads() {
		r.readers[read.Kind] = append(r.readers[read.Kind], reader{
			loop: l, wake: read.Wake, owns: slices.Contains(rec.Writes(), read.Kind),
		})
	}
	return nil
}

// Feed makes every change of a store from now on wake who reads it.
func (r *Runner) Feed(s *store.Store) {
	r.feeds = append(r.feeds, feed{store: s, from: s.Rev()})
}

// Wake makes a reconciler look at one of its ids soon, for reasons that no
// store knows, such as a process that ended. It never blocks; before Run it is
// remembered. An unknown reconciler is a fault of the program and is logged.
func (r *Runner) Wake(reconciler, id string) {
	l := r.loops[reconciler]
	if l == nil {
		r.log.Error("woken: no such reconciler", "reconciler", reconciler, "id", id)
		return
	}
	l.wake(id, false)
}

// Graph returns who reads and writes what, one edge a line, sorted:
// "guest -> guests" for a read, "guests -> guest" for a write.
func (r *Runner) Graph() []string {
	lines := map[string]bool{}
	for kind, readers := range r.readers {
		for _, to := range readers {
			lines[string(kind)+" -> "+to.name] = true
		}
	}
	for kind, name := range r.writer {
		lines[name+" -> "+string(kind)] = true
	}
	return slices.Sorted(maps.Keys(lines))
}

// Run runs the reconcilers until ctx is done and none is at work any more.
func (r *Runner) Run(ctx context.Context) error {
	var following, work sync.WaitGroup
	for _, l := range r.loops {
		l.start(ctx, &work)
	}
	for _, f := range r.feeds {
		following.Go(func() { r.follow(ctx, f) })
	}
	r.wakeAll()
	resync := time.NewTicker(ResyncEvery)
	defer resync.Stop()
	for ctx.Err() == nil {
		select {
		case <-resync.C:
			r.wakeAll()
		case <-ctx.Done():
		}
	}
	following.Wait()
	for _, l := range r.loops {
		l.stop()
	}
	work.Wait()
	return nil
}

// follow turns a store's events into wakes.
func (r *Runner) follow(ctx context.Context, f feed) {
	for ctx.Err() == nil {
		for e, err := range f.store.Events(ctx, f.from) {
			if err != nil {
				r.log.Warn("events were missed, everything is looked at again", "error", err)
				f.from = f.store.Rev()
				r.wakeAll()
				break
			}
			f.from = e.Rev
			r.take(e)
		}
		select {
		case <-time.After(firstRetry): // a closed store fails at once, again and again
		case <-ctx.Done():
		}
	}
}

func (r *Runner) take(e store.Event) {
	for _, to := range r.readers[e.Kind] {
		own := to.owns && e.Part == "status" && !e.Deleted
		for _, id := range to.ids(e.ID) {
			to.loop.wake(id, own)
		}
	}
}

// ids returns whom the change of a record concerns.
func (to reader) ids(id string) (ids []string) {
	if to.wake == nil {
		return []string{id}
	}
	defer to.caught("wake", id, nil)
	return to.wake(id)
}

func (r *Runner) wakeAll() {
	for _, l := range r.loops {
		l.wakeAll()
	}
}
