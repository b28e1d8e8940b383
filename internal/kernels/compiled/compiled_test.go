package compiled

import (
	"context"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"lodge/internal/base/errs"
	"lodge/internal/kernels"
	"lodge/internal/model/image"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestCheckNamesFieldAndFix(t *testing.T) {
	e, ok := New(t.TempDir(), "").Check("um/mine").(*errs.Error)
	if !ok || e.Kind != errs.Invalid || e.Field != "kernel" || e.Hint == "" {
		t.Error(e)
	}
}

// Compiling takes most of an hour of one processor, so it is done only where
// LODGE_TEST_COMPILE names a folder, in which what is made stays.
func TestBuild(t *testing.T) {
	dir := os.Getenv("LODGE_TEST_COMPILE")
	if dir == "" {
		t.Skip("compiles a kernel: set LODGE_TEST_COMPILE to a folder for it")
	}
	agent := filepath.Join(t.TempDir(), "agent")
	build := exec.Command("go", "build", "-o", agent, "lodge/cmd/lodge-agent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	store, err := kernels.OpenStore(filepath.Join(dir, "kernels"), agent, slog.New(slog.DiscardHandler))
	must(t, err)
	last := ""
	built, err := store.Build(context.Background(), New(filepath.Join(dir, "cache"), agent), name, func(step string, done, _ uint64, _, note string) {
		if step != last || done%100 == 0 {
			t.Log(step, done, note)
			last = step
		}
	})
	must(t, err)
	t.Logf("%+v", built)
	b, err := store.For(t.Context(), "um", image.Info{}, "")
	must(t, err)
	out, err := exec.Command(b.Path, "--version").CombinedOutput()
	if err != nil || !strings.Contains(string(out), built.Info.Version) {
		t.Errorf("it says it is %q, not %s: %v", out, built.Info.Version, err)
	}
}
