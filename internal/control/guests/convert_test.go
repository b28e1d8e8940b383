package guests

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"lodge/internal/base/errs"
	"lodge/internal/base/trees/treestest"
	"lodge/internal/engine"
	"lodge/internal/layer"
	"lodge/internal/model/guest"
	"lodge/internal/storage"
	"lodge/internal/store/tables"
	"lodge/test/sandbox"
)

// realLayers makes real ext4 files.
type realLayers struct{ layers }

func (*realLayers) Volume(ctx context.Context, path string, size uint64) error {
	return layer.Create(ctx, filepath.Dir(path), size)
}

// narrow is a pool with so many bytes free.
type narrow struct {
	volumes
	free uint64
}

func (n *narrow) Space(context.Context) (storage.Space, error) {
	return storage.Space{Total: 1 << 40, Free: n.free}, nil
}

func (n *narrow) Create(context.Context, string, uint64) error { return storage.Furnish(n.dir) }

// newChanging is a running guest of the host's kernel, with files of its own, on
// a host that has engines of two models.
func newChanging(t *testing.T) (*world, *narrow) {
	t.Helper()
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		sandbox.Missing(t, "mkfs.ext4 is not installed")
	}
	w := newWorld(t, guest.Spec{Power: guest.On, Boots: 1, Disk: 256 << 20})
	box := &toy{k: w.k, info: engine.Info{Name: "box", Model: guest.VM, Form: guest.Volume}, probe: engine.Probe{Ready: true}}
	w.r.Engines = append(w.r.Engines, box)
	w.r.Layers = &realLayers{}
	pool := &narrow{volumes: volumes{dir: w.dir}, free: 1 << 40}
	w.r.Pools.Put("default", pool)
	w.expect(w.settle(), guest.Running)
	treestest.Odd(t, filepath.Join(w.dir, "upper"), 20, 1<<20)
	return w, pool
}

// wish changes the spec as the door does.
func (w *world) wish(change func(s *guest.Spec)) {
	w.t.Helper()
	rec, err := w.r.Tables.Guests.ByID(w.id)
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := w.r.Tables.Guests.Update(w.t.Context(), rec.Name, func(r *tables.GuestRecord) error { change(&r.Spec); return nil }); err != nil {
		w.t.Fatal(err)
	}
}

func become(m guest.Model) func(s *guest.Spec) {
	return func(s *guest.Spec) { s.Model, s.Models, s.Boots = m, s.Models+1, s.Boots+1 }
}

// through lets the guest stop when it is asked, and settles.
func (w *world) through() guest.Status {
	w.t.Helper()
	w.settle()
	if h, err := w.k.Find(w.id); err == nil && h.State().Exit == nil {
		if err := h.Signal(w.t.Context(), 15); err != nil {
			w.t.Fatal(err)
		}
	}
	return w.settle()
}

func wantForm(t *testing.T, dir string, want layer.Form) {
	t.Helper()
	if f, err := layer.FormOf(dir); err != nil || f != want {
		t.Errorf("the layer is a %s (%v), want a %s", f, err, want)
	}
}

func TestChangeOfModel(t *testing.T) {
	w, _ := newChanging(t)
	want := treestest.Manifest(t, filepath.Join(w.dir, "upper"))
	var told []uint64
	w.r.Copied = func(_ string, done, _ uint64) { told = append(told, done) }
	c, err := w.r.Foresee(t.Context(), w.id, guest.VM, "")
	if err != nil || c.Refusal != nil || !c.Copies || c.Bytes < 1<<20 || c.Needs < c.Bytes || c.Time <= 0 || !c.Running || c.Engine != "box" || c.From != guest.OS {
		t.Errorf("foreseen %+v, %v", c, err)
	}
	wantForm(t, w.dir, layer.Tree)

	w.wish(become(guest.VM))
	s := w.through()
	w.expect(s, guest.Running)
	wantForm(t, w.dir, layer.Volume)
	if s.Model != guest.VM || s.Engine != "box" || s.Problem != nil || len(told) == 0 {
		t.Errorf("status %+v, told %v, refusal %+v", s, told, s.Refusal)
	}
	w.wish(become(guest.OS))
	s = w.through()
	w.expect(s, guest.Running)
	wantForm(t, w.dir, layer.Tree)
	if s.Model != guest.OS || s.Engine != "toy" {
		t.Errorf("status %+v", s)
	}
	treestest.Same(t, treestest.Manifest(t, filepath.Join(w.dir, "upper")), want)
}

