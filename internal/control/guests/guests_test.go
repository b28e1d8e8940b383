package guests

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"lodge/internal/base/cgroup"
	"lodge/internal/base/errs"
	"lodge/internal/control"
	"lodge/internal/engine"
	"lodge/internal/fabric"
	"lodge/internal/keeper"
	"lodge/internal/model/guest"
	"lodge/internal/storage"
	"lodge/internal/store"
	"lodge/internal/store/tables"
)

// keepers is a keeper that starts nothing: tests say how programs end.
type keepers struct {
	mu   sync.Mutex
	held map[string]*keeper.State
	fail error
	n    int
}

func (k *keepers) Start(_ context.Context, name string, _ keeper.Program) (keeper.Held, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.fail != nil {
		return nil, k.fail
	}
	if k.held[name] != nil {
		return nil, &errs.Error{Kind: errs.Exists}
	}
	k.n++
	k.held[name] = &keeper.State{Name: name, Pid: 1000 + k.n}
	return held{k, name}, nil
}

func (k *keepers) Find(name string) (keeper.Held, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.held[name] == nil {
		return nil, &errs.Error{Kind: errs.NotFound}
	}
	return held{k, name}, nil
}

func (k *keepers) All() []keeper.State { return nil }
func (k *keepers) Forget(_ context.Context, name string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.held, name)
	return nil
}
func (k *keepers) Exits(context.Context) <-chan keeper.State { return nil }
func (k *keepers) Close() error                              { return nil }

func (k *keepers) end(name string, e keeper.Exit) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.held[name].Exit = &e
}

type held struct {
	k    *keepers
	name string
}

func (h held) State() keeper.State {
	h.k.mu.Lock()
	defer h.k.mu.Unlock()
	return *h.k.held[h.name]
}
func (held) Pidfd() int                                { return -1 }
func (held) Wait(context.Context) (keeper.Exit, error) { return keeper.Exit{}, nil }
func (h held) Signal(_ context.Context, sig syscall.Signal) error {
	h.k.end(h.name, keeper.Exit{Signal: sig, At: time.Now()})
	return nil
}
func (held) Watch(context.Context, int) error                    { return nil }
func (held) Console(ctx context.Context) (keeper.Console, error) { return nil, nil }

// toy is an engine whose machines do what they are told.
type toy struct {
	k      *keepers
	info   engine.Info
	mu     sync.Mutex
	asked  int
	killed int
	frozen bool
	probe  engine.Probe
	mute   error        // what its machines answer with
	parts  engine.Parts // of the last start
}

func (e *toy) Info(context.Context) (engine.Info, error) { return e.info, nil }
func (e *toy) Program(_ guest.Guest, p engine.Parts) (keeper.Program, error) {
	e.parts = p
	return keeper.Program{}, nil
}
func (e *toy) Connect(_ context.Context, g guest.Guest, _ engine.Parts, _ keeper.Held) (engine.Machine, error) {
	return toyMachine{e, g.ID}, nil
}

type toyMachine struct {
	*toy
	id string
}

func (m toyMachine) Probe(context.Context) (engine.Probe, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.probe
	p.Paused = m.frozen
	return p, m.mute
}
func (m toyMachine) Shutdown(context.Context) error { m.asked++; return nil }
func (m toyMachine) Kill(context.Context) error {
	if m.mute != nil {
		return m.mute
	}
	m.killed++
	m.k.end(m.id, keeper.Exit{Signal: syscall.SIGKILL, At: time.Now()})
	return nil
}
func (m toyMachine) Pause(context.Context) error  { m.frozen = true; return nil }
func (m toyMachine) Resume(context.Context) error { m.frozen = false; return nil }
func (toyMachine) Close() error                   { return nil }

type volumes struct {
	storage.Pool
	dir string
}

func (volumes) Create(context.Context, string, uint64) error   { return nil }
func (v volumes) Path(string) string                           { return v.dir }
func (volumes) SetQuota(context.Context, string, uint64) error { return nil }
func (volumes) Remove(context.Context, string) error           { return nil }

type contents struct{}

func (contents) Mount(context.Context, string) (string, error) { return "/", nil }
func (contents) File(digest string) (string, error)            { return "/blobs/" + digest, nil }

type world struct {
	t   *testing.T
	r   *Reconciler
	k   *keepers
	e   *toy
	id  string
	now time.Time

	dir       string // of the guest's volume
	layers    *layers
	templates *templates
	kernels   *kernels
}

func newWorld(t *testing.T, spec guest.Spec) *world {
	return newWorldOf(t, spec, engine.Info{Name: "toy", Model: guest.OS, Form: guest.Tree}, func(e *toy) engine.Engine { return e })
}

