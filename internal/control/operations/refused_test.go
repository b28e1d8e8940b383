package operations

import (
	"io"
	"log/slog"
	"testing"
	"time"

	"lodge/internal/model"
	"lodge/internal/model/guest"
	"lodge/internal/model/operation"
	"lodge/internal/store"
	"lodge/internal/store/tables"
)

// TestARefusedChangeOfModelFails though the guest runs again, as it was; a later
// wish is not refused with it.
func TestARefusedChangeOfModelFails(t *testing.T) {
	s := store.NewMemory()
	defer s.Close()
	tb := tables.Open(s)
	g, err := tb.Guests.Create(t.Context(), "g", guest.Spec{Model: guest.VM, Models: 2})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tb.Guests.SetStatus(t.Context(), g.ID, func(s *guest.Status) error {
		s.Phase, s.Generation, s.Refused, s.Refusal = guest.Running, g.Generation, 1, &model.Problem{Code: "no-space", Message: "full", Final: true}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	r := New(tb, time.Now)
	for wish, want := range map[int64]operation.State{0: operation.Done, 1: operation.Failed, 2: operation.Done} {
		op, err := tb.Operations.Create(t.Context(), "op", operation.Spec{Subjects: []operation.Subject{{
			Key: model.Key{Kind: guest.Kind, Name: "g"}, ID: g.ID, Generation: g.Generation, Wish: wish,
		}}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Reconcile(t.Context(), slog.New(slog.NewTextHandler(io.Discard, nil)), op.ID); err != nil {
			t.Fatal(err)
		}
		op, err = tb.Operations.ByID(op.ID)
		if err != nil || op.Status.State != want || want == operation.Failed && op.Status.Problem.Message != "full" {
			t.Errorf("wish %d: %+v, %v; want %s", wish, op.Status, err, want)
		}
		if err := tb.Operations.Delete(t.Context(), op.ID); err != nil {
			t.Fatal(err)
		}
	}
}