// TestChangeOfAStoppedGuestIsMadeAtOnce: who asks for it learns then whether it
// can be, not with the next start.
func TestChangeOfAStoppedGuestIsMadeAtOnce(t *testing.T) {
	w, _ := newChanging(t)
	w.wish(func(s *guest.Spec) { s.Power = guest.Off })
	w.expect(w.through(), guest.Placed)
	w.wish(func(s *guest.Spec) { s.Model, s.Models = guest.VM, 1 })
	s := w.settle()
	w.expect(s, guest.Placed)
	wantForm(t, w.dir, layer.Volume)
	if s.Model != guest.VM {
		t.Errorf("status %+v", s)
	}
}

// TestRefusedChangeLeavesTheGuestAsItWas: it comes back as what it was, says why
// beside it, and can be asked again.
func TestRefusedChangeLeavesTheGuestAsItWas(t *testing.T) {
	w, pool := newChanging(t)
	want := treestest.Manifest(t, filepath.Join(w.dir, "upper"))
	pool.free = 1 << 20
	c, err := w.r.Foresee(t.Context(), w.id, guest.VM, "")
	if err != nil || !errs.Is(c.Refusal, errs.NoSpace) {
		t.Errorf("foreseen %+v, %v", c, err)
	}
	w.wish(become(guest.VM))
	s := w.through()
	w.expect(s, guest.Running)
	wantForm(t, w.dir, layer.Tree)
	if s.Refused != 1 || s.Refusal == nil || !s.Refusal.Final || !strings.Contains(s.Refusal.Message, "stays os") || s.Engine != "toy" || s.Model != guest.OS {
		t.Errorf("status %+v, refusal %+v", s, s.Refusal)
	}
	if s.Problem == nil || !s.Problem.Aside || s.Problem.Message != s.Refusal.Message {
		t.Errorf("the problem beside it is %+v", s.Problem)
	}
	treestest.Same(t, treestest.Manifest(t, filepath.Join(w.dir, "upper")), want)

	w.wish(func(s *guest.Spec) { s.Boots++ }) // a restart alone does not try again
	w.expect(w.through(), guest.Running)
	wantForm(t, w.dir, layer.Tree)

	pool.free = 1 << 40
	w.wish(become(guest.VM))
	s = w.through()
	w.expect(s, guest.Running)
	wantForm(t, w.dir, layer.Volume)
	if s.Problem != nil || s.Engine != "box" {
		t.Errorf("status %+v", s)
	}
}

// TestAnOldFormOfAGuestThatIsOfItsModel, as a snapshot brings back, is no change
// of model: there is nothing to go back to.
func TestAnOldFormOfAGuestThatIsOfItsModel(t *testing.T) {
	w, pool := newChanging(t)
	w.wish(become(guest.VM))
	w.expect(w.through(), guest.Running)
	w.wish(func(s *guest.Spec) { s.Power = guest.Off })
	w.expect(w.through(), guest.Placed)
	if err := layer.ToTree(t.Context(), w.dir, nil); err != nil {
		t.Fatal(err)
	}
	pool.free = 1 << 20
	if _, err := w.pass(); !errs.Is(err, errs.NoSpace) {
		t.Errorf("%v, want no-space", err)
	}
	pool.free = 1 << 40
	w.expect(w.settle(), guest.Placed)
	wantForm(t, w.dir, layer.Volume)
}

func TestAFreshGuestIsMadeInItsForm(t *testing.T) {
	w, _ := newBox(t, guest.Spec{Power: guest.On, Boots: 1, CPUs: 1, Memory: 256 << 20, Disk: 64 << 20})
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		sandbox.Missing(t, "mkfs.ext4 is not installed")
	}
	w.r.Layers = &realLayers{}
	w.r.Pools.Put("default", &narrow{volumes: volumes{dir: w.dir}})
	w.expect(w.settle(), guest.Running)
	wantForm(t, w.dir, layer.Volume)
	if left, err := os.ReadDir(filepath.Join(w.dir, "upper")); err != nil || len(left) != 0 {
		t.Errorf("upper: %v, %v", left, err)
	}
}

// TestACancelledChangeIsNoRefusal: the daemon went down in the middle.
func TestACancelledChangeIsNoRefusal(t *testing.T) {
	w, _ := newChanging(t)
	w.wish(func(s *guest.Spec) { s.Power = guest.Off })
	w.expect(w.through(), guest.Placed)
	w.wish(func(s *guest.Spec) { s.Model, s.Models = guest.VM, 1 })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	g, _ := w.r.record(w.id)
	if err := w.r.convert(ctx, g); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	g, _ = w.r.record(w.id)
	if g.Status.Refused != 0 {
		t.Errorf("status %+v", g.Status)
	}
	w.expect(w.settle(), guest.Placed)
	wantForm(t, w.dir, layer.Volume)
}
