// Package store keeps records in typed tables, in memory or in etcd.
//
// A record has parts with one writer each: the spec, with what the house keeps
// about the record, and the status. They lie at KIND/spec/ID and
// KIND/status/ID; KIND/name/NAME holds the ID of the record of that name, which
// makes names unique and a rename one transaction.
//
// Every store keeps a twin of its content in memory. Reading never leaves the
// process and never decodes. The twin is always the store as it was at one
// revision, Rev, and a write returns only when the twin has it.
package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"lodge/internal/base/errs"
	"lodge/internal/model"
)

// Rev counts the commits of a store. It rises with every commit and never goes
// back; what else shares the server may make it skip numbers.
type Rev int64

// DefaultMaxOps is how many changes or conditions one transaction may have on
// a server with etcd's own limit (128), with room for what the store adds.
const DefaultMaxOps = 120

// MaxOps is the limit of a memory store, and what an embedded server should be
// set to, so that both refuse the same transactions.
const MaxOps = 4096

// Store is a set of tables with one order of changes. It is safe for use by
// many goroutines.
type Store struct {
	kv     kv
	maxOps int
	guard  func() error
	stop   context.CancelFunc
	done   chan struct{} // closed when the twin no longer follows

	mu      sync.RWMutex
	rev     Rev
	raw     map[model.Kind]map[string]*raw
	tables  map[model.Kind]follower
	log     log
	waiters map[*waiter]struct{}
	subs    map[chan struct{}]struct{}
	fault   error
}

// raw is a record's parts, in the types that all tables share.
type raw struct {
	spec   part
	status part
}

// follower is a table of whatever types, as the store sees it. Both are called
// with the store locked.
type follower interface {
	refresh(id string, r *raw) error
	remove(id string)
}

// waiter is a write that waits until the twin has it.
type waiter struct {
	rev   Rev
	ready chan struct{}
}

// Option sets what a store can't know by itself.
type Option func(*Store)

// WithMaxOps tells how many operations the server takes in one transaction.
func WithMaxOps(n int) Option { return func(s *Store) { s.maxOps = n } }

// WithGuard makes every commit that adds something ask guard first; its error
// refuses the commit. Deleting is always allowed.
func WithGuard(guard func() error) Option { return func(s *Store) { s.guard = guard } }

// NewMemory returns an empty store that is gone with the process: for tests,
// with the behaviour of the real one.
func NewMemory() *Store {
	return newMemoryOn(newMemory())
}

func newMemoryOn(m *memory) *Store {
	s, err := open(context.Background(), m, MaxOps)
	if err != nil {
		panic(err) // loading an empty map can't fail
	}
	return s
}

// NewEtcd returns the store that lies under prefix, and loads it. The client
// stays the caller's and must outlive the store. It is an error of kind
// Unavailable if the server doesn't answer.
func NewEtcd(ctx context.Context, client *clientv3.Client, prefix string, opts ...Option) (*Store, error) {
	return open(ctx, &etcd{client: client, prefix: strings.TrimRight(prefix, "/") + "/"}, DefaultMaxOps, opts...)
}

func open(ctx context.Context, k kv, maxOps int, opts ...Option) (*Store, error) {
	s := &Store{
		kv:      k,
		maxOps:  maxOps,
		guard:   func() error { return nil },
		done:    make(chan struct{}),
		log:     log{keep: logLength},
		raw:     map[model.Kind]map[string]*raw{},
		tables:  map[model.Kind]follower{},
		waiters: map[*waiter]struct{}{},
		subs:    map[chan struct{}]struct{}{},
	}
	for _, o := range opts {
		o(s)
	}
	if err := s.reload(ctx); err != nil {
		return nil, err
	}
	following, stop := context.WithCancel(context.Background())
	s.stop = stop
	go s.follow(following)
	return s, nil
}

// Close stops following and ends every Events and Watch. Reading goes on
// answering with what was known last; writing is refused.
func (s *Store) Close() error {
	s.stop()
	<-s.done
	return s.kv.close()
}

// Err returns what keeps the store from being trusted: a record that this
// program can't read, as when a newer one wrote it. Such a record is in no
// table, so whoever opens a store must ask once its tables are made, and go no
// further; every commit is refused with the same error.
func (s *Store) Err() error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.fault
}

// Rev returns the revision that the tables show.
func (s *Store) Rev() Rev {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.rev
}

func closedError() error {
	return &errs.Error{Op: "store", Kind: errs.Unavailable, Msg: "the store is closed"}
}

// follow keeps the twin up with the server until the store is closed.
func (s *Store) follow(ctx context.Context) {
	defer close(s.done)
	for {
		var failed error
		for b, err := range s.kv.watch(ctx, s.Rev(), false) {
			if err != nil {
				failed = err
				break
			}
			s.apply(b)
		}
		if errors.Is(failed, errCompacted) && s.reload(ctx) == nil {
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(followRetry):
		}
	}
}

// followRetry is the pause before the server is asked again after it failed.
const followRetry = 100 * time.Millisecond

