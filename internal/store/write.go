package store

import (
	"bytes"
	"context"
	"encoding/json"
	"maps"

	"lodge/internal/base/errs"
	"lodge/internal/base/ids"
	"lodge/internal/model"
)

// MetaOption sets a part of a new record's Meta.
type MetaOption func(*model.Meta)

// WithLabels gives a new record labels.
func WithLabels(labels map[string]string) MetaOption {
	return func(m *model.Meta) { m.Labels = maps.Clone(labels) }
}

// WithID gives a new record an id made before, as when directories were named
// after it already. The id must never have been used.
func WithID(id string) MetaOption { return func(m *model.Meta) { m.ID = id } }

// Create makes a record of generation 1 with an id of its own and no status. It
// is an error of kind Exists if there is one of that name.
func (t *Table[S, T]) Create(ctx context.Context, name string, spec S, opts ...MetaOption) (Record[S, T], error) {
	tx := t.s.Begin()
	r := t.CreateIn(tx, name, spec, opts...)
	if _, err := tx.Commit(ctx); err != nil {
		return Record[S, T]{}, err
	}
	return t.ByID(r.ID)
}

// CreateIn adds making a record to tx and returns the record as it will be, its
// Rev excepted.
func (t *Table[S, T]) CreateIn(tx *Tx, name string, spec S, opts ...MetaOption) Record[S, T] {
	at := now()
	r := Record[S, T]{Meta: model.Meta{Name: name, ID: ids.New(), Generation: 1, Created: at}, Spec: spec}
	for _, o := range opts {
		o(&r.Meta)
	}
	if err := checkID(r.ID); err != nil {
		tx.fail(err)
	}
	if name == "" {
		tx.fail(errs.Bad("name", "is empty", "give it a name"))
	}
	tx.created[r.ID] = true
	key := joinKey(t.kind, partSpec, r.ID)
	value, err := encodeSpec(at, r.Meta, spec)
	tx.check(key, absent)
	tx.put(key, value, err)
	tx.claim(t.kind, name, r.ID)
	return r
}

// Update changes the record of a name: change is given a copy and may edit
// Spec, Labels, Name and Deleting; the status is not its to edit. It is called
// again when someone else was faster, so it must do nothing else. If it returns
// an error that error is returned and nothing is changed; if it changes nothing
// nothing is written. A changed Spec raises Generation.
func (t *Table[S, T]) Update(ctx context.Context, name string, change func(*Record[S, T]) error) (Record[S, T], error) {
	for {
		r, err := t.Get(name)
		if err != nil {
			return Record[S, T]{}, err
		}
		edited, err := copyRecord(r)
		if err != nil {
			return Record[S, T]{}, err
		}
		if err := change(&edited); err != nil {
			return Record[S, T]{}, err
		}
		if same(r.Meta, edited.Meta) && same(r.Spec, edited.Spec) {
			return r, nil
		}
		tx := t.s.Begin()
		t.UpdateIn(tx, edited)
		_, err = tx.Commit(ctx)
		if err == nil {
			return t.ByID(r.ID)
		}
		if !errs.Is(err, errs.Conflict) || ctx.Err() != nil {
			return Record[S, T]{}, err
		}
	}
}

// UpdateIn adds to tx the change of a record to r, which was read and then
// edited (in Spec, Labels, Name and Deleting: see Update; to edit what Spec
// points to, copy it first). The commit fails with Conflict if the spec was
// changed since r.Rev. It returns the record as it will be, its Rev excepted.
func (t *Table[S, T]) UpdateIn(tx *Tx, r Record[S, T]) Record[S, T] {
	stored, err := t.row(r.ID)
	if err != nil {
		tx.fail(t.missing(r.Name))
		return r
	}
	if stored.specRev > r.Rev {
		tx.fail(conflictError(t.kind, stored.Name))
		return r
	}
	if r.Name == "" {
		tx.fail(errs.Bad("name", "is empty", "give it a name"))
	}
	r.Created, r.Generation = stored.Created, stored.Generation
	if !same(stored.Spec, r.Spec) {
		r.Generation++
	}
	key := joinKey(t.kind, partSpec, r.ID)
	value, err := encodeSpec(now(), r.Meta, r.Spec)
	tx.check(key, stored.specRev)
	tx.put(key, value, err)
	if r.Name != stored.Name {
		tx.release(t.kind, stored.Name)
		tx.claim(t.kind, r.Name, r.ID)
	}
	return r
}