// newWorldOf is a world whose engine is what wrap makes of a toy.
func newWorldOf(t *testing.T, spec guest.Spec, info engine.Info, wrap func(*toy) engine.Engine) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("control groups need root")
	}
	layout, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	tree, err := layout.Open(fmt.Sprintf("lodge-test-guests-%d", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tree.Destroy(context.Background()) })
	s := store.NewMemory()
	t.Cleanup(func() { s.Close() })
	w := &world{t: t, k: &keepers{held: map[string]*keeper.State{}}, now: time.Now()}
	w.e, w.layers, w.kernels, w.templates = &toy{k: w.k, info: info, probe: engine.Probe{Ready: true}}, &layers{}, &kernels{}, &templates{}
	all := tables.Open(s)
	pools := control.NewHandles[storage.Pool]("pool")
	w.dir = t.TempDir()
	pools.Put("default", volumes{dir: w.dir})
	w.r, err = New(Options{
		Cards:  "lg",
		Tables: all, Host: "h", HostBoot: "boot1", Dir: t.TempDir(), Keepers: w.k, Engines: engine.Set{wrap(w.e)}, Layers: w.layers, Templates: w.templates, Kernels: w.kernels, CPUs: []int{0, 1},
		Pools: pools, Networks: control.NewHandles[fabric.Fabric]("network"), Cgroups: tree, Images: contents{}, Now: func() time.Time { return w.now },
	})
	if err != nil {
		t.Fatal(err)
	}
	spec.Model, spec.Pool = info.Model, "default"
	rec, err := all.Guests.Create(t.Context(), "g", spec)
	if err != nil {
		t.Fatal(err)
	}
	w.id = rec.ID
	if _, err := all.Holders.Create(t.Context(), rec.ID, guest.Holder{Host: "h"}, store.WithID(rec.ID)); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) pass() (time.Duration, error) {
	return w.r.Reconcile(w.t.Context(), slog.New(slog.NewTextHandler(io.Discard, nil)), w.id)
}

func (w *world) settle() guest.Status {
	w.t.Helper()
	if _, err := w.pass(); err != nil {
		w.t.Fatal(err)
	}
	g, err := w.r.Tables.Guests.ByID(w.id)
	if err != nil {
		w.t.Fatal(err)
	}
	return g.Status
}

func (w *world) want(change func(*guest.Spec)) {
	w.t.Helper()
	_, err := w.r.Tables.Guests.Update(w.t.Context(), "g", func(r *tables.GuestRecord) error { change(&r.Spec); return nil })
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) expect(s guest.Status, phase guest.Phase) {
	w.t.Helper()
	if s.Phase != phase {
		w.t.Fatalf("phase is %s, want %s: %+v", s.Phase, phase, s)
	}
}

func TestStartsAndStops(t *testing.T) {
	w := newWorld(t, guest.Spec{Power: guest.On, Boots: 1})
	s := w.settle()
	w.expect(s, guest.Running)
	if s.Pid != 1001 || s.Generation != 1 {
		t.Errorf("status %+v", s)
	}
	w.want(func(s *guest.Spec) { s.Power = guest.Off })
	if s = w.settle(); s.Doing != guest.Stop || w.e.asked != 1 {
		t.Fatalf("a clean stop was not asked for: %+v", s)
	}
	w.k.end(w.id, keeper.Exit{Signal: syscall.SIGINT, At: w.now})
	s = w.settle()
	w.expect(s, guest.Placed)
	if s.Exit != nil || w.e.killed != 0 {
		t.Errorf("a stop that was asked for counts as an end of its own: %+v", s)
	}
}

func TestStopBecomesKill(t *testing.T) {
	w := newWorld(t, guest.Spec{Power: guest.On, Boots: 1, StopTimeout: 5})
	w.settle()
	w.want(func(s *guest.Spec) { s.Power = guest.Off })
	if wait, err := w.pass(); err != nil || wait != 5*time.Second {
		t.Fatalf("waits %v, %v", wait, err)
	}
	w.now = w.now.Add(6 * time.Second)
	w.settle()
	if w.e.killed != 1 {
		t.Fatal("was not killed when its time was over")
	}
	w.expect(w.settle(), guest.Placed)
}

func TestForcedStopOfAPausedGuest(t *testing.T) {
	w := newWorld(t, guest.Spec{Power: guest.Held, Boots: 1})
	w.expect(w.settle(), guest.Paused)
	w.want(func(s *guest.Spec) { s.Power, s.Force = guest.Off, true })
	w.settle()
	w.expect(w.settle(), guest.Placed)
	if w.e.asked != 0 || w.e.killed != 1 {
		t.Errorf("asked %d times, killed %d times", w.e.asked, w.e.killed)
	}
}

