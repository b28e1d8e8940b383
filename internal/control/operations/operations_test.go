package operations

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"lodge/internal/base/errs"
	"lodge/internal/model"
	"lodge/internal/model/guest"
	"lodge/internal/model/operation"
	"lodge/internal/store"
	"lodge/internal/store/tables"
)

func TestJudge(t *testing.T) {
	soft, hard := &model.Problem{Code: errs.NoSpace.String()}, &model.Problem{Code: errs.Unsupported.String()}
	for name, c := range map[string]struct {
		gone    bool
		answer  Answer
		verdict Verdict
		problem bool
	}{
		"not yet":                  {false, Answer{Found: true, Generation: 2, Resting: true}, Waiting, false},
		"under way":                {false, Answer{Found: true, Generation: 3}, Waiting, false},
		"there":                    {false, Answer{Found: true, Generation: 3, Resting: true}, Answered, false},
		"beyond":                   {false, Answer{Found: true, Generation: 4, Resting: true}, Answered, false},
		"held up":                  {false, Answer{Found: true, Generation: 3, Resting: true, Problem: soft}, Waiting, true},
		"impossible":               {false, Answer{Found: true, Generation: 3, Problem: hard}, Refused, true},
		"an older wish impossible": {false, Answer{Found: true, Generation: 2, Problem: hard}, Waiting, true},
		"removed meanwhile":        {false, Answer{}, Refused, true},
		"gone":                     {true, Answer{}, Answered, false},
		"going":                    {true, Answer{Found: true, Generation: 3, Resting: true}, Waiting, false},
		"going held up":            {true, Answer{Found: true, Generation: 3, Problem: soft}, Waiting, true},
		"going impossible":         {true, Answer{Found: true, Generation: 3, Problem: hard}, Refused, true},
		"ran its course":           {false, Answer{}, Answered, false},
	} {
		v, p := Judge(operation.Subject{Generation: 3, Gone: c.gone, Passing: name == "ran its course"}, c.answer, time.Now())
		if v != c.verdict || (p != nil) != c.problem {
			t.Errorf("%s: %v %v", name, v, p)
		}
	}
}

func TestSettle(t *testing.T) {
	now, p := time.Now(), &model.Problem{Code: "no-space", Message: "full"}
	for name, c := range map[string]struct {
		cancel bool
		last   operation.State
		count  Count
		want   operation.State
		words  string
	}{
		"working":         {false, "", Count{All: 1, Waiting: 1}, operation.Working, ""},
		"held up":         {false, "", Count{All: 1, Waiting: 1, Problem: p}, operation.Working, "full"},
		"done":            {false, operation.Working, Count{All: 1}, operation.Done, ""},
		"failed":          {false, operation.Working, Count{All: 1, Refused: 1, Problem: p}, operation.Failed, "full"},
		"some failed":     {false, operation.Working, Count{All: 9, Refused: 2, Subject: "guest/a", Problem: p}, operation.Failed, "2 of 9 failed; guest/a: full"},
		"some still work": {false, operation.Working, Count{All: 9, Waiting: 1, Refused: 2, Subject: "guest/a", Problem: p}, operation.Working, "2 of 9 failed; guest/a: full"},
		"cancelled":       {true, operation.Working, Count{All: 1, Waiting: 1}, operation.Cancelled, ""},
		"final":           {true, operation.Failed, Count{All: 1}, operation.Failed, ""},
	} {
		s := Settle(operation.Spec{Cancel: c.cancel}, operation.Status{State: c.last}, c.count, now)
		words := ""
		if s.Problem != nil {
			words = s.Problem.Message
		}
		if s.State != c.want || words != c.words || !c.last.Final() && s.State.Final() != (s.Ended != nil) {
			t.Errorf("%s: %+v", name, s)
		}
	}
}

type world struct {
	*testing.T
	tables *tables.Tables
	rec    *Reconciler
}

func newWorld(t *testing.T) *world {
	s := store.NewMemory()
	t.Cleanup(func() { s.Close() })
	tb := tables.Open(s)
	return &world{T: t, tables: tb, rec: New(tb, time.Now)}
}

func (w *world) guests(n int) (op string, subjects []operation.Subject) {
	for i := range n {
		r, err := w.tables.Guests.Create(context.Background(), fmt.Sprintf("g-%04d", i), guest.Spec{})
		if err != nil {
			w.Fatal(err)
		}
		subjects = append(subjects, operation.Subject{Key: model.Key{Kind: guest.Kind, Name: r.Name}, ID: r.ID, Generation: 1})
	}
	o, err := w.tables.Operations.Create(context.Background(), "op", operation.Spec{Subjects: subjects})
	if err != nil {
		w.Fatal(err)
	}
	return o.ID, subjects
}

