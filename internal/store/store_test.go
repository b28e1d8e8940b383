package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"lodge/internal/base/errs"
	"lodge/internal/base/ids"
	"lodge/internal/model"
)

// TestSuite holds both ways of keeping a store to the same behaviour.
func TestSuite(t *testing.T) {
	suite := []struct {
		name string
		run  func(*testing.T, place)
	}{
		{"create", testCreate},
		{"names are unique", testUniqueNames},
		{"update", testUpdate},
		{"update works on a copy", testUpdateCopies},
		{"rename", testRename},
		{"swap names", testSwapNames},
		{"status", testStatus},
		{"delete", testDelete},
		{"transaction is atomic", testAtomic},
		{"transaction conflicts", testConflicts},
		{"transaction too large", testTooLarge},
		{"guard", testGuard},
		{"reopen", testReopen},
		{"events", testEvents},
		{"events resume", testEventsResume},
		{"events long after", testEventsPastLog},
		{"compacted", testCompacted},
		{"revision of the future", testFutureRevision},
		{"watch", testWatch},
		{"closed", testClosed},
		{"many writers", testManyWriters},
		{"many writers of one record", testContention},
		{"unreadable record", testUnreadable},
	}
	for _, b := range backends(t) {
		t.Run(b.name, func(t *testing.T) {
			for _, c := range suite {
				t.Run(c.name, func(t *testing.T) { c.run(t, b.fresh()) })
			}
		})
	}
}

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func wantKind(t *testing.T, err error, kind errs.Kind, ref string) {
	t.Helper()
	if !errs.Is(err, kind) {
		t.Fatalf("error %v, want kind %v", err, kind)
	}
	if e, _ := errors.AsType[*errs.Error](err); ref != "" && e.Ref != ref {
		t.Fatalf("error refers to %q, want %q", e.Ref, ref)
	}
}

func names(table *things) (all []string) {
	for _, r := range table.List() {
		all = append(all, r.Name)
	}
	return all
}

func testCreate(t *testing.T, p place) {
	s, table := openIn(t, p)
	before := s.Rev()
	r := must[Record[thing, state]](t)(table.Create(t.Context(), "debian/12", thing{Size: 3}, WithLabels(map[string]string{"a": "b"})))
	if !ids.Valid(r.ID) || r.Generation != 1 || r.Created.IsZero() || r.Labels["a"] != "b" || r.Spec.Size != 3 {
		t.Errorf("created %+v", r)
	}
	if r.Rev <= before || s.Rev() != r.Rev {
		t.Errorf("revision %d, store at %d, was at %d", r.Rev, s.Rev(), before)
	}
	byName := must[Record[thing, state]](t)(table.Get("debian/12"))
	byID := must[Record[thing, state]](t)(table.ByID(r.ID))
	if !same(byName, r) || !same(byID, r) {
		t.Errorf("by name %+v, by id %+v, created %+v", byName, byID, r)
	}
	own := must[Record[thing, state]](t)(table.Create(t.Context(), "a", thing{}, WithID("my-own")))
	if own.ID != "my-own" {
		t.Errorf("id %q", own.ID)
	}
	if got := names(table); !slices.Equal(got, []string{"a", "debian/12"}) || table.Len() != 2 {
		t.Errorf("list %q, length %d", got, table.Len())
	}
	_, err := table.Get("nobody")
	wantKind(t, err, errs.NotFound, "thing/nobody")
	_, err = table.Create(t.Context(), "", thing{})
	wantKind(t, err, errs.Invalid, "")
	_, err = table.Create(t.Context(), "b", thing{}, WithID("a/b"))
	wantKind(t, err, errs.Internal, "")
}

func testUniqueNames(t *testing.T, p place) {
	_, table := openIn(t, p)
	first := must[Record[thing, state]](t)(table.Create(t.Context(), "a", thing{Size: 1}))
	_, err := table.Create(t.Context(), "a", thing{Size: 2})
	wantKind(t, err, errs.Exists, "thing/a")
	_, err = table.Create(t.Context(), "b", thing{}, WithID(first.ID))
	wantKind(t, err, errs.Exists, "thing/a")
	tx := table.s.Begin()
	table.CreateIn(tx, "c", thing{})
	table.CreateIn(tx, "c", thing{})
	_, err = tx.Commit(t.Context())
	wantKind(t, err, errs.Exists, "thing/c")
	if got := names(table); !slices.Equal(got, []string{"a"}) {
		t.Errorf("list %q", got)
	}
}