func TestRestartPolicy(t *testing.T) {
	w := newWorld(t, guest.Spec{Power: guest.On, Boots: 1, Restart: guest.OnFailure})
	w.settle()
	w.k.end(w.id, keeper.Exit{Code: 3, At: w.now})
	wait, err := w.pass()
	if err != nil || wait != guest.FirstBackoff {
		t.Fatalf("waits %v, %v", wait, err)
	}
	w.now = w.now.Add(guest.FirstBackoff)
	s := w.settle()
	w.expect(s, guest.Running)
	if s.Restarts != 1 || s.Exit != nil {
		t.Errorf("status %+v", s)
	}
	w.k.end(w.id, keeper.Exit{Code: 0, At: w.now})
	s = w.settle()
	w.expect(s, guest.Placed)
	if s.Exit == nil || s.Exit.Code != 0 {
		t.Errorf("exit is %+v", s.Exit)
	}
	w.want(func(s *guest.Spec) { s.Boots++ })
	w.expect(w.settle(), guest.Running)
}

func TestGuestReboots(t *testing.T) {
	w := newWorld(t, guest.Spec{Power: guest.On, Boots: 1})
	w.settle()
	w.k.end(w.id, keeper.Exit{Signal: syscall.SIGHUP, At: w.now.Add(time.Minute)})
	s := w.settle()
	w.expect(s, guest.Running)
	if s.Pid != 1002 {
		t.Errorf("was not started anew: %+v", s)
	}
}

func TestHostWentDown(t *testing.T) {
	for _, back := range []bool{false, true} {
		w := newWorld(t, guest.Spec{Power: guest.On, Boots: 1, Autostart: guest.Autostart{Enabled: back}})
		w.settle()
		w.k.Forget(t.Context(), w.id)
		w.r.HostBoot = "boot2"
		want := guest.Placed
		if back {
			want = guest.Running
		}
		w.expect(w.settle(), want)
		w.expect(w.settle(), want)
	}
}

func TestGoingDownChangesNoWish(t *testing.T) {
	w := newWorld(t, guest.Spec{Power: guest.On, Boots: 1, Restart: guest.Always})
	w.settle()
	w.r.GoDown()
	w.settle()
	w.k.end(w.id, keeper.Exit{Signal: syscall.SIGINT, At: w.now})
	s := w.settle()
	if !w.r.WentDownWithHost(guest.Guest{Status: s}) {
		t.Fatalf("does not count as gone down with the host: %+v", s)
	}
	groups, err := w.r.Cgroups.List()
	if err != nil || len(groups) != 0 {
		t.Errorf("groups left: %v, %v", groups, err)
	}
}

func TestTrouble(t *testing.T) {
	w := newWorld(t, guest.Spec{Power: guest.On, Boots: 1})
	w.k.fail = &errs.Error{Kind: errs.NoSpace, Msg: "disk full", Hint: "make space"}
	for range 2 {
		if _, err := w.pass(); err == nil {
			t.Fatal("no error")
		}
	}
	g, err := w.r.Tables.Guests.ByID(w.id)
	if err != nil {
		t.Fatal(err)
	}
	p := g.Status.Problem
	if p == nil || p.Code != "no-space" || p.Hint != "make space" || p.Attempts != 2 || g.Status.Generation != 0 {
		t.Fatalf("problem %+v, generation %d", p, g.Status.Generation)
	}
	w.k.fail = nil
	s := w.settle()
	w.expect(s, guest.Running)
	if s.Problem != nil {
		t.Errorf("problem is still told: %+v", s.Problem)
	}
}

func TestRemoved(t *testing.T) {
	w := newWorld(t, guest.Spec{Power: guest.On, Boots: 1})
	w.settle()
	_, err := w.r.Tables.Guests.Update(t.Context(), "g", func(r *tables.GuestRecord) error {
		r.Deleting, r.Spec.Force = &w.now, true
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	w.settle()
	w.expect(w.settle(), guest.Gone)
}

func TestLastLines(t *testing.T) {
	for _, c := range []struct {
		text string
		n    int
		want string
	}{{"a\nb\nc\n", 2, "b\nc\n"}, {"a\nb\nc", 1, "c"}, {"a\n", 5, "a\n"}, {"a\nb\n", 0, ""}, {"a\nb\n", -1, "a\nb\n"}, {"", 3, ""}} {
		if got := string(lastLines([]byte(c.text), c.n)); got != c.want {
			t.Errorf("last %d of %q is %q, want %q", c.n, c.text, got, c.want)
		}
	}
}
