package kernels

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lodge/internal/base/errs"
	contract "lodge/internal/kernels"
	"lodge/internal/model/kernel"
	"lodge/internal/model/operation"
	"lodge/internal/store"
	"lodge/internal/store/tables"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// maker makes um/toy, waits for hold if there is one, and fails with err.
type maker struct {
	hold chan struct{}
	err  error
	made int
}

func (*maker) Makes() []string    { return []string{"um/toy"} }
func (*maker) Check(string) error { return nil }
func (m *maker) Make(ctx context.Context, _, dir, _ string, told contract.Told) (contract.Made, error) {
	told("making", 1, 2, "", "")
	if m.hold != nil {
		select {
		case <-m.hold:
		case <-ctx.Done():
			return contract.Made{}, ctx.Err()
		}
	}
	m.made++
	return contract.Made{Info: kernel.Info{Version: strings.Repeat("I", m.made)}, Kernel: "kernel"},
		errors.Join(m.err, os.WriteFile(filepath.Join(dir, "kernel"), []byte("toy"), 0o644))
}

type world struct {
	t      *testing.T
	r      *Reconciler
	tables *tables.Tables
	maker  *maker
	woken  chan string
	told   chan operation.Progress
}

func newWorld(t *testing.T) *world {
	s := store.NewMemory()
	t.Cleanup(func() { s.Close() })
	w := &world{t: t, tables: tables.Open(s), maker: &maker{}, woken: make(chan string, 9), told: make(chan operation.Progress, 99)}
	agent := filepath.Join(t.TempDir(), "agent")
	must(t, os.WriteFile(agent, []byte("agent"), 0o755))
	kept, err := contract.OpenStore(t.TempDir(), agent, slog.New(slog.DiscardHandler))
	must(t, err)
	w.r = New(Options{
		Tables: w.tables, Store: kept, Sources: []contract.Source{w.maker}, Now: time.Now, Log: slog.New(slog.DiscardHandler),
		Tell: func(p operation.Progress) { w.told <- p }, Wake: func(id string) { w.woken <- id },
	})
	t.Cleanup(w.r.Close)
	return w
}

func (w *world) ask(name string) string {
	w.t.Helper()
	r, err := w.tables.Kernels.Create(w.t.Context(), name, kernel.Spec{Wish: 1})
	must(w.t, err)
	return r.ID
}

func (w *world) look(id string) error {
	_, err := w.r.Reconcile(w.t.Context(), w.r.Log, id)
	return err
}

// built looks until the build that is under way has ended and was seen.
func (w *world) built(id string) kernel.Status {
	w.t.Helper()
	must(w.t, w.look(id))
	if got := <-w.woken; got != id {
		w.t.Fatalf("%s was woken", got)
	}
	if err := w.look(id); err != nil && !errs.Is(err, errs.NoSpace) {
		w.t.Fatal(err)
	}
	r, err := w.tables.Kernels.ByID(id)
	must(w.t, err)
	return r.Status
}

func TestAWishIsAnsweredOnce(t *testing.T) {
	w := newWorld(t)
	id := w.ask("um/toy")
	s := w.built(id)
	if s.Info.Version != "I" || s.Digest == "" || s.Digest != w.r.Store.Digest("um/toy") || s.Wish != 1 || s.Generation == 0 || s.Problem != nil {
		t.Errorf("%+v", s)
	}
	if p := <-w.told; p.Step != "making" || p.Subject.Name != "um/toy" || p.Total != 2 {
		t.Errorf("%+v", p)
	}
	must(t, w.look(id))
	must(t, w.look(id))
	if w.maker.made != 1 {
		t.Errorf("it was built %d times", w.maker.made)
	}
	_, err := w.tables.Kernels.Update(t.Context(), "um/toy", func(r *tables.KernelRecord) error { r.Spec.Wish++; return nil })
	must(t, err)
	if s := w.built(id); s.Info.Version != "II" || s.Wish != 2 {
		t.Errorf("%+v", s)
	}
}

func TestAKernelThatWasLostIsBuiltAgain(t *testing.T) {
	w := newWorld(t)
	id := w.ask("um/toy")
	w.built(id)
	must(t, w.r.Store.Remove("um/toy"))
	if s := w.built(id); s.Info.Version != "II" || w.r.Store.Digest("um/toy") != s.Digest {
		t.Errorf("%+v", s)
	}
}

func TestAFailureStandsBeside(t *testing.T) {
	for _, c := range []struct {
		err   error
		final bool
	}{
		{&errs.Error{Kind: errs.Unavailable, Msg: "no mirror", Hint: "find one"}, true},
		{&errs.Error{Kind: errs.NoSpace, Msg: "full"}, false},
	} {
		w := newWorld(t)
		w.maker.err = c.err
		id := w.ask("um/toy")
		s := w.built(id)
		if s.Problem == nil || s.Problem.Final != c.final || s.Digest != "" || (s.Generation > 0) != c.final {
			t.Errorf("%v: %+v %+v", c.err, s, s.Problem)
		}
		err := w.r.OnItsWay(&errs.Error{Kind: errs.NotFound, Ref: "kernel/um/toy", Hint: "build"})
		if !errs.Is(err, errs.NotFound) || !strings.Contains(err.Error(), s.Problem.Message) {
			t.Error(err)
		}
	}
	w := newWorld(t)
	if s := w.built(w.ask("um/nobodys")); s.Problem == nil || s.Problem.Code != "invalid" {
		t.Errorf("%+v", s.Problem)
	}
}

// A build that is cut off must not put its kernel in place after the removal.
func TestARemovalWaitsForTheEndOfTheBuild(t *testing.T) {
	w := newWorld(t)
	w.maker.hold = make(chan struct{})
	id := w.ask("um/toy")
	must(t, w.look(id))
	if err := w.r.OnItsWay(&errs.Error{Kind: errs.NotFound, Ref: "kernel/um/toy"}); !errs.Is(err, errs.Busy) {
		t.Errorf("while it is built: %v", err)
	}
	_, err := w.tables.Kernels.Update(t.Context(), "um/toy", func(r *tables.KernelRecord) error { now := time.Now(); r.Deleting = &now; return nil })
	must(t, err)
	must(t, w.look(id)) // tells the build to end
	<-w.woken
	must(t, w.look(id))
	if _, err := w.tables.Kernels.ByID(id); !errs.Is(err, errs.NotFound) {
		t.Errorf("the record is there still: %v", err)
	}
	if w.r.Store.Digest("um/toy") != "" {
		t.Error("its files are there still")
	}
}
