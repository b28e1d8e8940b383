package reconcile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"lodge/internal/base/errs"
	"lodge/internal/model"
	"lodge/internal/store"
)

// fake is a reconciler made of functions.
type fake struct {
	name   string
	reads  []Read
	writes []model.Kind
	do     func(ctx context.Context, id string) (time.Duration, error)
}

func (f *fake) Name() string         { return f.name }
func (f *fake) Reads() []Read        { return f.reads }
func (f *fake) Writes() []model.Kind { return f.writes }
func (f *fake) All() []string        { return nil }
func (f *fake) Reconcile(ctx context.Context, _ *slog.Logger, id string) (time.Duration, error) {
	return f.do(ctx, id)
}

// listing is one that knows its ids.
type listing struct {
	*fake
	ids func() []string
}

func (l listing) All() []string { return l.ids() }

// diary notes what was reconciled, and when after the test's beginning.
type diary struct {
	mu    sync.Mutex
	began time.Time
	lines []string
}

func newDiary() *diary { return &diary{began: time.Now()} }

func (d *diary) note(id string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lines = append(d.lines, fmt.Sprintf("%s %v", id, time.Since(d.began)))
	return len(d.lines)
}

func (d *diary) want(t *testing.T, lines ...string) {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	if !slices.Equal(d.lines, lines) {
		t.Errorf("got\n  %s\nwant\n  %s", strings.Join(d.lines, "\n  "), strings.Join(lines, "\n  "))
	}
}

// run starts a runner and returns what ends it.
func run(t *testing.T, r *Runner) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func add(t *testing.T, r *Runner, recs ...Reconciler) {
	t.Helper()
	for _, rec := range recs {
		if err := r.Add(rec); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAddRefusesTwoWriters(t *testing.T) {
	r := New(quiet(), 1)
	add(t, r, &fake{name: "guests", writes: []model.Kind{"guest"}})
	if err := r.Add(&fake{name: "rivals", writes: []model.Kind{"x", "guest"}}); !errs.Is(err, errs.Conflict) {
		t.Errorf("a second writer: %v", err)
	}
	if err := r.Add(&fake{name: "guests"}); !errs.Is(err, errs.Exists) {
		t.Errorf("a second of that name: %v", err)
	}
	// Nothing of the refused one may stay.
	add(t, r, &fake{name: "xs", writes: []model.Kind{"x"}})
}

func TestGraph(t *testing.T) {
	r := New(quiet(), 1)
	add(t, r,
		&fake{name: "guests", reads: []Read{{Kind: "guest"}, {Kind: "image"}}, writes: []model.Kind{"guest"}},
		&fake{name: "images", reads: []Read{{Kind: "image"}}, writes: []model.Kind{"image"}},
	)
	want := []string{"guest -> guests", "guests -> guest", "image -> guests", "image -> images", "images -> image"}
	if got := r.Graph(); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

func TestAllAtStartAndResync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDiary()
		r := New(quiet(), 1)
		f := &fake{name: "f", do: func(_ context.Context, id string) (time.Duration, error) { d.note(id); return 0, nil }}
		add(t, r, listing{f, func() []string { return []string{"a", "b"} }})
		stop := run(t, r)
		time.Sleep(ResyncEvery + time.Second)
		stop()
		d.want(t, "a 0s", "b 0s", "a 5m0s", "b 5m0s")
	})
}

func TestAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDiary()
		r := New(quiet(), 2)
		add(t, r, &fake{name: "f", do: func(_ context.Context, id string) (time.Duration, error) {
			if d.note(id) < 3 {
				return 10 * time.Second, nil
			}
			return 0, nil
		}})
		r.Wake("f", "a") // before Run: remembered
		stop := run(t, r)
		time.Sleep(5 * time.Second)
		r.Wake("f", "a") // takes the place of the timer
		time.Sleep(time.Hour)
		stop()
		d.want(t, "a 0s", "a 5s", "a 15s")
	})
}

func TestBackoff(t *testing.T) {
	for _, c := range []struct {
		kind errs.Kind
		want []string
	}{
		{errs.Busy, []string{"a 0s", "a 100ms", "a 300ms", "a 700ms", "a 1.5s", "a 3.1s", "a 6.3s", "a 12.7s", "a 25.5s", "a 51.1s", "a 1m21.1s"}},
		{errs.Unsupported, []string{"a 0s", "a 1m0s"}},
	} {
		t.Run(c.kind.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newDiary()
				r := New(quiet(), 2)
				add(t, r, &fake{name: "f", do: func(_ context.Context, id string) (time.Duration, error) {
					d.note(id)
					return time.Millisecond, fmt.Errorf("op: %w", &errs.Error{Kind: c.kind, Msg: "no"})
				}})
				r.Wake("f", "a")
				stop := run(t, r)
				time.Sleep(85 * time.Second)
				stop()
				d.want(t, c.want...)
			})
		})
	}
}

func TestSuccessEndsBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDiary()
		r := New(quiet(), 2)
		add(t, r, &fake{name: "f", do: func(_ context.Context, id string) (time.Duration, error) {
			if n := d.note(id); n == 3 {
				return 700 * time.Millisecond, nil
			}
			return 0, errors.New("not one of ours is internal, and tried again")
		}})
		r.Wake("f", "a")
		stop := run(t, r)
		time.Sleep(1200 * time.Millisecond)
		stop()
		d.want(t, "a 0s", "a 100ms", "a 300ms", "a 1s", "a 1.1s")
	})
}

func TestPanicIsAnErrorLikeOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		d := newDiary()
		r := New(slog.New(slog.NewTextHandler(&out, nil)), 2)
		add(t, r, &fake{name: "f", do: func(_ context.Context, id string) (time.Duration, error) {
			if d.note(id) == 1 {
				panic("oh no")
			}
			return 0, nil
		}})
		r.Wake("f", "a")
		stop := run(t, r)
		time.Sleep(time.Second)
		stop()
		d.want(t, "a 0s", "a 100ms")
		if log := out.String(); !strings.Contains(log, "oh no") || !strings.Contains(log, "reconcile_test.go") {
			t.Errorf("the log does not say what happened and where:\n%s", log)
		}
	})
}

func TestOnePerIDAndSoManyWorkers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		running, most, calls := map[string]int{}, 0, 0
		r := New(quiet(), 3)
		slow := &fake{name: "slow", do: func(_ context.Context, id string) (time.Duration, error) {
			mu.Lock()
			running[id]++
			calls++
			now := 0
			for id, n := range running {
				if now += n; n > 1 {
					t.Errorf("%s runs %d times at once", id, n)
				}
			}
			most = max(most, now)
			mu.Unlock()
			time.Sleep(time.Second)
			mu.Lock()
			running[id]--
			mu.Unlock()
			return 0, nil
		}}
		d := newDiary()
		add(t, r, slow, &fake{name: "quick", do: func(_ context.Context, id string) (time.Duration, error) { d.note(id); return 0, nil }})
		for i := range 7 {
			r.Wake("slow", fmt.Sprint("g", i))
		}
		stop := run(t, r)
		synctest.Wait()
		for range 5 { // while it runs: one more run, not five
			r.Wake("slow", "g0")
		}
		r.Wake("quick", "a") // is not held up
		time.Sleep(time.Minute)
		stop()
		d.want(t, "a 0s")
		if most != 3 || calls != 8 {
			t.Errorf("%d at once in %d calls, want 3 in 8", most, calls)
		}
	})
}

func TestNeverTwiceAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDiary()
		r := New(quiet(), 8)
		add(t, r, &fake{name: "f", do: func(_ context.Context, id string) (time.Duration, error) {
			d.note("begin " + id)
			time.Sleep(time.Second)
			d.note("end " + id)
			return 0, nil
		}})
		r.Wake("f", "a")
		stop := run(t, r)
		for range 3 {
			time.Sleep(200 * time.Millisecond)
			r.Wake("f", "a")
		}
		time.Sleep(time.Minute)
		stop()
		d.want(t, "begin a 0s", "end a 1s", "begin a 1s", "end a 2s")
	})
}

func TestRunWaitsForWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ended bool
		r := New(quiet(), 1)
		add(t, r, &fake{name: "f", do: func(ctx context.Context, id string) (time.Duration, error) {
			<-ctx.Done()
			time.Sleep(time.Second)
			ended = true
			return time.Millisecond, nil
		}})
		r.Wake("f", "a")
		r.Wake("f", "b") // never begun
		stop := run(t, r)
		synctest.Wait()
		stop()
		if !ended {
			t.Error("Run returned while a reconciler was at work")
		}
		r.Wake("f", "c") // too late, and harmless
	})
}

type spec struct {
	N int `json:"n"`
}

type status struct {
	Attempts int `json:"attempts"`
	Answered int `json:"answered"`
}

// house is a store with two kinds of records.
func house(t testing.TB) (s *store.Store, guests, images *store.Table[spec, status]) {
	s = store.NewMemory()
	t.Cleanup(func() { s.Close() })
	return s, store.NewTable[spec, status](s, "guest"), store.NewTable[spec, status](s, "image")
}

func create(t testing.TB, table *store.Table[spec, status], name, id string) {
	t.Helper()
	if _, err := table.Create(t.Context(), name, spec{}, store.WithID(id)); err != nil {
		t.Fatal(err)
	}
}

func TestEventsWakeReaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, guests, images := house(t)
		create(t, guests, "old", "g0")
		d := newDiary()
		r := New(quiet(), 1)
		r.Feed(s)
		add(t, r, listing{&fake{
			name: "guests", writes: []model.Kind{"guest"},
			reads: []Read{{Kind: "guest"}, {Kind: "image", Wake: func(id string) []string {
				if id == "bad" {
					panic("in Wake")
				}
				return []string{"g0", "of-" + id}
			}}},
			do: func(_ context.Context, id string) (time.Duration, error) { d.note(id); return 0, nil },
		}, func() (ids []string) {
			for _, g := range guests.List() {
				ids = append(ids, g.ID)
			}
			return ids
		}})
		stop := run(t, r)
		step := func(do func()) { time.Sleep(time.Second); do(); synctest.Wait() }
		step(func() { create(t, guests, "new", "g1") })
		step(func() { create(t, images, "bad", "bad") })
		step(func() { create(t, images, "i", "i1") })
		step(func() {
			if err := guests.Delete(t.Context(), "g1"); err != nil {
				t.Fatal(err)
			}
		})
		stop()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		d.want(t, "g0 0s", "g1 1s", "g0 3s", "of-i1 3s", "g1 4s")
	})
}

// TestOwnStatus: what a reconciler writes wakes it, so that a step may end with
// writing; but the note of an error must not, or it would never rest.
func TestOwnStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, guests, _ := house(t)
		create(t, guests, "a", "a")
		d := newDiary()
		r := New(quiet(), 1)
		r.Feed(s)
		add(t, r, &fake{
			name: "guests", writes: []model.Kind{"guest"}, reads: []Read{{Kind: "guest"}},
			do: func(ctx context.Context, id string) (time.Duration, error) {
				n := d.note(id)
				failing := n <= 3
				_, err := guests.SetStatus(ctx, id, func(s *status) error {
					if failing {
						s.Attempts++
					} else {
						s.Answered = min(s.Answered+1, 2)
					}
					return nil
				})
				if err == nil && failing {
					err = &errs.Error{Kind: errs.Busy}
				}
				return 0, err
			},
		})
		r.Wake("guests", "a")
		stop := run(t, r)
		time.Sleep(time.Minute)
		stop()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		// Three failures at their pace, two steps that write, one that finds
		// nothing left to do.
		d.want(t, "a 0s", "a 100ms", "a 300ms", "a 700ms", "a 700ms", "a 700ms")
	})
}

// TestLateOwnStatus is the same with an event that comes when the failed run is
// over.
func TestLateOwnStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, guests, images := house(t)
		create(t, guests, "a", "a")
		d := newDiary()
		r := New(quiet(), 1)
		r.Feed(s)
		add(t, r, &fake{
			name: "guests", writes: []model.Kind{"guest"}, reads: []Read{{Kind: "guest"}, {Kind: "image"}},
			do: func(context.Context, string) (time.Duration, error) {
				if d.note("a") < 4 {
					return 0, &errs.Error{Kind: errs.Unsupported}
				}
				return 0, nil
			},
		})
		r.Wake("guests", "a")
		stop := run(t, r)
		attempt := func(of *store.Table[spec, status]) {
			time.Sleep(time.Second)
			if _, err := of.SetStatus(t.Context(), "a", func(s *status) error { s.Attempts++; return nil }); err != nil {
				t.Fatal(err)
			}
		}
		attempt(guests)                 // its own: waits on
		create(t, images, "a", "a")     // the spec of another kind: at once
		attempt(images)                 // the status of another kind: at once
		attempt(guests)                 // its own
		time.Sleep(10 * time.Second)    // still waiting
		create(t, guests, "other", "b") // another id is not held up
		time.Sleep(10 * time.Second)    //
		r.Wake("guests", "a")           // asked for: at once, and it works
		attempt(guests)                 // its own, after success: at once
		time.Sleep(time.Millisecond)
		stop()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		d.want(t, "a 0s", "a 1s", "a 2s", "a 13s", "a 23s", "a 24s")
	})
}

// BenchmarkWake is from the start of a write to the beginning of Reconcile.
func BenchmarkWake(b *testing.B) {
	s, guests, _ := house(b)
	woken := make(chan time.Time, 1)
	r := New(quiet(), 4)
	r.Feed(s)
	if err := r.Add(&fake{name: "guests", reads: []Read{{Kind: "guest"}}, do: func(context.Context, string) (time.Duration, error) {
		woken <- time.Now()
		return 0, nil
	}}); err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan struct{})
	go func() { r.Run(ctx); close(done) }()
	defer func() { cancel(); <-done }()
	create(b, guests, "warm", "warm")
	<-woken
	took := make([]time.Duration, 0, b.N)
	for i := 0; b.Loop(); i++ {
		began := time.Now()
		create(b, guests, fmt.Sprint("g", i), fmt.Sprint("g", i))
		took = append(took, (<-woken).Sub(began))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-us")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-us")
}
