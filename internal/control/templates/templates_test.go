package templates

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"lodge/internal/engine"
	"lodge/internal/model/guest"
)

var able = engine.Info{Name: "box", Form: guest.Volume, Can: engine.Can{Save: true, Renew: true, Pause: true}}

func TestFits(t *testing.T) {
	if !fits(guest.Guest{}, able) {
		t.Error("a plain guest does not fit")
	}
	for what, g := range map[string]guest.Spec{
		"a command": {Command: []string{"x"}}, "settings": {Env: map[string]string{"A": "b"}},
		"cloud-init": {UserData: "#cloud-config"}, "a disk": {Disks: []guest.FurtherDisk{{Name: "d"}}},
	} {
		if fits(guest.Guest{Spec: g}, able) {
			t.Errorf("a guest with %s fits", what)
		}
	}
	cannot := able
	cannot.Can.Renew = false
	if fits(guest.Guest{}, cannot) {
		t.Error("a guest whose engine cannot renew fits")
	}
}

// TestKeyTellsApart: whatever a machine's state depends on makes another
// template, and nothing else does.
func TestKeyTellsApart(t *testing.T) {
	base := guest.Guest{Spec: guest.Spec{Digest: "a", Memory: 1, CPUs: 1, Disk: 1}}
	seen := map[string]string{keyOf(base, able, engine.Parts{}): "the plain one"}
	add := func(what string, g guest.Guest, i engine.Info, p engine.Parts) {
		t.Helper()
		k := keyOf(g, i, p)
		if other, taken := seen[k]; taken {
			t.Errorf("%s has the key of %s", what, other)
		}
		seen[k] = what
	}
	other := func(change func(*guest.Spec)) guest.Guest { g := base; change(&g.Spec); return g }
	add("another image", other(func(s *guest.Spec) { s.Digest = "b" }), able, engine.Parts{})
	add("more memory", other(func(s *guest.Spec) { s.Memory = 2 }), able, engine.Parts{})
	add("more processors", other(func(s *guest.Spec) { s.CPUs = 2 }), able, engine.Parts{})
	add("a larger disk", other(func(s *guest.Spec) { s.Disk = 2 }), able, engine.Parts{})
	add("another machine", other(func(s *guest.Spec) { s.Hardware.Machine = "m" }), able, engine.Parts{})
	newer := able
	newer.Version = "2"
	add("a newer monitor", base, newer, engine.Parts{})
	fast := able
	fast.Facts = []engine.Fact{{Name: "acceleration", Value: "kvm: 10 ns"}}
	add("acceleration", base, fast, engine.Parts{})
	add("a network card", base, able, engine.Parts{NICs: []engine.NIC{{MTU: 1500}}})
	add("another kernel", base, able, engine.Parts{Kernel: engine.Kernel{Version: "7"}})

	named := base
	named.Name, named.Spec.Image, named.Spec.Restart = "web1", "debian/12", guest.Always
	again := fast
	again.Facts = []engine.Fact{{Name: "acceleration", Value: "kvm: 11 ns"}}
	for _, k := range []string{keyOf(named, able, engine.Parts{IDBase: 7, Dir: "/x"}), keyOf(base, again, engine.Parts{})} {
		if _, known := seen[k]; !known {
			t.Error("what is not the machine's made another template")
		}
	}
}

func TestExcess(t *testing.T) {
	at := func(minute int) time.Time { return time.Unix(int64(60*minute), 0) }
	a, b, c := &template{key: "a", size: 4, used: at(1)}, &template{key: "b", size: 4, used: at(3)}, &template{key: "c", size: 4, used: at(2)}
	gone := excess([]*template{a, b, c}, 8)
	if len(gone) != 1 || gone[0] != a {
		t.Errorf("dropped %v", gone)
	}
	if gone := excess([]*template{a, b, c}, 12); len(gone) != 0 {
		t.Errorf("dropped %v of what fits", gone)
	}
	if gone := excess([]*template{b}, 3); len(gone) != 1 {
		t.Error("kept one that is larger than the budget")
	}
}

// TestOpenSweeps: what a daemon left half made is gone, what is whole is found.
func TestOpenSweeps(t *testing.T) {
	dir := t.TempDir()
	for _, f := range []string{"whole/disk/root.ext4", "whole/memory/device", "half.new/disk/root.ext4", "broken/disk/root.ext4"} {
		path := filepath.Join(dir, f)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte("x"), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	all := &Templates{Options: Options{Dir: dir, Log: slog.New(slog.NewTextHandler(io.Discard, nil))}, have: map[string]*template{}}
	if err := all.scan(context.Background()); err != nil {
		t.Fatal(err)
	}
	if len(all.have) != 1 || all.have["whole"] == nil || all.have["whole"].size != 1 {
		t.Errorf("found %v", all.have)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 {
		t.Errorf("left %v, %v", left, err)
	}
}