func (w *world) set(id string, s guest.Status) {
	if _, err := w.tables.Guests.SetStatus(context.Background(), id, func(was *guest.Status) error { *was = s; return nil }); err != nil {
		w.Fatal(err)
	}
}

func (w *world) reconcile(op string) operation.Status {
	w.Helper()
	if _, err := w.rec.Reconcile(context.Background(), slog.New(slog.DiscardHandler), op); err != nil {
		w.Fatal(err)
	}
	r, err := w.tables.Operations.ByID(op)
	if err != nil {
		w.Fatal(err)
	}
	return r.Status
}

func TestReceiptFollowsItsSubjects(t *testing.T) {
	w := newWorld(t)
	op, all := w.guests(3)
	if s := w.reconcile(op); s.State != "" {
		t.Fatalf("%+v was written though there is nothing to say yet", s)
	}
	for i, s := range all[:2] {
		w.set(s.ID, guest.Status{Phase: guest.Running, Generation: 1})
		if got := w.rec.changed(s.ID); len(got) != 1 || got[0] != op {
			t.Fatal(i, got)
		}
	}
	w.set(all[2].ID, guest.Status{Generation: 1, Problem: &model.Problem{Code: "no-space", Message: "full"}})
	w.rec.changed(all[2].ID)
	if s := w.reconcile(op); s.State != operation.Working || s.Problem == nil || s.Problem.Message != "guest/g-0002: full" {
		t.Fatalf("%+v", s)
	}
	if got := w.rec.changed(all[0].ID); len(got) != 0 {
		t.Fatal("what is answered is followed still", got)
	}
	w.set(all[2].ID, guest.Status{Phase: guest.Running, Generation: 1})
	w.rec.changed(all[2].ID)
	if s := w.reconcile(op); s.State != operation.Done || s.Ended == nil || s.Problem != nil {
		t.Fatalf("%+v", s)
	}
	w.reconcile(op)
	if len(w.rec.open) != 0 || len(w.rec.bySubject) != 0 {
		t.Fatal("an ended operation is remembered", w.rec.open, w.rec.bySubject)
	}
}

// A reconciler that starts in the middle reads everything anew.
func TestReceiptAfterRestart(t *testing.T) {
	w := newWorld(t)
	op, all := w.guests(2)
	w.reconcile(op)
	for _, s := range all {
		w.set(s.ID, guest.Status{Generation: 1})
	}
	w.rec = New(w.tables, time.Now)
	if got := w.rec.All(); len(got) != 1 || got[0] != op {
		t.Fatal(got)
	}
	if s := w.reconcile(op); s.State != operation.Done {
		t.Fatal(s)
	}
}

func TestReceiptOfWhatIsRemoved(t *testing.T) {
	w := newWorld(t)
	op, all := w.guests(1)
	w.reconcile(op)
	if err := w.tables.Guests.Delete(context.Background(), all[0].ID); err != nil {
		t.Fatal(err)
	}
	w.rec.changed(all[0].ID)
	if s := w.reconcile(op); s.State != operation.Failed || s.Problem.Code != "not-found" {
		t.Fatalf("%+v", s)
	}
}

func TestOldReceiptsAreForgotten(t *testing.T) {
	w := newWorld(t)
	var last string
	for i := range kept + slack {
		r, err := w.tables.Operations.Create(context.Background(), fmt.Sprint("op-", i), operation.Spec{})
		if err != nil {
			t.Fatal(err)
		}
		last = r.ID
		w.reconcile(r.ID)
	}
	w.reconcile(last)
	if n := w.tables.Operations.Len(); n != kept {
		t.Fatal(n)
	}
	if _, err := w.tables.Operations.ByID(last); err != nil {
		t.Fatal("the newest was forgotten")
	}
}

// The cost of one answered guest of a thousand is that of one guest.
func BenchmarkThousandSubjects(b *testing.B) {
	s := store.NewMemory()
	defer s.Close()
	tb := tables.Open(s)
	rec := New(tb, time.Now)
	subjects := make([]operation.Subject, 1000)
	for i := range subjects {
		r, err := tb.Guests.Create(b.Context(), fmt.Sprint("g-", i), guest.Spec{})
		if err != nil {
			b.Fatal(err)
		}
		subjects[i] = operation.Subject{Key: model.Key{Kind: guest.Kind, Name: r.Name}, ID: r.ID, Generation: 1}
	}
	op, err := tb.Operations.Create(b.Context(), "op", operation.Spec{Subjects: subjects})
	if err != nil {
		b.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	if _, err := rec.Reconcile(b.Context(), log, op.ID); err != nil {
		b.Fatal(err)
	}
	i := 0
	for b.Loop() {
		rec.changed(subjects[i%1000].ID)
		if _, err := rec.Reconcile(b.Context(), log, op.ID); err != nil {
			b.Fatal(err)
		}
		i++
	}
}
