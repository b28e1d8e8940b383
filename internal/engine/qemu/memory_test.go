package qemu

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lodge/internal/base/session"
	"lodge/internal/engine"
	"lodge/internal/engine/enginetest"
	"lodge/internal/keeper"
	"lodge/internal/model/guest"
)

// shell runs a command inside the guest.
func (x *kept) shell(command string) string {
	x.t.Helper()
	in, out, err := os.Pipe()
	if err != nil {
		x.t.Fatal(err)
	}
	defer in.Close()
	s, err := x.m.Exec(x.t.Context(), session.Request{Argv: []string{"sh", "-c", command}, Stdout: out, Stderr: out})
	out.Close()
	if err != nil {
		x.t.Fatal(err)
	}
	var b bytes.Buffer
	if _, err := b.ReadFrom(in); err != nil {
		x.t.Fatal(err)
	}
	if _, err := s.Wait(x.t.Context()); err != nil {
		x.t.Fatal(err)
	}
	return strings.TrimSpace(b.String())
}

// ready waits until the guest's init says that it is up.
func (x *kept) ready() {
	x.t.Helper()
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if p, err := x.m.Probe(x.t.Context()); err == nil && p.Ready {
			return
		}
	}
	x.t.Fatalf("it never was up; its console:\n%s", engine.LastLines(x.parts))
}

// TestManyGoOnFromOneMemory: guests that go on from an image have the
// same past and futures of their own, and can be saved themselves.
func TestManyGoOnFromOneMemory(t *testing.T) {
	r := newRig(t)
	k, _ := enginetest.Keeper(t)
	g, p := r.guest(t, guest.Spec{})
	first := r.start(t, k, g, p)
	first.ready()
	first.shell("echo the same past >/run/past; sync")
	if err := first.m.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := first.m.Save(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	var all []*kept
	for range 2 {
		g, p := r.copy(t, g, p)
		p.Memory = dir
		start := time.Now()
		x := r.start(t, k, g, p)
		if err := x.m.Renew(t.Context()); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s answers as itself after %v", g.Name, time.Since(start))
		all = append(all, x)
	}
	for _, x := range all {
		x.shell("hostname >/run/future")
	}
	for _, x := range all {
		if out := x.shell("cat /run/past /run/future"); out != "the same past\n"+x.g.Name {
			t.Errorf("%s says %q", x.g.Name, out)
		}
	}
	x := all[0]
	// No later run may be told by what this one said.
	x.shell("echo Kernel panic - not syncing: of an earlier run >/dev/console")
	x.says("of an earlier run")
	if err := x.m.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	again := t.TempDir()
	if err := x.m.Save(t.Context(), again); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(again, savedMemory)); err != nil {
		t.Errorf("the memory of a guest that went on from an image is none itself: %v", err)
	}
	x.end()
	if _, err := k.Find(x.g.ID); err != nil {
		t.Fatal(err)
	}
	if err := k.Forget(t.Context(), x.g.ID); err != nil {
		t.Fatal(err)
	}
	x.parts.Memory = again
	y := r.start(t, k, x.g, x.parts)
	if out := y.shell("cat /run/past /run/future"); out != "the same past\n"+x.g.Name {
		t.Errorf("saved once more, it says %q", out)
	}
	for _, e := range []keeper.Exit{{}, {Code: 1}} {
		if is, last := r.engine.Ended(y.g, y.parts, e); is.Code != brokenOff || strings.Contains(last, "panic") {
			t.Errorf("its end by %+v is told as %+v, %q", e, is, last)
		}
	}
}
