package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"testing"

	"lodge/internal/daemon"
	"lodge/internal/engine"
	"lodge/test/toyengine"
)

// TestToyEngine runs guests of an engine that Lodge has never heard of: wiring it
// is one line, and every noun and command takes it as it is.
func TestToyEngine(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("guests need root")
	}
	s := &server{t: t, dir: t.TempDir()}
	if err := os.Chmod(s.dir, 0o711); err != nil {
		t.Fatal(err)
	}
	o := daemon.Options{
		DataDir: s.path("data"), RunDir: s.path("run"), Host: "testhost", Group: fmt.Sprintf("lodge-e2e-toy-%d", os.Getpid()), Prefix: "toy", Pool: "dir",
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Engines: engine.Set{toyengine.Engine{}}, // this is the line
	}
	ctx, end := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- daemon.Run(ctx, o) }()
	t.Cleanup(func() {
		end()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if err := daemon.Down(context.Background(), o, io.Discard); err != nil {
			t.Error(err)
		}
		nothingLeft(t, s.dir, o.Group, o.Prefix)
	})
	until(t, "lodged answers", func() error {
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("lodged ended: %v", err)
		default:
		}
		if r := s.try("version"); r.code != 0 {
			return errors.New(r.err)
		}
		return nil
	})
	s.busybox()
	s.lodge("launch", "busybox", "plain")
	s.lodge("launch", "busybox", "toy1", "--engine", "toy")
	if g := s.guest("toy1"); g.Phase != "running" || g.Engine != "toy" {
		t.Errorf("a guest of the toy: %+v", g)
	}
	if out := s.lodge("engine", "ls"); !strings.Contains(out, "toy") {
		t.Errorf("it is not among the engines:\n%s", out)
	}
	s.refused(1, []string{"toy"}, "exec", "toy1", "--", "true") // it says what it cannot
	s.refused(1, []string{"toy"}, "pause", "toy1")
	s.lodge("exec", "plain", "--", "true")
	s.lodge("stop", "toy1")
	s.lodge("start", "toy1")
	until(t, "its console is kept", func() error {
		if out := s.lodge("logs", "toy1"); !strings.Contains(out, "booted") {
			return fmt.Errorf("it says %q", out)
		}
		return nil
	})
	s.lodge("rm", "-f", "toy1", "plain")
}