func testUpdate(t *testing.T, p place) {
	s, table := openIn(t, p)
	r := must[Record[thing, state]](t)(table.Create(t.Context(), "a", thing{Size: 1}))
	size := func(n int) func(*Record[thing, state]) error {
		return func(r *Record[thing, state]) error { r.Spec.Size = n; return nil }
	}
	u := must[Record[thing, state]](t)(table.Update(t.Context(), "a", size(2)))
	if u.Spec.Size != 2 || u.Generation != 2 || u.ID != r.ID || !u.Created.Equal(r.Created) || u.Rev <= r.Rev {
		t.Errorf("updated %+v from %+v", u, r)
	}
	rev := s.Rev()
	again := must[Record[thing, state]](t)(table.Update(t.Context(), "a", size(2)))
	if again.Generation != 2 || s.Rev() != rev {
		t.Errorf("an update that changes nothing wrote revision %d, was %d", s.Rev(), rev)
	}
	labelled := must[Record[thing, state]](t)(table.Update(t.Context(), "a", func(r *Record[thing, state]) error {
		r.Labels = map[string]string{"x": "y"}
		at := now()
		r.Deleting = &at
		return nil
	}))
	if labelled.Generation != 2 || labelled.Labels["x"] != "y" || labelled.Deleting == nil {
		t.Errorf("labelled %+v", labelled)
	}
	mine := errors.New("mine")
	_, err := table.Update(t.Context(), "a", func(r *Record[thing, state]) error { r.Spec.Size = 9; return mine })
	if !errors.Is(err, mine) {
		t.Errorf("error %v, want the function's own", err)
	}
	if r := must[Record[thing, state]](t)(table.Get("a")); r.Spec.Size != 2 {
		t.Errorf("size %d after an update that gave up", r.Spec.Size)
	}
	_, err = table.Update(t.Context(), "nobody", size(1))
	wantKind(t, err, errs.NotFound, "thing/nobody")
}

func testUpdateCopies(t *testing.T, p place) {
	_, table := openIn(t, p)
	r := must[Record[thing, state]](t)(table.Create(t.Context(), "a", thing{Tags: map[string]int{"x": 1}}, WithLabels(map[string]string{"l": "1"})))
	r = must[Record[thing, state]](t)(table.SetStatus(t.Context(), r.ID, func(s *state) error { s.Notes = []string{"first"}; return nil }))
	gaveUp := errors.New("gave up")
	_, err := table.Update(t.Context(), "a", func(r *Record[thing, state]) error {
		r.Spec.Tags["x"], r.Labels["l"], r.Status.Notes[0] = 2, "2", "second"
		return gaveUp
	})
	if !errors.Is(err, gaveUp) {
		t.Fatal(err)
	}
	_, err = table.SetStatus(t.Context(), r.ID, func(s *state) error { s.Notes[0] = "third"; return gaveUp })
	if !errors.Is(err, gaveUp) {
		t.Fatal(err)
	}
	if got := must[Record[thing, state]](t)(table.Get("a")); !same(got, r) {
		t.Errorf("what was given up shows: %+v, was %+v", got, r)
	}
	// A record that was read before stays as it was when another writes.
	must[Record[thing, state]](t)(table.Update(t.Context(), "a", func(r *Record[thing, state]) error { r.Spec.Tags["x"] = 5; return nil }))
	if r.Spec.Tags["x"] != 1 {
		t.Errorf("an update wrote into a record that was read before: %+v", r)
	}
}

func testRename(t *testing.T, p place) {
	_, table := openIn(t, p)
	r := must[Record[thing, state]](t)(table.Create(t.Context(), "a", thing{Size: 1}))
	must[Record[thing, state]](t)(table.Create(t.Context(), "b", thing{Size: 2}))
	rename := func(to string) func(*Record[thing, state]) error {
		return func(r *Record[thing, state]) error { r.Name = to; return nil }
	}
	_, err := table.Update(t.Context(), "a", rename("b"))
	wantKind(t, err, errs.Exists, "thing/b")
	_, err = table.Update(t.Context(), "a", rename(""))
	wantKind(t, err, errs.Invalid, "")
	u := must[Record[thing, state]](t)(table.Update(t.Context(), "a", rename("z/1")))
	if u.ID != r.ID || u.Generation != 1 || u.Name != "z/1" {
		t.Errorf("renamed %+v", u)
	}
	_, err = table.Get("a")
	wantKind(t, err, errs.NotFound, "thing/a")
	must[Record[thing, state]](t)(table.Create(t.Context(), "a", thing{Size: 3}))
	if got := names(table); !slices.Equal(got, []string{"a", "b", "z/1"}) {
		t.Errorf("list %q", got)
	}
}

