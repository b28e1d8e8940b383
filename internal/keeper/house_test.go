package keeper_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lodge/internal/keeper"
)

// TestMain plays the parts that tests need other programs for.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 {
		switch os.Args[1] {
		case "-launcher":
			os.Exit(launch(os.Args[2:]))
		case "-daemon":
			os.Exit(daemon(os.Args[2:]))
		}
	}
	dir, err := os.MkdirTemp("", "keeper-test")
	if err != nil {
		panic(err)
	}
	os.Setenv(buildDir, dir)
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// buildDir names the variable that says where the real program is built.
const buildDir = "KEEPER_TEST_BUILD"

// launch makes argv as its own sibling with a terminal if there is one on
// standard input, as a launcher must.
func launch(argv []string) int {
	syscall.CloseOnExec(4)
	answer := os.NewFile(4, "answer")
	if argv[0] == "-fail" {
		fmt.Fprintln(answer, "error no such image")
		return 1
	}
	if argv[0] == "-filtered" {
		argv = argv[1:]
		listener, err := filtered()
		if err == nil {
			err = unix.Sendmsg(4, []byte("listener"), unix.UnixRights(listener), nil, 0)
		}
		if err != nil {
			fmt.Fprintln(answer, "error", err)
			return 1
		}
	}
	attr := &syscall.SysProcAttr{Setsid: true, Cloneflags: syscall.CLONE_PARENT}
	if _, err := unix.IoctlGetTermios(0, unix.TCGETS); err == nil {
		attr.Setctty = true
	}
	pid, err := syscall.ForkExec(argv[0], argv, &syscall.ProcAttr{Files: []uintptr{0, 1, 2, 3}, Sys: attr, Env: os.Environ()})
	if err != nil {
		fmt.Fprintln(answer, "error", err)
		return 1
	}
	fmt.Fprintln(answer, pid)
	return 0
}

// daemon opens the keeper of args[0] with binary args[1], starts a program, says
// so, and waits to be killed.
func daemon(args []string) int {
	ctx := context.Background()
	k, err := keeper.Open(ctx, keeper.Options{Dir: args[0], Binary: args[1]})
	if err == nil {
		_, err = k.Start(ctx, "from-daemon", keeper.Program{Argv: args[2:]})
	}
	fmt.Println("started", err)
	select {}
}

// build makes the real program, once for all tests.
var build = sync.OnceValues(func() (string, error) {
	out := filepath.Join(os.Getenv(buildDir), "lodge-keeper")
	b, err := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, "lodge/cmd/lodge-keeper").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, b)
	}
	return out, nil
})

func binary(t testing.TB) string {
	t.Helper()
	path, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// house is a keeper of a test and what runs in it.
type house struct {
	*keeper.Client
	t   testing.TB
	dir string
}

func newHouse(t testing.TB) *house {
	t.Helper()
	h := &house{t: t, dir: t.TempDir()}
	h.open()
	t.Cleanup(h.clear)
	return h
}

func (h *house) open() {
	h.t.Helper()
	program := binary(h.t) // before the clock starts: it may have to be compiled
	var err error
	h.Client, err = keeper.Open(h.ctx(), keeper.Options{Dir: h.dir, Binary: program})
	if err != nil {
		log, _ := os.ReadFile(filepath.Join(h.dir, "keeper.log"))
		h.t.Fatalf("%v\n%s", err, log)
	}
}

// clear ends everything that the test left.
func (h *house) clear() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for _, s := range h.All() {
		if held, err := h.Find(s.Name); err == nil {
			_ = held.Signal(ctx, syscall.SIGKILL)
			_, _ = held.Wait(ctx)
		}
	}
	if err := h.Shutdown(ctx); err != nil {
		h.t.Errorf("keeper did not end: %v", err)
	}
	if h.t.Failed() {
		log, _ := os.ReadFile(filepath.Join(h.dir, "keeper.log"))
		h.t.Logf("keeper's log:\n%s", log)
	}
}

// ctx is long enough for a loaded machine and ends with the test.
func (h *house) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	h.t.Cleanup(cancel)
	return ctx
}

func (h *house) start(name string, p keeper.Program) keeper.Held {
	h.t.Helper()
	held, err := h.Start(h.ctx(), name, p)
	if err != nil {
		h.t.Fatalf("start %s: %v", name, err)
	}
	return held
}

func (h *house) wait(held keeper.Held) keeper.Exit {
	h.t.Helper()
	e, err := held.Wait(h.ctx())
	if err != nil {
		h.t.Fatal(err)
	}
	return e
}

// pid returns the keeper's own, by its lock.
func (h *house) pid() int {
	h.t.Helper()
	conn, err := os.ReadDir("/proc")
	if err != nil {
		h.t.Fatal(err)
	}
	for _, e := range conn {
		b, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		args := strings.Split(string(b), "\x00")
		if len(args) > 2 && args[1] == "-dir" && args[2] == h.dir {
			pid, _ := strconv.Atoi(e.Name())
			return pid
		}
	}
	h.t.Fatal("no keeper runs")
	return 0
}

// kill ends the keeper as a crash would, and waits until it is gone.
func (h *house) kill() {
	h.t.Helper()
	pid := h.pid()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		h.t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
		h.t.Fatal(err)
	}
	if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10_000); err != nil {
		h.t.Fatal(err)
	}
}

func sh(script string) keeper.Program {
	return keeper.Program{Argv: []string{"/bin/sh", "-c", script}, Env: []string{"PATH=/usr/bin:/bin"}}
}

// launcher wraps a program so that it is made by a launcher.
func launcher(t testing.TB, p keeper.Program) keeper.Program {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p.Argv = append([]string{self, "-launcher"}, p.Argv...)
	p.Launcher = true
	return p
}

// expect reads until the output holds want.
func expect(t *testing.T, r io.Reader, want string) string {
	t.Helper()
	found := make(chan string, 1)
	go func() {
		var all bytes.Buffer
		buf := make([]byte, 4096)
		for !strings.Contains(all.String(), want) {
			n, err := r.Read(buf)
			all.Write(buf[:n])
			if err != nil {
				fmt.Fprintf(&all, "<%v>", err)
				break
			}
		}
		found <- all.String()
	}()
	select {
	case s := <-found:
		if !strings.Contains(s, want) {
			t.Errorf("output %q holds no %q", s, want)
		}
		return s
	case <-time.After(30 * time.Second):
		t.Errorf("no %q came", want)
	}
	return ""
}

func rss(t testing.TB, pid int) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		t.Fatal(err)
	}
	pages, _ := strconv.Atoi(strings.Fields(string(b))[1])
	return pages * os.Getpagesize()
}

func version(t *testing.T, h *house) string {
	t.Helper()
	v, err := h.Version(h.ctx())
	if err != nil {
		t.Fatal(err)
	}
	return v
}
