package oslevel

import (
	"context"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"lodge/internal/engine"
	"lodge/internal/engine/enginetest"
	"lodge/internal/keeper"
	"lodge/internal/model/guest"
)

// build compiles one of the project's static programs.
func build(t testing.TB, command string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), filepath.Base(command))
	c := exec.Command("go", "build", "-o", out, command)
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return out
}

// TestEngine holds this engine to the suite of all engines.
func TestEngine(t *testing.T) {
	r := newRig(t)
	r.engine.o.Agent = build(t, "lodge/cmd/lodge-agent")
	// Beside the test's own directory, because a socket's path must be short.
	dir, err := os.MkdirTemp("", "lodge-keeper-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	k, err := keeper.Open(t.Context(), keeper.Options{Dir: dir, Binary: build(t, "lodge/cmd/lodge-keeper"), Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := k.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		k.Close()
	})
	enginetest.Run(t, enginetest.Harness{Engine: r.engine, Keepers: k,
		Guest: func(t *testing.T, spec guest.Spec) (guest.Guest, engine.Parts) {
			return r.guest(func(g *guest.Guest, _ *engine.Parts) {
				if spec.Memory == 0 {
					spec.Memory = 256 << 20
				}
				if spec.Processes == 0 {
					spec.Processes = 200
				}
				g.Spec = spec
			})
		},
		Processes: func(t *testing.T, parts engine.Parts) int64 {
			for _, tasks := range r.tree.Join(parts.Cgroup).Tasks {
				if b, err := os.ReadFile(filepath.Join(filepath.Dir(tasks), "pids.max")); err == nil {
					n, _ := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
					return n
				}
			}
			b, err := os.ReadFile(filepath.Join(r.tree.Join(parts.Cgroup).Dir, "pids.max"))
			if err != nil {
				t.Fatal(err)
			}
			n, _ := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
			return n
		},
	})
}