func testSwapNames(t *testing.T, p place) {
	s, table := openIn(t, p)
	a := must[Record[thing, state]](t)(table.Create(t.Context(), "a", thing{Size: 1}))
	b := must[Record[thing, state]](t)(table.Create(t.Context(), "b", thing{Size: 2}))
	a.Name, b.Name = "b", "a"
	tx := s.Begin()
	table.UpdateIn(tx, a)
	table.UpdateIn(tx, b)
	must[Rev](t)(tx.Commit(t.Context()))
	if r := must[Record[thing, state]](t)(table.Get("a")); r.ID != b.ID {
		t.Errorf("a is %+v", r)
	}
	if r := must[Record[thing, state]](t)(table.Get("b")); r.ID != a.ID {
		t.Errorf("b is %+v", r)
	}
	// The index must have followed: both names are taken, and free once deleted.
	for _, n := range []string{"a", "b"} {
		_, err := table.Create(t.Context(), n, thing{})
		wantKind(t, err, errs.Exists, "thing/"+n)
	}
	tx = s.Begin()
	now := must[Record[thing, state]](t)(table.Get("a"))
	table.DeleteIn(tx, now)
	table.CreateIn(tx, "a", thing{Size: 5})
	must[Rev](t)(tx.Commit(t.Context()))
	if r := must[Record[thing, state]](t)(table.Get("a")); r.Spec.Size != 5 {
		t.Errorf("a is %+v after it was replaced", r)
	}
}

func testStatus(t *testing.T, p place) {
	s, table := openIn(t, p)
	r := must[Record[thing, state]](t)(table.Create(t.Context(), "a", thing{Size: 1}))
	phase := func(to string) func(*state) error {
		return func(s *state) error { s.Phase = to; return nil }
	}
	u := must[Record[thing, state]](t)(table.SetStatus(t.Context(), r.ID, phase("up")))
	if u.Status.Phase != "up" || u.Generation != 1 || u.Spec.Size != 1 || u.Rev <= r.Rev {
		t.Errorf("after the status was set: %+v", u)
	}
	rev := s.Rev()
	must[Record[thing, state]](t)(table.SetStatus(t.Context(), r.ID, phase("up")))
	if s.Rev() != rev {
		t.Errorf("the same status was written again")
	}
	// A status must not be in the way of a spec, nor the other way round.
	r.Spec.Size = 2
	tx := s.Begin()
	table.UpdateIn(tx, r)
	if _, err := tx.Commit(t.Context()); err != nil {
		t.Errorf("a status in between makes changing the spec fail: %v", err)
	}
	if got := must[Record[thing, state]](t)(table.Get("a")); got.Spec.Size != 2 || got.Status.Phase != "up" {
		t.Errorf("both parts: %+v", got)
	}
	u.Status.Phase = "old news"
	must[Record[thing, state]](t)(table.SetStatus(t.Context(), r.ID, phase("down")))
	tx = s.Begin()
	table.SetStatusIn(tx, u)
	_, err := tx.Commit(t.Context())
	wantKind(t, err, errs.Conflict, "thing/a")
	_, err = table.SetStatus(t.Context(), "nobody", phase("up"))
	wantKind(t, err, errs.NotFound, "thing/nobody")

	tx = s.Begin()
	n := table.CreateIn(tx, "b", thing{})
	n.Status.Phase = "born"
	table.SetStatusIn(tx, n)
	must[Rev](t)(tx.Commit(t.Context()))
	if got := must[Record[thing, state]](t)(table.Get("b")); got.Status.Phase != "born" {
		t.Errorf("made with a status: %+v", got)
	}
}

func testDelete(t *testing.T, p place) {
	_, table := openIn(t, p)
	r := must[Record[thing, state]](t)(table.Create(t.Context(), "a", thing{Size: 1}))
	must[Record[thing, state]](t)(table.SetStatus(t.Context(), r.ID, func(s *state) error { s.Phase = "up"; return nil }))
	for range 2 {
		if err := table.Delete(t.Context(), r.ID); err != nil {
			t.Fatal(err)
		}
	}
	_, err := table.ByID(r.ID)
	wantKind(t, err, errs.NotFound, "thing/"+r.ID)
	again := must[Record[thing, state]](t)(table.Create(t.Context(), "a", thing{}))
	if again.ID == r.ID || again.Status.Phase != "" || table.Len() != 1 {
		t.Errorf("the next of that name: %+v", again)
	}
	s := table.s
	tx := s.Begin()
	table.DeleteIn(tx, r)
	_, err = tx.Commit(t.Context())
	wantKind(t, err, errs.Conflict, "thing/a")
}

