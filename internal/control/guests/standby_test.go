package guests

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"lodge/internal/base/errs"
	"lodge/internal/base/session"
	"lodge/internal/control"
	"lodge/internal/engine"
	"lodge/internal/fabric"
	"lodge/internal/keeper"
	"lodge/internal/model/guest"
	"lodge/internal/storage"
	"lodge/internal/store"
)

// slots lends the places from 7 on.
type slots struct{ of map[string]int }

func (s *slots) Claim(id string) (int, error) {
	if _, ok := s.of[id]; !ok {
		s.of[id] = 7 + len(s.of)
	}
	return s.of[id], nil
}
func (s *slots) Keep(id string, slot int) { s.of[id] = slot }
func (s *slots) Drop(id string)           { delete(s.of, id) }

// execs counts what a copied engine's machines ran.
func (m copiedMachine) Exec(context.Context, session.Request) (session.Session, error) {
	m.c.ran++
	return nil, &errs.Error{Kind: errs.NotFound}
}

// newReady is a world with a guest that came from a template, so that one like it
// is to stand ready.
func newReady(t *testing.T) (*world, *copied, *slots) {
	w, c := newWarm(t)
	w.volumes(t)
	s := &slots{of: map[string]int{}}
	w.r.Slots, w.r.StandbyMemory = s, 1<<30
	w.expect(w.settle(), guest.Running)
	return w, c, s
}

// volumes gives each guest of the world a volume of its own.
func (w *world) volumes(t *testing.T) {
	pools := control.NewHandles[storage.Pool]("pool")
	pools.Put("default", manyVolumes{volumes{dir: t.TempDir()}})
	w.r.Pools = pools
}

type manyVolumes struct{ volumes }

func (v manyVolumes) Path(id string) string { return filepath.Join(v.dir, id) }
func (v manyVolumes) Create(_ context.Context, id string, _ uint64) error {
	return os.MkdirAll(v.Path(id), 0o700)
}
func (v manyVolumes) Remove(_ context.Context, id string) error { return os.RemoveAll(v.Path(id)) }

// ready makes what is lacking, and returns its id.
func (w *world) ready() string {
	w.t.Helper()
	log := slog.New(slog.DiscardHandler)
	s := &w.r.standby
	if name, wait := s.lacking(w.now, 1<<30); name != "" || wait <= 0 {
		w.t.Errorf("one is made at once, beside the guests that are wanted now: %q, %v", name, wait)
	}
	w.now = w.now.Add(standbyAfter)
	name, _ := s.lacking(w.now, 1<<30)
	if name == "" {
		w.t.Fatal("none is lacking")
	}
	w.r.makeStandby(w.t.Context(), log, name, s.kinds[name])
	for id := range s.have {
		return id
	}
	w.t.Fatal("none stands ready")
	return ""
}

func like(w *world) guest.Spec {
	rec, err := w.r.Tables.Guests.ByID(w.id)
	if err != nil {
		w.t.Fatal(err)
	}
	return rec.Spec
}

func TestAStandbyBecomesTheGuestThatIsWanted(t *testing.T) {
	w, c, s := newReady(t)
	id := w.ready()
	if c.ran != exercises || !w.e.frozen || s.of[id] != 7 {
		t.Fatalf("ran %d programs, frozen %v, slot %d", c.ran, w.e.frozen, s.of[id])
	}
	other := like(w)
	other.Memory *= 2
	if _, ok := w.r.TakeStandby(w.t.Context(), other, nil); ok {
		t.Error("one with other memory is taken")
	}
	got, ok := w.r.TakeStandby(w.t.Context(), like(w), nil)
	if !ok || got != id {
		t.Fatalf("took %q, %v", got, ok)
	}
	if _, ok := w.r.TakeStandby(w.t.Context(), like(w), nil); ok {
		t.Error("it is taken twice")
	}
	rec, err := w.r.Tables.Guests.Create(t.Context(), "h", like(w), store.WithID(id))
	if err == nil {
		_, err = w.r.Tables.Holders.Create(t.Context(), id, guest.Holder{Host: "h", Slot: 7}, store.WithID(id))
	}
	if err != nil {
		t.Fatal(err)
	}
	started := w.k.n
	w.id = rec.ID
	w.expect(w.settle(), guest.Running)
	if w.k.n != started || w.e.frozen || c.renewed[len(c.renewed)-1] != "h" {
		t.Errorf("%d programs were started, frozen %v, renewed %v", w.k.n-started, w.e.frozen, c.renewed)
	}
	pool, _ := w.r.Pools.Get("default")
	for _, left := range []string{filepath.Join(pool.Path(id), copyMark), filepath.Join(pool.Path(id), memoryUsed), filepath.Join(w.r.dir(id), markFile)} {
		if exists(left) {
			t.Errorf("%s is left", left)
		}
	}
	if again := w.ready(); again == id {
		t.Error("no other stands ready for the next")
	}
}