// reload reads everything anew. Who follows the events from before is told
// that they are gone, and must look at everything again as well.
func (s *Store) reload(ctx context.Context) error {
	entries, rev, err := s.kv.load(ctx)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.raw
	s.raw = map[model.Kind]map[string]*raw{}
	for _, e := range entries {
		for _, c := range changesOf(batch{rev: e.rev, updates: []update{{key: e.key, value: e.value}}}) {
			s.store(&c, e.rev)
		}
	}
	for kind, t := range s.tables {
		for id := range before[kind] {
			if s.raw[kind][id] == nil {
				t.remove(id)
			}
		}
		s.fill(kind, t)
	}
	s.rev = rev
	s.log.start, s.log.events = rev, nil
	s.tell()
	return nil
}

// fill brings a table up to what is stored. Called with the store locked.
func (s *Store) fill(kind model.Kind, t follower) {
	for id, r := range s.raw[kind] {
		if r.spec.rev == 0 {
			continue // a status whose record is gone
		}
		if err := t.refresh(id, r); err != nil {
			s.broken(kind, id, err)
		}
	}
}

// apply takes one commit into the twin.
func (s *Store) apply(b batch) {
	deletedAt := now()
	changes := changesOf(b)
	s.mu.Lock()
	defer s.mu.Unlock()
	if b.rev <= s.rev {
		return
	}
	for i := range changes {
		s.store(&changes[i], b.rev)
	}
	for i, c := range changes {
		t := s.tables[c.kind]
		if t == nil || i > 0 && changes[i-1].kind == c.kind && changes[i-1].id == c.id {
			continue // as it is after the whole commit, so once is enough
		}
		if have := s.raw[c.kind][c.id]; have == nil || have.spec.rev == 0 {
			t.remove(c.id)
		} else if err := t.refresh(c.id, have); err != nil {
			s.broken(c.kind, c.id, err)
		}
	}
	s.rev = b.rev
	s.log.add(s.eventsOf(b.rev, changes, deletedAt))
	s.tell()
}

// change is an update of a record's part, decoded.
type change struct {
	kind    model.Kind
	id      string
	which   string
	deleted bool
	now     part
	prev    part
}

// changesOf decodes the parts in b; what only serves the names is left out.
func changesOf(b batch) []change {
	changes := make([]change, 0, len(b.updates))
	for _, u := range b.updates {
		kind, which, id := splitKey(u.key)
		if which == partName {
			continue
		}
		c := change{kind: kind, which: which, id: id, deleted: u.deleted}
		if !u.deleted {
			c.now = decode(which, u.value, b.rev)
		} else if u.prev != nil {
			c.prev = decode(which, u.prev, b.rev)
		}
		changes = append(changes, c)
	}
	return changes
}

// store puts one change into the twin, and into the change what it replaces.
func (s *Store) store(c *change, rev Rev) {
	of := s.raw[c.kind]
	if of == nil {
		of = map[string]*raw{}
		s.raw[c.kind] = of
	}
	r := of[c.id]
	if r == nil {
		r = &raw{}
		of[c.id] = r
	}
	p := &r.status
	if c.which == partSpec {
		p = &r.spec
	}
	c.prev, *p = *p, c.now
	p.rev = 0
	if !c.deleted {
		p.rev = rev
	}
	if r.spec.rev == 0 && r.status.rev == 0 {
		delete(of, c.id)
	}
}

// broken remembers the first record that can't be read.
func (s *Store) broken(kind model.Kind, id string, err error) {
	if s.fault == nil {
		s.fault = &errs.Error{
			Op: "store", Kind: errs.Internal, Ref: string(kind) + "/" + id,
			Msg: "this record cannot be read", Hint: "was it written by a newer version?", Err: err,
		}
	}
}

// tell lets go of the writes whose revision has come and wakes who follows the
// events.
func (s *Store) tell() {
	for w := range s.waiters {
		if w.rev <= s.rev {
			close(w.ready)
			delete(s.waiters, w)
		}
	}
	for ch := range s.subs {
		select {
		case ch <- struct{}{}:
		default: // it has been told already and not looked yet
		}
	}
}

// await returns when the twin has reached rev.
func (s *Store) await(ctx context.Context, rev Rev) error {
	s.mu.Lock()
	if s.rev >= rev {
		s.mu.Unlock()
		return nil
	}
	w := &waiter{rev: rev, ready: make(chan struct{})}
	s.waiters[w] = struct{}{}
	s.mu.Unlock()
	select {
	case <-w.ready:
		return nil
	case <-ctx.Done():
		s.forget(w)
		return etcdError("store.await", ctx.Err())
	case <-s.done:
		s.forget(w)
		return closedError()
	}
}

func (s *Store) forget(w *waiter) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.waiters, w)
}

// splitKey takes a key apart; the last part may itself hold slashes.
func splitKey(key string) (kind model.Kind, which, rest string) {
	k, r, _ := strings.Cut(key, "/")
	which, rest, _ = strings.Cut(r, "/")
	return model.Kind(k), which, rest
}

func joinKey(kind model.Kind, which, rest string) string {
	return fmt.Sprintf("%s/%s/%s", kind, which, rest)
}
