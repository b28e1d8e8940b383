package store

import (
	"context"
	"fmt"
	"strings"

	"lodge/internal/base/errs"
	"lodge/internal/model"
)

// Tx gathers changes that become true together or not at all. It is for one
// goroutine, one Commit and any number of records of any tables of one store;
// a record may be changed only once in it.
type Tx struct {
	s        *Store
	err      error // the first thing that makes committing senseless
	checks   []check
	ops      []op
	at       map[string]int    // key to its op
	claimed  map[string]string // name key to the id that takes it
	released map[string]bool   // name keys that lose their record
	created  map[string]bool   // ids made by this transaction
}

// Begin starts a transaction. It costs nothing to drop it.
func (s *Store) Begin() *Tx {
	return &Tx{
		s: s, at: map[string]int{}, claimed: map[string]string{},
		released: map[string]bool{}, created: map[string]bool{},
	}
}

// fail lets Commit answer with the first error of building the transaction.
func (t *Tx) fail(err error) {
	if t.err == nil {
		t.err = err
	}
}

func (t *Tx) check(key string, rev Rev) {
	t.checks = append(t.checks, check{key: key, rev: rev})
}

func (t *Tx) do(o op) {
	if _, twice := t.at[o.key]; twice {
		t.fail(&errs.Error{Op: "store.tx", Kind: errs.Internal, Ref: o.key, Msg: "changed twice in one transaction"})
		return
	}
	t.at[o.key] = len(t.ops)
	t.ops = append(t.ops, o)
}

func (t *Tx) put(key string, value []byte, err error) {
	if err != nil {
		t.fail(&errs.Error{Op: "store.tx", Kind: errs.Internal, Ref: key, Msg: "cannot be encoded", Err: err})
		return
	}
	t.do(op{key: key, value: value})
}

// claim takes a name for the record id.
func (t *Tx) claim(kind model.Kind, name, id string) {
	key := joinKey(kind, partName, name)
	if t.claimed[key] != "" {
		t.fail(existsError(kind, name))
		return
	}
	t.claimed[key] = id
}

// release frees a name. That it is this record's is held by the check on the
// record itself.
func (t *Tx) release(kind model.Kind, name string) {
	t.released[joinKey(kind, partName, name)] = true
}

// names settles who has which name in the end: within one transaction records
// may swap names.
func (t *Tx) names() {
	for key, id := range t.claimed {
		if !t.released[key] {
			t.check(key, absent)
		}
		t.do(op{key: key, value: []byte(id)})
	}
	for key := range t.released {
		if t.claimed[key] == "" {
			t.do(op{key: key, delete: true})
		}
	}
	clear(t.claimed)
	clear(t.released)
}

// Commit makes the changes true and returns when they are durable and visible
// in the tables. It fails with Exists naming the record that is in the way,
// with Conflict when a record was changed since it was read (read again and
// try again), and with Invalid when there are too many changes for one
// transaction. After an error of kind Unavailable or Cancelled it is unknown
// whether they became true.
func (t *Tx) Commit(ctx context.Context) (Rev, error) {
	if t.err != nil {
		return 0, t.err
	}
	t.names()
	if err := t.admit(); err != nil {
		return 0, err
	}
	if len(t.ops) == 0 {
		return t.s.Rev(), nil
	}
	rev, failed, err := t.s.kv.commit(ctx, t.checks, t.ops)
	if err != nil {
		return 0, err
	}
	if failed != nil {
		return 0, t.s.refused(ctx, failed)
	}
	return rev, t.s.await(ctx, rev)
}

// admit says why the transaction may not even be tried.
func (t *Tx) admit() error {
	if err := t.s.Err(); err != nil {
		return err
	}
	select {
	case <-t.s.done:
		return closedError()
	default:
	}
	// The server counts the two each on its own.
	if n := max(len(t.checks), len(t.ops)); n > t.s.maxOps {
		return &errs.Error{
			Op: "store.tx", Kind: errs.Invalid,
			Msg:  fmt.Sprintf("%d changes and conditions are too many for one transaction, the limit is %d", n, t.s.maxOps),
			Hint: "ask for fewer things at once",
		}
	}
	for _, o := range t.ops {
		if !o.delete {
			return t.s.guard()
		}
	}
	return nil
}

// refused waits until the twin shows why a commit was refused, so that who
// reads and tries again sees it, and words it.
func (s *Store) refused(ctx context.Context, failed []failure) error {
	var worst error
	for _, f := range failed {
		if f.found > 0 {
			if err := s.await(ctx, f.found); err != nil {
				return err
			}
		} else if err := s.awaitGone(ctx, f.key); err != nil {
			return err
		}
		kind, which, rest := splitKey(f.key)
		switch {
		case which == partName:
			return existsError(kind, rest)
		case f.rev == absent && which == partSpec:
			worst = existsError(kind, s.nameOf(kind, rest))
		case worst == nil:
			worst = conflictError(kind, s.nameOf(kind, rest))
		}
	}
	return worst
}

// awaitGone returns when the twin knows that the part at key is no more.
func (s *Store) awaitGone(ctx context.Context, key string) error {
	kind, which, id := splitKey(key)
	for {
		s.mu.RLock()
		r, next := s.raw[kind][id], s.rev+1
		gone := r == nil || which == partSpec && r.spec.rev == 0 || which == partStatus && r.status.rev == 0
		s.mu.RUnlock()
		if gone {
			return nil
		}
		if err := s.await(ctx, next); err != nil {
			return err
		}
	}
}

// nameOf returns the name of a record, or its id when it is not there.
func (s *Store) nameOf(kind model.Kind, id string) string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if r := s.raw[kind][id]; r != nil && r.spec.meta.Name != "" {
		return r.spec.meta.Name
	}
	return id
}

func existsError(kind model.Kind, name string) error {
	return &errs.Error{Kind: errs.Exists, Ref: model.Key{Kind: kind, Name: name}.String(), Msg: "exists already"}
}

func conflictError(kind model.Kind, name string) error {
	return &errs.Error{
		Kind: errs.Conflict, Ref: model.Key{Kind: kind, Name: name}.String(),
		Msg: "was changed by someone else meanwhile", Hint: "look at it again and try again",
	}
}

// checkID refuses what can't be a key's last part on its own.
func checkID(id string) error {
	if id == "" || strings.ContainsAny(id, "/\x00") {
		return &errs.Error{Op: "store.tx", Kind: errs.Internal, Ref: id, Msg: "is no id"}
	}
	return nil
}