func testAtomic(t *testing.T, p place) {
	s, table := openIn(t, p)
	other := NewTable[thing, state](s, "other")
	a := must[Record[thing, state]](t)(table.Create(t.Context(), "a", thing{}))
	must[Record[thing, state]](t)(other.Create(t.Context(), "taken", thing{}))
	rev := s.Rev()

	tx := s.Begin()
	table.CreateIn(tx, "b", thing{})
	a.Spec.Size = 9
	table.UpdateIn(tx, a)
	other.CreateIn(tx, "taken", thing{})
	_, err := tx.Commit(t.Context())
	wantKind(t, err, errs.Exists, "other/taken")
	if got := must[Record[thing, state]](t)(table.Get("a")); s.Rev() != rev || table.Len() != 1 || got.Spec.Size != 0 {
		t.Errorf("something of a refused transaction became true: revision %d was %d, %+v", s.Rev(), rev, got)
	}

	tx = s.Begin()
	will := table.CreateIn(tx, "b", thing{Size: 4})
	changed := table.UpdateIn(tx, a)
	other.CreateIn(tx, "free", thing{})
	committed := must[Rev](t)(tx.Commit(t.Context()))
	b := must[Record[thing, state]](t)(table.Get("b"))
	a = must[Record[thing, state]](t)(table.Get("a"))
	if b.Rev != committed || a.Rev != committed || a.Generation != changed.Generation || a.Generation != 2 {
		t.Errorf("committed at %d: %+v, %+v", committed, a, b)
	}
	will.Rev = b.Rev
	if !same(will, b) {
		t.Errorf("it was to be %+v and is %+v", will, b)
	}
	if rev, err := s.Begin().Commit(t.Context()); err != nil || rev != s.Rev() {
		t.Errorf("an empty transaction: %d, %v", rev, err)
	}
}

func testConflicts(t *testing.T, p place) {
	s, table := openIn(t, p)
	r := must[Record[thing, state]](t)(table.Create(t.Context(), "a", thing{}))
	// Built before the change and committed after it, so the server has to see it.
	early := s.Begin()
	table.UpdateIn(early, r)
	remove := s.Begin()
	table.DeleteIn(remove, r)
	status := s.Begin()
	table.SetStatusIn(status, r)
	must[Record[thing, state]](t)(table.Update(t.Context(), "a", func(r *Record[thing, state]) error { r.Spec.Size = 1; return nil }))
	late := s.Begin()
	table.UpdateIn(late, r)
	for name, tx := range map[string]*Tx{"early": early, "late": late, "remove": remove} {
		if _, err := tx.Commit(t.Context()); !errs.Is(err, errs.Conflict) {
			t.Errorf("%s: %v, want a conflict", name, err)
		}
	}
	if err := table.Delete(t.Context(), r.ID); err != nil {
		t.Fatal(err)
	}
	_, err := status.Commit(t.Context())
	wantKind(t, err, errs.Conflict, "")
	tx := s.Begin()
	table.UpdateIn(tx, r)
	_, err = tx.Commit(t.Context())
	wantKind(t, err, errs.NotFound, "thing/a")
	twice := s.Begin()
	b := must[Record[thing, state]](t)(table.Create(t.Context(), "b", thing{}))
	table.UpdateIn(twice, b)
	table.UpdateIn(twice, b)
	_, err = twice.Commit(t.Context())
	wantKind(t, err, errs.Internal, "")
}

func testTooLarge(t *testing.T, p place) {
	s, table := openIn(t, p)
	tx := s.Begin()
	for i := range MaxOps/2 + 1 {
		table.CreateIn(tx, fmt.Sprint("t", i), thing{})
	}
	_, err := tx.Commit(t.Context())
	wantKind(t, err, errs.Invalid, "")
	if table.Len() != 0 {
		t.Errorf("%d records", table.Len())
	}
}

func testGuard(t *testing.T, p place) {
	s, table := openIn(t, p)
	r := must[Record[thing, state]](t)(table.Create(t.Context(), "a", thing{}))
	full := &errs.Error{Kind: errs.NoSpace, Msg: "full"}
	s.guard = func() error { return full }
	_, err := table.Create(t.Context(), "b", thing{})
	wantKind(t, err, errs.NoSpace, "")
	if err := table.Delete(t.Context(), r.ID); err != nil {
		t.Errorf("deleting: %v", err)
	}
}

