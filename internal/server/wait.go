package server

import (
	"context"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"lodge/internal/base/errs"
	"lodge/internal/model/operation"
	"lodge/internal/store"
	"lodge/internal/store/tables"
)

// waiters wakes those who wait for an operation to end. One follower serves
// all of them, so a thousand waiters cost no more watching than one.
type waiters struct {
	mu   sync.Mutex
	byID map[string][]chan tables.OperationRecord
}

func newWaiters() *waiters { return &waiters{byID: map[string][]chan tables.OperationRecord{}} }

// follow tells waiters what they wait for, until ctx ends. A watch that breaks
// is begun anew, after looking at what was missed.
func (w *waiters) follow(ctx context.Context, t *store.Table[operation.Spec, operation.Status], s *store.Store, log *slog.Logger) {
	for {
		from := s.Rev()
		w.lookAgain(t)
		for c, err := range t.Watch(ctx, from) {
			if err != nil {
				log.Warn("operations are watched anew", "err", err)
				break
			}
			if c.Deleted || c.Status.State.Final() {
				w.tell(c.Record)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(100 * time.Millisecond): // a store that is down is not asked in a tight loop
		}
	}
}

// Ended wakes those who wait for r, which has ended, a moment before the record
// says so.
func (s *Server) Ended(r tables.OperationRecord) { s.waiters.tell(r) }

func (w *waiters) tell(r tables.OperationRecord) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, ch := range w.byID[r.ID] {
		ch <- r // it has room for one, and is told once
	}
	delete(w.byID, r.ID)
}

func (w *waiters) lookAgain(t *store.Table[operation.Spec, operation.Status]) {
	w.mu.Lock()
	var open []string
	for id := range w.byID {
		open = append(open, id)
	}
	w.mu.Unlock()
	for _, id := range open {
		if r, err := t.ByID(id); err == nil && r.Status.State.Final() {
			w.tell(r)
		}
	}
}

// wait returns the operation once it has ended, or as it is when the time is
// over or ctx ends.
func (w *waiters) wait(ctx context.Context, t *store.Table[operation.Spec, operation.Status], op tables.OperationRecord, limit time.Duration) tables.OperationRecord {
	if limit <= 0 || op.Status.State.Final() {
		return op
	}
	ch := make(chan tables.OperationRecord, 1)
	w.mu.Lock()
	w.byID[op.ID] = append(w.byID[op.ID], ch)
	w.mu.Unlock()
	defer w.leave(op.ID, ch)
	// It may have ended before we were heard.
	if now, err := t.ByID(op.ID); err == nil {
		if op = now; op.Status.State.Final() {
			return op
		}
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case op = <-ch:
	case <-timer.C:
	case <-ctx.Done():
	}
	return op
}

func (w *waiters) leave(id string, ch chan tables.OperationRecord) {
	w.mu.Lock()
	defer w.mu.Unlock()
	left := w.byID[id][:0]
	for _, c := range w.byID[id] {
		if c != ch {
			left = append(left, c)
		}
	}
	if len(left) == 0 {
		delete(w.byID, id)
		return
	}
	w.byID[id] = left
}

// maxWait bounds ?wait=, so that a forgotten client does not hold a connection
// for ever.
const maxWait = time.Hour

// parseWait reads ?wait=: a duration, or a number of seconds.
func parseWait(text string) (time.Duration, error) {
	if text == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(text)
	if n, nerr := strconv.Atoi(text); nerr == nil {
		d, err = time.Duration(min(n, int(maxWait/time.Second)))*time.Second, nil
	}
	if err != nil || d < 0 {
		return 0, errs.Bad("wait", strconv.Quote(text)+" is not a duration", "write it as 30s or 5m")
	}
	return min(d, maxWait), nil
}
