// Package operations keeps receipts true: it watches the records that
// operations are about and writes down how each operation ended.
package operations

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"lodge/internal/base/errs"
	"lodge/internal/model"
	"lodge/internal/model/forward"
	"lodge/internal/model/guest"
	"lodge/internal/model/image"
	"lodge/internal/model/kernel"
	"lodge/internal/model/network"
	"lodge/internal/model/operation"
	"lodge/internal/model/pool"
	"lodge/internal/model/snapshot"
	"lodge/internal/reconcile"
	"lodge/internal/store/tables"
)

// Ended operations beyond kept are forgotten, oldest first, slack at a time so
// that the list is not sorted for each one.
const (
	kept  = 1000
	slack = 100
)

// Reconciler settles operations. Make it with New.
//
// It remembers which subjects of an operation are not answered yet and which
// of them changed, so that the thousandth guest of one launch costs as little
// as the first. What it remembers is rebuilt from the records after a restart.
type Reconciler struct {
	// Ended, if set before the first Reconcile, is told of each operation that
	// ends, before its record says so: what it was about is durable already,
	// and should the record not become so, it is judged again after a restart.
	Ended func(tables.OperationRecord)

	tables *tables.Tables
	now    func() time.Time

	mu        sync.Mutex
	open      map[string]*receipt            // by operation
	bySubject map[string]map[string]struct{} // operations by the id of a subject
}

var _ reconcile.Reconciler = (*Reconciler)(nil)

type receipt struct {
	subjects map[string]operation.Subject // by id
	dirty    map[string]struct{}          // ids to look at
	waiting  map[string]struct{}          // ids not answered
	held     map[string]*model.Problem    // those of them that something holds up
	refused  map[string]*model.Problem
	shown    string // the id whose problem is told, as long as it has one
}

// New returns the reconciler that alone writes the status of operations.
func New(t *tables.Tables, now func() time.Time) *Reconciler {
	return &Reconciler{tables: t, now: now, open: map[string]*receipt{}, bySubject: map[string]map[string]struct{}{}}
}

// Name is what the graph shows.
func (r *Reconciler) Name() string { return "operations" }

// Writes says that operations' statuses are its own.
func (r *Reconciler) Writes() []model.Kind { return []model.Kind{operation.Kind} }

// Reads lists everything an operation can be about.
func (r *Reconciler) Reads() []reconcile.Read {
	reads := []reconcile.Read{{Kind: operation.Kind}}
	for _, k := range []model.Kind{guest.Kind, image.Kind, kernel.Kind, pool.Kind, network.Kind, forward.Kind, snapshot.Kind} {
		reads = append(reads, reconcile.Read{Kind: k, Wake: r.changed})
	}
	return reads
}

// All lists the operations, for a start.
func (r *Reconciler) All() []string {
	return r.tables.Operations.IDs()
}

// changed notes that a record changed and returns the operations about it.
func (r *Reconciler) changed(id string) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var wake []string
	for op := range r.bySubject[id] {
		r.open[op].dirty[id] = struct{}{}
		wake = append(wake, op)
	}
	return wake
}

