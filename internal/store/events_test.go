package store

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"lodge/internal/base/errs"
)

// collect reads n events and stops.
func collect(t *testing.T, s *Store, from Rev, n int) (all []Event) {
	t.Helper()
	for e, err := range s.Events(t.Context(), from) {
		if err != nil {
			t.Fatal(err)
		}
		if all = append(all, e); len(all) == n {
			return all
		}
	}
	t.Fatalf("%d events, want %d", len(all), n)
	return nil
}

func brief(all []Event) string {
	var b strings.Builder
	for _, e := range all {
		fmt.Fprintf(&b, "%s/%s %s", e.Kind, e.Name, e.Part)
		if e.Deleted {
			b.WriteString(" deleted")
		}
		b.WriteString("\n")
	}
	return b.String()
}

// history makes seven events, from the returned revision on.
func history(t *testing.T, s *Store, table *things) (from Rev, want string) {
	t.Helper()
	from = s.Rev()
	a := must[Record[thing, state]](t)(table.Create(t.Context(), "a", thing{}))
	must[Record[thing, state]](t)(table.SetStatus(t.Context(), a.ID, func(s *state) error { s.Phase = "up"; return nil }))
	must[Record[thing, state]](t)(table.Update(t.Context(), "a", func(r *Record[thing, state]) error { r.Name = "b"; return nil }))
	tx := s.Begin()
	c := table.CreateIn(tx, "c", thing{})
	c.Status.Phase = "born"
	table.SetStatusIn(tx, c)
	must[Rev](t)(tx.Commit(t.Context()))
	if err := table.Delete(t.Context(), c.ID); err != nil {
		t.Fatal(err)
	}
	must[Record[thing, state]](t)(table.Create(t.Context(), "d", thing{}))
	return from, "thing/a spec\nthing/a status\nthing/b spec\nthing/c spec\nthing/c status\nthing/c spec deleted\nthing/d spec\n"
}

func testEvents(t *testing.T, p place) {
	s, table := openIn(t, p)
	live := s.Events(t.Context(), 0) // the moment of the call counts
	from, want := history(t, s, table)
	all := collect(t, s, from, 7)
	if got := brief(all); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	if !slices.IsSortedFunc(all, func(a, b Event) int { return int(a.Rev - b.Rev) }) {
		t.Errorf("out of order: %+v", all)
	}
	for _, e := range all {
		if e.At.IsZero() || e.ID == "" || e.Rev <= from {
			t.Errorf("event %+v", e)
		}
	}
	var lived []Event
	for e, err := range live {
		if err != nil {
			t.Fatal(err)
		}
		if lived = append(lived, e); len(lived) == 7 {
			break
		}
	}
	if brief(lived) != want {
		t.Errorf("live: got\n%swant\n%s", brief(lived), want)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for e, err := range s.Events(ctx, from) {
		t.Errorf("of a cancelled context: %+v, %v", e, err)
	}
}

// testEventsResume reads events from before the store was opened.
func testEventsResume(t *testing.T, p place) {
	s, table := openIn(t, p)
	from, _ := history(t, s, table)
	again, reopened := openIn(t, p)
	all := collect(t, again, from, 7)
	// The names of a status are those of today.
	want := "thing/a spec\nthing/b status\nthing/b spec\nthing/c spec\nthing/ status\nthing/c spec deleted\nthing/d spec\n"
	if got := brief(all); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	if rest := collect(t, again, all[2].Rev, 4); brief(rest) != brief(all[3:]) {
		t.Errorf("from the middle: got\n%s", brief(rest))
	}
	// From the past into the present without a gap.
	var got []Event
	for e, err := range again.Events(t.Context(), from) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, e)
		if len(got) == 7 {
			must[Record[thing, state]](t)(reopened.Create(t.Context(), "e", thing{}))
		}
		if len(got) == 8 {
			break
		}
	}
	if brief(got) != want+"thing/e spec\n" {
		t.Errorf("into the present: got\n%s", brief(got))
	}
}

func testEventsPastLog(t *testing.T, p place) {
	s, table := openIn(t, p)
	from := s.Rev()
	s.mu.Lock()
	s.log.keep = 20
	s.mu.Unlock()
	const perCommit = 3
	total := 0
	for total < 4*20 {
		tx := s.Begin()
		for range perCommit {
			table.CreateIn(tx, fmt.Sprint("t", total), thing{})
			total++
		}
		must[Rev](t)(tx.Commit(t.Context()))
	}
	if n := len(s.log.events); n >= total || n%perCommit != 0 {
		t.Fatalf("the log holds %d of %d events", n, total)
	}
	seen := map[string]bool{}
	for _, e := range collect(t, s, from, total) {
		seen[e.ID] = true
	}
	if len(seen) != total {
		t.Errorf("%d different records in the events, want %d", len(seen), total)
	}
}

func testCompacted(t *testing.T, p place) {
	s, table := openIn(t, p)
	from, _ := history(t, s, table)
	if err := p.compact(s.Rev()); err != nil {
		t.Fatal(err)
	}
	again, reopened := openIn(t, p)
	for _, err := range again.Events(t.Context(), from) {
		if !errs.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "compacted") {
			t.Fatalf("error %v, want a conflict that says compacted", err)
		}
	}
	for _, err := range reopened.Watch(t.Context(), from) {
		wantKind(t, err, errs.Conflict, "")
	}
	if reopened.Len() != 2 {
		t.Errorf("%d records after compaction", reopened.Len())
	}
}

func testFutureRevision(t *testing.T, p place) {
	s, _ := openIn(t, p)
	n := 0
	for _, err := range s.Events(t.Context(), s.Rev()+1_000_000) {
		wantKind(t, err, errs.Conflict, "")
		n++
	}
	if n != 1 {
		t.Errorf("%d errors", n)
	}
}

func testWatch(t *testing.T, p place) {
	s, table := openIn(t, p)
	other := NewTable[thing, state](s, "other")
	from := s.Rev()
	a := must[Record[thing, state]](t)(table.Create(t.Context(), "a", thing{Size: 7}))
	must[Record[thing, state]](t)(other.Create(t.Context(), "a", thing{}))
	tx := s.Begin()
	b := table.CreateIn(tx, "b", thing{})
	b.Status.Phase = "born"
	table.SetStatusIn(tx, b)
	must[Rev](t)(tx.Commit(t.Context()))
	if err := table.Delete(t.Context(), a.ID); err != nil {
		t.Fatal(err)
	}
	var got []Change[thing, state]
	for c, err := range table.Watch(t.Context(), from) {
		if err != nil {
			t.Fatal(err)
		}
		if got = append(got, c); c.Deleted {
			break
		}
	}
	// a is gone when it is told of, so only its end is; b changed once.
	if len(got) != 2 || got[0].Status.Phase != "born" || got[0].Deleted || got[0].At != got[0].Rev {
		t.Fatalf("changes %+v", got)
	}
	if end := got[1]; end.ID != a.ID || end.Name != "a" || end.Spec.Size != 7 || end.At <= got[0].At {
		t.Errorf("deleted %+v", end)
	}
}
