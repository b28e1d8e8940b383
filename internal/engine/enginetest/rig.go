package enginetest

import (
	"context"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"lodge/internal/keeper"
)

// What harnesses build on.

// Build compiles one of the project's static programs: "lodge/cmd/lodge-agent".
func Build(t testing.TB, command string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), filepath.Base(command))
	c := exec.Command("go", "build", "-o", out, command)
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return out
}

// Keeper starts a real keeper that ends with t. kill ends it as a crash would;
// the next request starts another.
func Keeper(t *testing.T) (k *keeper.Client, kill func(t *testing.T)) {
	t.Helper()
	// Beside the test's own directory, because a socket's path must be short.
	dir, err := os.MkdirTemp("", "lodge-keeper-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	k, err = keeper.Open(t.Context(), keeper.Options{Dir: dir, Binary: Build(t, "lodge/cmd/lodge-keeper"), Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := k.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		k.Close()
	})
	return k, func(t *testing.T) { crashKeeper(t, dir) }
}

// crashKeeper kills the keeper of dir and waits until it is gone.
func crashKeeper(t *testing.T, dir string) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		text, _ := os.ReadFile(p)
		argv := strings.Split(string(text), "\x00")
		if len(argv) < 3 || argv[1] != "-dir" || argv[2] != dir {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(p)))
		if err != nil {
			t.Fatal(err)
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		if err := unix.PidfdSendSignal(fd, syscall.SIGKILL, nil, 0); err != nil {
			t.Fatal(err)
		}
		if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(patience.Milliseconds())); n != 1 {
			t.Fatal("the keeper does not end: ", err)
		}
		return
	}
	t.Fatal("no keeper runs")
}
