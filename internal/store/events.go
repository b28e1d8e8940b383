package store

import (
	"context"
	"errors"
	"iter"
	"sort"
	"time"

	"lodge/internal/base/errs"
	"lodge/internal/model"
)

// Event says that a part of a record changed; what it is now stands in the
// table, which has reached Rev when the event is seen.
type Event struct {
	Rev     Rev
	At      time.Time // when it was written; zero for a deletion from before the store was opened
	Kind    model.Kind
	ID      string
	Name    string // "" for the status of a record that has gone since
	Part    string // "spec" or "status"; a deletion is one event, of the spec
	Deleted bool
}

// logged is an event with what was deleted by it.
type logged struct {
	Event
	prev part // the spec that a deletion removed
}

// log holds the latest events: everything after revision start, and no more
// than twice keep.
type log struct {
	start  Rev
	keep   int
	events []logged
}

// logLength is how many events are kept at hand; who wants older ones is served
// from the server's history.
const logLength = 8192

// add appends the events of one commit. Slices of the log that were handed out
// stay as they are.
func (l *log) add(events []logged) {
	l.events = append(l.events, events...)
	if len(l.events) < 2*l.keep {
		return
	}
	l.start = l.events[len(l.events)-l.keep-1].Rev
	// A revision is there as a whole or not at all.
	cut := sort.Search(len(l.events), func(i int) bool { return l.events[i].Rev > l.start })
	l.events = append(make([]logged, 0, 2*l.keep), l.events[cut:]...)
}

// after returns the events after rev, and whether the log goes back so far.
func (l *log) after(rev Rev) ([]logged, bool) {
	if rev < l.start {
		return nil, false
	}
	n := sort.Search(len(l.events), func(i int) bool { return l.events[i].Rev > rev })
	return l.events[n:len(l.events):len(l.events)], true
}

// eventsOf says what a commit changed. deletedAt is the time of its deletions,
// which leave no value that could tell. Called with the store locked.
func (s *Store) eventsOf(rev Rev, changes []change, deletedAt time.Time) []logged {
	events := make([]logged, 0, len(changes))
	for _, c := range changes {
		e := logged{Event: Event{Rev: rev, Kind: c.kind, ID: c.id, Part: c.which, Deleted: c.deleted, At: c.now.at}}
		switch {
		case c.deleted && c.which == partStatus:
			continue // told by the spec's own event
		case c.deleted:
			e.Name, e.At, e.prev = c.prev.meta.Name, deletedAt, c.prev
		case c.which == partSpec:
			e.Name = c.now.meta.Name
		default:
			if r := s.raw[c.kind][c.id]; r != nil {
				e.Name = r.spec.meta.Name
			}
		}
		events = append(events, e)
	}
	return events
}

// Events yields every change after from, in order, until ctx is done; then it
// just ends. From 0 is from the moment of the call on. It fails with Conflict
// when from is too far back (or of another store): read everything, and follow
// from the Rev that was read at. It fails with Unavailable when the store is
// closed.
func (s *Store) Events(ctx context.Context, from Rev) iter.Seq2[Event, error] {
	all := s.events(ctx, from)
	return func(yield func(Event, error) bool) {
		for e, err := range all {
			if !yield(e.Event, err) {
				return
			}
		}
	}
}

func (s *Store) events(ctx context.Context, from Rev) iter.Seq2[logged, error] {
	if from == 0 {
		from = s.Rev()
	}
	return func(yield func(logged, error) bool) {
		news := make(chan struct{}, 1)
		s.mu.Lock()
		s.subs[news] = struct{}{}
		ahead := from > s.rev
		s.mu.Unlock()
		defer func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			delete(s.subs, news)
		}()
		if ahead {
			yield(logged{}, compactedError(from, "that revision is not of this store"))
			return
		}
		for {
			s.mu.RLock()
			events, ok := s.log.after(from)
			s.mu.RUnlock()
			if !ok {
				if from, ok = s.history(ctx, from, yield); !ok {
					return
				}
				continue
			}
			for _, e := range events {
				if ctx.Err() != nil || !yield(e, nil) {
					return
				}
				from = e.Rev
			}
			select {
			case <-news:
			case <-ctx.Done():
				return
			case <-s.done:
				yield(logged{}, closedError())
				return
			}
		}
	}
}

// history yields what the server remembers after from, up to where the log
// begins. It returns how far it came and whether to go on.
func (s *Store) history(ctx context.Context, from Rev, yield func(logged, error) bool) (Rev, bool) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // a closed store must not leave a reader of its past behind
		select {
		case <-s.done:
			cancel()
		case <-ctx.Done():
		}
	}()
	for b, err := range s.kv.watch(ctx, from, true) {
		if errors.Is(err, errCompacted) {
			yield(logged{}, compactedError(from, "history does not go back so far"))
			return from, false
		}
		if err != nil {
			yield(logged{}, err)
			return from, false
		}
		if err := s.await(ctx, b.rev); err != nil {
			yield(logged{}, err)
			return from, false
		}
		s.mu.RLock()
		events := s.eventsOf(b.rev, changesOf(b), time.Time{})
		start := s.log.start
		s.mu.RUnlock()
		for _, e := range events {
			if !yield(e, nil) {
				return from, false
			}
		}
		if from = b.rev; from >= start {
			return from, true
		}
	}
	select {
	case <-s.done:
		yield(logged{}, closedError())
	default:
	}
	return from, false
}

func compactedError(from Rev, msg string) error {
	return &errs.Error{
		Op: "store.events", Kind: errs.Conflict, Msg: "compacted: " + msg,
		Hint: "read everything again and follow from there", Err: errCompacted,
	}
}
