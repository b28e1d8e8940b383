package compiled

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"lodge/internal/base/errs"
	"lodge/internal/kernels"
	"lodge/internal/model/image"
	"lodge/test/sandbox"
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

// TestMend patches a source once, and leaves alone one that it does not fit.
func TestMend(t *testing.T) {
	if _, err := exec.LookPath("patch"); err != nil {
		sandbox.Missing(t, "patch is not installed: scripts/deps.sh test")
	}
	text, err := patches.ReadFile("patches/tap-without-queues.patch")
	must(t, err)
	dir := t.TempDir()
	file := filepath.Join(dir, "arch/um/drivers/vector_kern.c")
	must(t, os.MkdirAll(filepath.Dir(file), 0o755))
	before := unpatched(string(text))
	must(t, os.WriteFile(file, []byte(before), 0o644))
	after := ""
	for range 2 {
		if fits, err := mend(t.Context(), dir); !fits || err != nil {
			t.Fatalf("it does not fit, %v", err)
		}
		is, err := os.ReadFile(file)
		must(t, err)
		if string(is) == before || after != "" && string(is) != after {
			t.Error("it was not patched once")
		}
		after = string(is)
	}
	const other = "nothing of it\n"
	must(t, os.WriteFile(file, []byte(other), 0o644))
	if fits, err := mend(t.Context(), dir); fits || err != nil {
		t.Errorf("it fits something else, %v", err)
	}
	if is, _ := os.ReadFile(file); string(is) != other {
		t.Errorf("a source that it does not fit became %q", is)
	}
}

// unpatched is the least that a patch of one file applies to: the lines it
// shows, where it says they are.
func unpatched(patch string) string {
	var out []string
	for line := range strings.Lines(patch) {
		at := 0
		switch {
		case strings.HasPrefix(line, "@@ -"):
			_, err := fmt.Sscanf(line, "@@ -%d,", &at)
			for err == nil && len(out) < at-1 {
				out = append(out, fmt.Sprintf("line %d\n", len(out)+1))
			}
		case len(out) > 0 && (strings.HasPrefix(line, " ") || strings.HasPrefix(line, "-")):
			out = append(out, line[1:])
		}
	}
	return strings.Join(out, "")
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