// Reconcile brings one receipt up to date.
func (r *Reconciler) Reconcile(ctx context.Context, _ *slog.Logger, id string) (time.Duration, error) {
	op, err := r.tables.Operations.ByID(id)
	if errs.Is(err, errs.NotFound) {
		r.forget(id)
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	if op.Status.State.Final() {
		r.forget(id)
		return 0, r.prune(ctx)
	}
	count := r.look(op)
	next := Settle(op.Spec, op.Status, count, r.now())
	if op.Status.State == "" && next.State == operation.Working && next.Problem == nil {
		return 0, nil // what it reads as anyway: it would be one more write for every request
	}
	if next.State.Final() && r.Ended != nil {
		op.Status = next
		r.Ended(op)
	}
	if _, err := r.tables.Operations.SetStatus(ctx, id, func(s *operation.Status) error {
		*s = next
		return nil
	}); err != nil {
		return 0, err
	}
	return 0, nil
}

// look judges what changed of an operation's subjects. Before the first look
// everything has.
func (r *Reconciler) look(op tables.OperationRecord) Count {
	r.mu.Lock()
	o := r.open[op.ID]
	if o == nil {
		o = r.track(op)
	}
	dirty := o.dirty
	o.dirty = map[string]struct{}{}
	r.mu.Unlock()

	// Only Reconcile touches waiting and refused, never twice at once for
	// one operation.
	for id := range dirty {
		s := o.subjects[id]
		verdict, problem := Judge(s, r.answer(s), r.now())
		delete(o.waiting, id)
		delete(o.held, id)
		delete(o.refused, id)
		switch verdict {
		case Waiting:
			o.waiting[id] = struct{}{}
			if problem != nil {
				o.held[id] = problem
			}
		case Refused:
			o.refused[id] = problem
		case Answered:
			r.settled(op.ID, id)
		}
	}
	return o.count()
}

// count sums up without visiting every subject. The same problem is told until
// it is over, so that a receipt does not change with every attempt of others.
func (o *receipt) count() Count {
	c := Count{All: len(o.subjects), Waiting: len(o.waiting), Refused: len(o.refused)}
	from := o.refused
	if len(from) == 0 {
		from = o.held
	}
	if _, ok := from[o.shown]; !ok {
		o.shown = ""
		for id := range from {
			o.shown = id
			break
		}
	}
	if o.shown != "" {
		c.Subject, c.Problem = o.subjects[o.shown].String(), from[o.shown]
	}
	return c
}

// track starts to follow an operation. The lock is held.
func (r *Reconciler) track(op tables.OperationRecord) *receipt {
	n := len(op.Spec.Subjects)
	o := &receipt{
		subjects: make(map[string]operation.Subject, n), dirty: make(map[string]struct{}, n),
		waiting: map[string]struct{}{}, held: map[string]*model.Problem{}, refused: map[string]*model.Problem{},
	}
	for _, s := range op.Spec.Subjects {
		o.subjects[s.ID], o.dirty[s.ID] = s, struct{}{}
		if r.bySubject[s.ID] == nil {
			r.bySubject[s.ID] = map[string]struct{}{}
		}
		r.bySubject[s.ID][op.ID] = struct{}{}
	}
	r.open[op.ID] = o
	return o
}

// settled stops following one subject: what was answered once stays answered.
func (r *Reconciler) settled(op, id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.unlink(op, id)
}

func (r *Reconciler) unlink(op, id string) {
	delete(r.bySubject[id], op)
	if len(r.bySubject[id]) == 0 {
		delete(r.bySubject, id)
	}
}

func (r *Reconciler) forget(op string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	o := r.open[op]
	if o == nil {
		return
	}
	for id := range o.subjects {
		r.unlink(op, id)
	}
	delete(r.open, op)
}

// answer reads a subject's record.
func (r *Reconciler) answer(s operation.Subject) Answer {
	switch s.Kind {
	case guest.Kind:
		if g, err := r.tables.Guests.ByID(s.ID); err == nil {
			if s.Wish != 0 && g.Status.Refused >= s.Wish && g.Status.Refusal != nil {
				// The guest goes on as it was, which is no answer to this.
				return Answer{true, s.Generation, true, g.Status.Refusal}
			}
			return Answer{true, g.Status.Generation, g.Status.Doing == guest.Rest, g.Status.Problem}
		}
	case image.Kind:
		if i, err := r.tables.Images.ByID(s.ID); err == nil {
			return Answer{true, i.Status.Generation, i.Status.Digest != "" && i.Status.Wish >= i.Spec.Wish, i.Status.Problem}
		}
	case kernel.Kind:
		if k, err := r.tables.Kernels.ByID(s.ID); err == nil {
			return Answer{true, k.Status.Generation, k.Status.Digest != "" && k.Status.Wish >= k.Spec.Wish, k.Status.Problem}
		}
	case pool.Kind:
		if p, err := r.tables.Pools.ByID(s.ID); err == nil {
			return Answer{true, p.Status.Generation, p.Status.Ready, p.Status.Problem}
		}
	case network.Kind:
		if n, err := r.tables.Networks.ByID(s.ID); err == nil {
			return Answer{true, n.Status.Generation, n.Status.Ready, n.Status.Problem}
		}
	case snapshot.Kind:
		if s, err := r.tables.Snapshots.ByID(s.ID); err == nil {
			return Answer{true, s.Status.Generation, s.Status.Taken != nil, s.Status.Problem}
		}
	case forward.Kind:
		if f, err := r.tables.Forwards.ByID(s.ID); err == nil {
			// One whose guest is down waits for it, and nobody for that.
			return Answer{true, f.Status.Generation, true, f.Status.Problem}
		}
	}
	return Answer{}
}

// prune forgets the oldest ended operations.
func (r *Reconciler) prune(ctx context.Context) error {
	if r.tables.Operations.Len() < kept+slack {
		return nil
	}
	var ended []tables.OperationRecord
	for _, op := range r.tables.Operations.List() {
		if op.Status.State.Final() {
			ended = append(ended, op)
		}
	}
	if len(ended) <= kept {
		return nil
	}
	slices.SortFunc(ended, func(a, b tables.OperationRecord) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID))
	})
	for _, op := range ended[:len(ended)-kept] {
		if err := r.tables.Operations.Delete(ctx, op.ID); err != nil {
			return err
		}
	}
	return nil
}