// SetStatus changes what is known of the record of an id: change is given a
// copy, under the terms of Update. Nothing is written when nothing changed.
func (t *Table[S, T]) SetStatus(ctx context.Context, id string, change func(*T) error) (Record[S, T], error) {
	for {
		stored, err := t.row(id)
		if err != nil {
			return Record[S, T]{}, err
		}
		edited := stored.Record
		edited.Status = *new(T)
		if err := copyInto(&edited.Status, stored.Status); err != nil {
			return Record[S, T]{}, err
		}
		if err := change(&edited.Status); err != nil {
			return Record[S, T]{}, err
		}
		if same(stored.Status, edited.Status) {
			return stored.Record, nil
		}
		tx := t.s.Begin()
		t.SetStatusIn(tx, edited)
		_, err = tx.Commit(ctx)
		if err == nil {
			return t.ByID(id)
		}
		if !errs.Is(err, errs.Conflict) || ctx.Err() != nil {
			return Record[S, T]{}, err
		}
	}
}

// SetStatusIn adds to tx the writing of r.Status, of a record that was read or
// that tx makes. The commit fails with Conflict if the status was changed since
// r.Rev, or if the record is gone.
func (t *Table[S, T]) SetStatusIn(tx *Tx, r Record[S, T]) {
	read := absent
	if !tx.created[r.ID] {
		stored, err := t.row(r.ID)
		if err != nil || stored.statusRev > r.Rev {
			tx.fail(conflictError(t.kind, r.Name))
			return
		}
		tx.check(joinKey(t.kind, partSpec, r.ID), anyRev)
		read = stored.statusRev
	}
	key := joinKey(t.kind, partStatus, r.ID)
	value, err := encodeStatus(now(), r.Status)
	tx.check(key, read)
	tx.put(key, value, err)
}

// Delete removes the record of an id with all its parts. It is no error if
// there is none.
func (t *Table[S, T]) Delete(ctx context.Context, id string) error {
	for {
		r, err := t.ByID(id)
		if err != nil {
			return nil
		}
		tx := t.s.Begin()
		t.DeleteIn(tx, r)
		_, err = tx.Commit(ctx)
		if !errs.Is(err, errs.Conflict) || ctx.Err() != nil {
			return err
		}
	}
}

// DeleteIn adds removing r to tx. The commit fails with Conflict if its spec
// was changed since r.Rev or it is gone already.
func (t *Table[S, T]) DeleteIn(tx *Tx, r Record[S, T]) {
	stored, err := t.row(r.ID)
	if err != nil || stored.specRev > r.Rev {
		tx.fail(conflictError(t.kind, r.Name))
		return
	}
	key := joinKey(t.kind, partSpec, r.ID)
	tx.check(key, stored.specRev)
	tx.do(op{key: key, delete: true})
	tx.do(op{key: joinKey(t.kind, partStatus, r.ID), delete: true})
	tx.release(t.kind, stored.Name)
}

// same reports whether a and b are stored alike.
func same(a, b any) bool {
	left, errLeft := json.Marshal(a)
	right, errRight := json.Marshal(b)
	return errLeft == nil && errRight == nil && bytes.Equal(left, right)
}

// copyInto makes to a copy of from that shares nothing with it, by the way
// everything stored goes anyhow.
func copyInto(to, from any) error {
	raw, err := json.Marshal(from)
	if err == nil {
		err = json.Unmarshal(raw, to)
	}
	if err != nil {
		return &errs.Error{Op: "store.copy", Kind: errs.Internal, Msg: "cannot be encoded", Err: err}
	}
	return nil
}

func copyRecord[S, T any](r Record[S, T]) (Record[S, T], error) {
	c := Record[S, T]{Meta: r.Meta, Rev: r.Rev}
	c.Labels = maps.Clone(r.Labels)
	if r.Deleting != nil {
		at := *r.Deleting
		c.Deleting = &at
	}
	if err := copyInto(&c.Spec, r.Spec); err != nil {
		return c, err
	}
	return c, copyInto(&c.Status, r.Status)
}
