package store

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"slices"
	"strings"

	"lodge/internal/base/errs"
	"lodge/internal/model"
)

// Record is one thing of a table: what is wanted of it and what is so. Rev is
// the revision of its last change. Maps, slices and pointers inside a record
// that was read are shared with every other reader: don't write to them, except
// in the function given to Update or SetStatus, which works on a copy.
type Record[S, T any] struct {
	model.Meta
	Spec   S
	Status T
	Rev    Rev
}

// Change is a record that changed. The record is as it is now, and so may be
// newer than the change that is told; of a deleted one it is what was last
// wanted of it, without its status. To go on from here later, give At to Watch.
type Change[S, T any] struct {
	Record[S, T]
	Deleted bool
	At      Rev
}

// Table is all records of one kind. Reading takes microseconds and never fails
// for reasons outside the process.
type Table[S, T any] struct {
	s    *Store
	kind model.Kind

	// Guarded by the store's lock.
	byID   map[string]*row[S, T]
	sorted []*row[S, T] // by name, then id
}

type row[S, T any] struct {
	Record[S, T]
	specRev   Rev
	statusRev Rev // 0: no status was ever written
}

// NewTable returns the table of a kind, loaded, and follows it from then on.
// There is one table per kind and store; a second one is a fault of the program
// and panics. Ask Store.Err once all tables are made.
func NewTable[S, T any](s *Store, kind model.Kind) *Table[S, T] {
	t := &Table[S, T]{s: s, kind: kind, byID: map[string]*row[S, T]{}}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tables[kind] != nil {
		panic(fmt.Sprintf("store: two tables of kind %q", kind))
	}
	s.tables[kind] = t
	s.fill(kind, t)
	return t
}

func compareRows[S, T any](a, b *row[S, T]) int {
	if c := strings.Compare(a.Name, b.Name); c != 0 {
		return c
	}
	return strings.Compare(a.ID, b.ID)
}

// refresh decodes the parts of a record that changed. Called with the store
// locked.
func (t *Table[S, T]) refresh(id string, r *raw) error {
	old := t.byID[id]
	if old == nil {
		old = &row[S, T]{}
	}
	next := *old
	if next.specRev != r.spec.rev {
		if r.spec.err != nil {
			return r.spec.err
		}
		var spec S // never into the old one, whose maps have readers
		if err := json.Unmarshal(r.spec.body, &spec); err != nil {
			return err
		}
		next.Meta, next.Spec, next.specRev = r.spec.meta, spec, r.spec.rev
	}
	if next.statusRev != r.status.rev {
		var status T
		if r.status.rev > 0 {
			if r.status.err != nil {
				return r.status.err
			}
			if err := json.Unmarshal(r.status.body, &status); err != nil {
				return err
			}
		}
		next.Status, next.statusRev = status, r.status.rev
	}
	next.Rev = max(next.specRev, next.statusRev)
	if old.specRev > 0 && old.Name == next.Name {
		*old = next // it stays in its place
		return nil
	}
	t.remove(id)
	t.byID[id] = &next
	at, _ := slices.BinarySearchFunc(t.sorted, &next, compareRows[S, T])
	t.sorted = slices.Insert(t.sorted, at, &next)
	return nil
}

// remove forgets a record. Called with the store locked.
func (t *Table[S, T]) remove(id string) {
	old := t.byID[id]
	if old == nil {
		return
	}
	delete(t.byID, id)
	if at, ok := slices.BinarySearchFunc(t.sorted, old, compareRows[S, T]); ok {
		t.sorted = slices.Delete(t.sorted, at, at+1)
	}
}

// row returns a copy of the row of id.
func (t *Table[S, T]) row(id string) (row[S, T], error) {
	t.s.mu.RLock()
	defer t.s.mu.RUnlock()
	if r := t.byID[id]; r != nil {
		return *r, nil
	}
	return row[S, T]{}, t.missing(id)
}

func (t *Table[S, T]) missing(name string) error {
	return errs.Missing(model.Key{Kind: t.kind, Name: name}.String(), "")
}

// Get returns the record of a name. It is an error of kind NotFound, referring
// to "KIND/NAME", if there is none.
func (t *Table[S, T]) Get(name string) (Record[S, T], error) {
	t.s.mu.RLock()
	defer t.s.mu.RUnlock()
	at, _ := slices.BinarySearchFunc(t.sorted, name, func(r *row[S, T], name string) int {
		return strings.Compare(r.Name, name)
	})
	if at < len(t.sorted) && t.sorted[at].Name == name {
		return t.sorted[at].Record, nil
	}
	return Record[S, T]{}, t.missing(name)
}

// ByID returns the record of an id, under whatever name; NotFound if there is
// none.
func (t *Table[S, T]) ByID(id string) (Record[S, T], error) {
	r, err := t.row(id)
	return r.Record, err
}

// List returns all records in the order of their names.
func (t *Table[S, T]) List() []Record[S, T] {
	t.s.mu.RLock()
	defer t.s.mu.RUnlock()
	all := make([]Record[S, T], len(t.sorted))
	for i, r := range t.sorted {
		all[i] = r.Record
	}
	return all
}

// Len returns how many records there are.
func (t *Table[S, T]) Len() int {
	t.s.mu.RLock()
	defer t.s.mu.RUnlock()
	return len(t.sorted)
}

// IDs returns the ids of all records, in the order of their names.
func (t *Table[S, T]) IDs() []string {
	t.s.mu.RLock()
	defer t.s.mu.RUnlock()
	ids := make([]string, len(t.sorted))
	for i, r := range t.sorted {
		ids[i] = r.ID
	}
	return ids
}

// Watch yields every record that changes after from, as Store.Events does the
// events. What changed in one commit is told once per record.
func (t *Table[S, T]) Watch(ctx context.Context, from Rev) iter.Seq2[Change[S, T], error] {
	all := t.s.events(ctx, from)
	return func(yield func(Change[S, T], error) bool) {
		var last Event
		for e, err := range all {
			if err != nil {
				yield(Change[S, T]{}, err)
				return
			}
			if e.Kind != t.kind || e.Rev == last.Rev && e.ID == last.ID {
				continue
			}
			last = e.Event
			c := Change[S, T]{Deleted: e.Deleted, At: e.Rev}
			if e.Deleted {
				c.Record = t.forgotten(e)
			} else if c.Record, err = t.ByID(e.ID); err != nil {
				continue // deleted since, which is told later
			}
			if !yield(c, nil) {
				return
			}
		}
	}
}

// forgotten returns what is known of a record that was deleted by e.
func (t *Table[S, T]) forgotten(e logged) Record[S, T] {
	r := Record[S, T]{Meta: e.prev.meta, Rev: e.Rev}
	r.ID, r.Name = e.ID, e.Name
	if json.Unmarshal(e.prev.body, &r.Spec) != nil {
		var none S // it could not be read when it was there either: see Store.Err
		r.Spec = none
	}
	return r
}
