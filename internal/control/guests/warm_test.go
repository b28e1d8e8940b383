package guests

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"lodge/internal/base/errs"
	"lodge/internal/engine"
	"lodge/internal/keeper"
	"lodge/internal/layer"
	"lodge/internal/model/guest"
)

// templates has one for everybody, or none.
type templates struct {
	memory, disk string
	wanted       int
}

func (t *templates) Find(guest.Guest, engine.Info, engine.Parts) (memory, disk string, ok bool) {
	return t.memory, t.disk, t.memory != ""
}
func (t *templates) Want(guest.Guest, engine.Info, engine.Parts) { t.wanted++ }

// copied is an engine whose machines can be given another identity.
type copied struct {
	*toy
	renewed []string
	ran     int
	fail    error
}

func (c *copied) Connect(_ context.Context, g guest.Guest, _ engine.Parts, _ keeper.Held) (engine.Machine, error) {
	return copiedMachine{toyMachine{c.toy, g.ID}, c, g.Name}, nil
}

type copiedMachine struct {
	toyMachine
	c    *copied
	name string
}

func (m copiedMachine) Renew(context.Context) error {
	m.c.renewed = append(m.c.renewed, m.name)
	return m.c.fail
}

func newWarm(t *testing.T) (*world, *copied) {
	var c *copied
	w := newWorldOf(t, guest.Spec{Power: guest.On, Boots: 1, Memory: 256 << 20},
		engine.Info{Name: "box", Model: guest.VM, Form: guest.Volume}, func(e *toy) engine.Engine { c = &copied{toy: e}; return c })
	w.templates.memory, w.templates.disk = "/memory", t.TempDir()
	if err := os.WriteFile(filepath.Join(w.templates.disk, volumeFile), []byte("warm"), 0o600); err != nil {
		t.Fatal(err)
	}
	return w, c
}

func TestAFreshGuestGoesOnFromATemplate(t *testing.T) {
	w, c := newWarm(t)
	w.expect(w.settle(), guest.Running)
	if w.e.parts.Memory != "/memory" || !slices.Equal(c.renewed, []string{"g"}) || w.layers.volume != "" {
		t.Errorf("memory %q, renewed %v, made %q", w.e.parts.Memory, c.renewed, w.layers.volume)
	}
	if have, err := os.ReadFile(filepath.Join(w.dir, volumeFile)); err != nil || string(have) != "warm" {
		t.Errorf("its disk is %q, %v", have, err)
	}
	if w.templates.wanted != 0 {
		t.Error("one that did not boot made a template wanted")
	}
	w.want(func(s *guest.Spec) { s.Boots++ })
	w.k.end(w.id, keeper.Exit{At: w.now})
	w.expect(w.settle(), guest.Running)
	if w.e.parts.Memory != "" || len(c.renewed) != 1 {
		t.Errorf("its second boot went on from memory %q again", w.e.parts.Memory)
	}
}

func TestABootMakesATemplateWanted(t *testing.T) {
	w, _ := newWarm(t)
	w.templates.memory = ""
	w.e.info.Kernel, w.kernels.path, w.e.probe = "linux", "/boot/vmlinuz", engine.Probe{}
	w.settle()
	if w.settle().Ready || w.templates.wanted != 0 {
		t.Error("wanted before the guest was up")
	}
	w.e.probe.Ready = true
	for range 2 {
		w.settle()
	}
	if w.templates.wanted != 1 {
		t.Errorf("wanted %d times", w.templates.wanted)
	}
}

// TestOneThatDoesNotBecomeItselfBoots: a copy that keeps somebody else's
// identity is ended, and the same disk is never combined with that memory again.
func TestOneThatDoesNotBecomeItselfBoots(t *testing.T) {
	w, c := newWarm(t)
	if err := errors.Join(os.Remove(filepath.Join(w.templates.disk, volumeFile)), layer.Create(t.Context(), w.templates.disk, 64<<20)); err != nil {
		t.Fatal(err)
	}
	c.fail = &errs.Error{Kind: errs.Unavailable, Msg: "it does not answer"}
	if _, err := w.pass(); err == nil || w.e.killed != 1 {
		t.Fatalf("%v, killed %d", err, w.e.killed)
	}
	c.fail = nil
	w.expect(w.settle(), guest.Running)
	if w.e.parts.Memory != "" {
		t.Errorf("went on from memory %q", w.e.parts.Memory)
	}
	if exists(filepath.Join(w.dir, copyMark)) {
		t.Error("it booted with the template's keys")
	}
}