// TestAStandbyThatDoesNotBecomeTheGuest is ended, and the guest boots.
func TestAStandbyThatDoesNotBecomeTheGuest(t *testing.T) {
	w, c, _ := newReady(t)
	id := w.ready()
	if _, ok := w.r.TakeStandby(w.t.Context(), like(w), nil); !ok {
		t.Fatal("not taken")
	}
	if _, err := w.r.Tables.Guests.Create(t.Context(), "h", like(w), store.WithID(id)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.r.Tables.Holders.Create(t.Context(), id, guest.Holder{Host: "h", Slot: 7}, store.WithID(id)); err != nil {
		t.Fatal(err)
	}
	w.id, c.fail = id, &errs.Error{Kind: errs.Unavailable, Msg: "it does not answer"}
	if _, err := w.pass(); err == nil || w.e.killed != 1 {
		t.Fatalf("%v, killed %d", err, w.e.killed)
	}
	if _, comes := w.r.standby.comes(id); comes {
		t.Error("it is still to become the guest")
	}
}

// TestAStandbyOfBefore is given to nobody once a guest would be started otherwise.
func TestAStandbyOfBefore(t *testing.T) {
	w, _, _ := newReady(t)
	w.e.info.Kernel, w.kernels.path = "linux", "/boot/older"
	w.ready()
	w.kernels.path = "/boot/newer"
	if id, ok := w.r.TakeStandby(t.Context(), like(w), nil); ok {
		t.Errorf("%s runs another kernel", id)
	}
	if useless := w.r.standby.useless(w.now, w.r.alive); len(useless) != 1 {
		t.Errorf("useless are %v", useless)
	}
}

func TestAStandbyThatNobodyWants(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	for name, use := range map[string]func(w *world, id string){
		"for long":      func(w *world, _ string) { w.now = w.now.Add(standbyFor + time.Second) },
		"since it died": func(w *world, id string) { w.k.end(id, keeper.Exit{At: w.now}) },
		"after all": func(w *world, _ string) {
			w.r.TakeStandby(w.t.Context(), like(w), nil)
			w.now = w.now.Add(standbyTaken + time.Second)
		},
	} {
		t.Run(name, func(t *testing.T) {
			w, _, s := newReady(t)
			id := w.ready()
			if useless := w.r.standby.useless(w.now, w.r.alive); len(useless) != 0 {
				t.Fatalf("%v are useless at once", useless)
			}
			use(w, id)
			useless := w.r.standby.useless(w.now, w.r.alive)
			if len(useless) != 1 || useless[0] != id {
				t.Fatalf("useless are %v", useless)
			}
			w.r.dropStandby(t.Context(), log, id)
			w.gone(t, id, s)
		})
	}
}

// gone fails unless nothing is left of a standby.
func (w *world) gone(t *testing.T, id string, s *slots) {
	t.Helper()
	pool, _ := w.r.Pools.Get("default")
	groups, err := w.r.Cgroups.List()
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range groups {
		if g == id {
			t.Error("its control group is left")
		}
	}
	if _, err := w.k.Find(id); !errs.Is(err, errs.NotFound) {
		t.Error("its program is left")
	}
	if exists(pool.Path(id)) || exists(w.r.dir(id)) {
		t.Error("its files are left")
	}
	if _, ok := s.of[id]; ok {
		t.Error("its place is not given back")
	}
}

// TestStandbysOfAnEarlierDaemon are ended before anything gets their places, and
// taken away once pools and networks are there.
func TestStandbysOfAnEarlierDaemon(t *testing.T) {
	w, _, _ := newReady(t)
	id := w.ready()
	o := w.r.Options
	s := &slots{of: map[string]int{}}
	o.Slots = s
	o.Pools, o.Networks = control.NewHandles[storage.Pool]("pool"), control.NewHandles[fabric.Fabric]("network")
	next, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := next.FindStandbys(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := w.k.Find(id); !errs.Is(err, errs.NotFound) || s.of[id] != 7 {
		t.Errorf("its program: %v, its place: %v", err, s.of)
	}
	pool, _ := w.r.Pools.Get("default")
	if !exists(pool.Path(id)) {
		t.Error("its volume is gone before the pool was there")
	}
	o.Pools.Put("default", pool)
	next.sweepStandbys(t.Context(), slog.New(slog.DiscardHandler))
	w.r = next
	w.gone(t, id, s)
}

// TestOneThatIsAGuestByNow keeps running under the next daemon, which gives it
// its identity.
func TestOneThatIsAGuestByNow(t *testing.T) {
	w, c, _ := newReady(t)
	id := w.ready()
	if _, err := w.r.Tables.Guests.Create(t.Context(), "h", like(w), store.WithID(id)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.r.Tables.Holders.Create(t.Context(), id, guest.Holder{Host: "h", Slot: 7}, store.WithID(id)); err != nil {
		t.Fatal(err)
	}
	next, err := New(w.r.Options)
	if err == nil {
		err = next.FindStandbys(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	started := w.k.n
	w.r, w.id = next, id
	for range 3 {
		w.settle()
	}
	if w.k.n != started || w.e.frozen || c.renewed[len(c.renewed)-1] != "h" {
		t.Errorf("%d programs were started, frozen %v, renewed %v", w.k.n-started, w.e.frozen, c.renewed)
	}
}

var _ engine.Execer = copiedMachine{}
