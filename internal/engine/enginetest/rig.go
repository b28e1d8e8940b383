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
func Keeper(t testing.TB) (k *keeper.Client, kill func(t *testing.T)) {
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

// BusyboxTree makes in dir the smallest tree that a guest can live in.
func BusyboxTree(t testing.TB, dir string) {
	t.Helper()
	static, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("busybox is not installed")
	}
	for _, d := range []string{"bin", "sbin", "etc", "proc", "sys", "dev", "run", "root", "tmp", "home/ann"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	os.Chmod(filepath.Join(dir, "tmp"), 0o1777)
	os.Chown(filepath.Join(dir, "home/ann"), 1000, 1000)
	if out, err := exec.Command("cp", static, filepath.Join(dir, "bin/busybox")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if out, err := exec.Command("chroot", dir, "/bin/busybox", "--install", "-s", "/bin").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	os.Symlink("/bin/busybox", filepath.Join(dir, "sbin/init"))
	for name, text := range map[string]string{
		"etc/passwd":  "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000:Ann:/home/ann:/bin/sh\n",
		"etc/group":   "root:x:0:\nann:x:1000:\naudio:x:29:ann,bob\n",
		"etc/inittab": "::sysinit:/bin/echo booted\n::ctrlaltdel:/bin/reboot\n::shutdown:/bin/echo going down\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