func testReopen(t *testing.T, p place) {
	s, table := openIn(t, p)
	var last Record[thing, state]
	for i := range 5 {
		last = must[Record[thing, state]](t)(table.Create(t.Context(), fmt.Sprint("t", i), thing{Size: i, Tags: map[string]int{"n": i}}))
		must[Record[thing, state]](t)(table.SetStatus(t.Context(), last.ID, func(s *state) error { s.Notes = []string{"x"}; return nil }))
	}
	if err := table.Delete(t.Context(), last.ID); err != nil {
		t.Fatal(err)
	}
	again, reopened := openIn(t, p)
	if !same(table.List(), reopened.List()) || len(reopened.List()) != 4 {
		t.Errorf("reopened:\n%+v\nwas:\n%+v", reopened.List(), table.List())
	}
	if again.Rev() < s.Rev() {
		t.Errorf("revision %d, was %d", again.Rev(), s.Rev())
	}
	late := NewTable[thing, state](s, "late")
	must[Record[thing, state]](t)(late.Create(t.Context(), "x", thing{}))
	if err := again.await(t.Context(), s.Rev()); err != nil {
		t.Fatal(err)
	}
	if NewTable[thing, state](again, "late").Len() != 1 {
		t.Errorf("a table made later does not show what was there")
	}
}

func testClosed(t *testing.T, p place) {
	s, err := p.open()
	if err != nil {
		t.Fatal(err)
	}
	table := NewTable[thing, state](s, "thing")
	must[Record[thing, state]](t)(table.Create(t.Context(), "a", thing{}))
	ended := make(chan error)
	go func() {
		for _, err := range s.Events(context.Background(), 0) {
			ended <- err
		}
		close(ended)
	}()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	wantKind(t, <-ended, errs.Unavailable, "")
	if _, more := <-ended; more {
		t.Error("events go on after the end")
	}
	_, err = table.Create(t.Context(), "b", thing{})
	wantKind(t, err, errs.Unavailable, "")
	if table.Len() != 1 {
		t.Error("a closed store has forgotten what it knew")
	}
}

func testManyWriters(t *testing.T, p place) {
	s, table := openIn(t, p)
	const writers, each = 16, 40
	from := s.Rev()
	var all sync.WaitGroup
	for w := range writers {
		all.Go(func() {
			for i := range each {
				name := fmt.Sprintf("w%d-%d", w, i)
				r, err := table.Create(t.Context(), name, thing{Size: i})
				if err != nil {
					t.Error(err)
					return
				}
				if got, err := table.Get(name); err != nil || got.Rev != r.Rev {
					t.Errorf("does not read its own write: %+v, %v", got, err)
				}
				if got := s.Rev(); got < r.Rev {
					t.Errorf("store at %d, wrote %d", got, r.Rev)
				}
			}
		})
	}
	all.Wait()
	events := collect(t, s, from, writers*each)
	for i := 1; i < len(events); i++ {
		if events[i].Rev <= events[i-1].Rev {
			t.Fatalf("event %d has revision %d after %d", i, events[i].Rev, events[i-1].Rev)
		}
	}
	if table.Len() != writers*each {
		t.Errorf("%d records, want %d", table.Len(), writers*each)
	}
}

func testContention(t *testing.T, p place) {
	_, table := openIn(t, p)
	r := must[Record[thing, state]](t)(table.Create(t.Context(), "a", thing{}))
	const writers, each = 8, 15
	var all sync.WaitGroup
	for range writers {
		all.Go(func() {
			for range each {
				if _, err := table.Update(t.Context(), "a", func(r *Record[thing, state]) error { r.Spec.Size++; return nil }); err != nil {
					t.Error(err)
				}
				if _, err := table.SetStatus(t.Context(), r.ID, func(s *state) error { s.Notes = append(s.Notes, "x"); return nil }); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	got := must[Record[thing, state]](t)(table.Get("a"))
	if got.Spec.Size != writers*each || got.Generation != writers*each+1 || len(got.Status.Notes) != writers*each {
		t.Errorf("size %d, generation %d, %d notes; want %d", got.Spec.Size, got.Generation, len(got.Status.Notes), writers*each)
	}
}

func testUnreadable(t *testing.T, p place) {
	s, _ := openIn(t, p)
	if _, _, err := s.kv.commit(t.Context(), nil, []op{
		{key: "newer/spec/x1", value: []byte(`{"v":99,"meta":{"name":"n","id":"x1"},"spec":{}}`)},
		{key: "newer/name/n", value: []byte("x1")},
	}); err != nil {
		t.Fatal(err)
	}
	again, err := p.open()
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	table := NewTable[thing, state](again, model.Kind("newer"))
	wantKind(t, again.Err(), errs.Internal, "newer/x1")
	_, err = table.Create(t.Context(), "more", thing{})
	wantKind(t, err, errs.Internal, "newer/x1")
}
