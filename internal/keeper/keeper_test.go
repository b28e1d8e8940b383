package keeper_test

import (
	"bytes"
	"context"
	"errors"
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

	"lodge/internal/base/errs"
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
	os.Exit(m.Run())
}

// launch makes argv as its own sibling with a terminal if there is one on
// standard input, as a launcher must.
func launch(argv []string) int {
	syscall.CloseOnExec(4)
	answer := os.NewFile(4, "answer")
	if argv[0] == "-fail" {
		fmt.Fprintln(answer, "error no such image")
		return 1
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
	dir, err := os.MkdirTemp("", "keeper-test")
	if err != nil {
		return "", err
	}
	out := filepath.Join(dir, "lodge-keeper")
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
	var err error
	h.Client, err = keeper.Open(h.ctx(), keeper.Options{Dir: h.dir, Binary: binary(h.t)})
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

func TestExits(t *testing.T) {
	h := newHouse(t)
	ctx, cancel := context.WithCancel(h.ctx())
	told := h.Exits(ctx)
	for _, c := range []struct {
		name string
		p    keeper.Program
		code int
		sig  syscall.Signal
	}{
		{"clean", sh("exit 0"), 0, 0},
		{"code", sh("exit 7"), 7, 0},
		{"signal", sh("kill -SEGV $$"), 0, syscall.SIGSEGV},
		{"launched", launcher(t, sh("exit 9")), 9, 0},
	} {
		held := h.start(c.name, c.p)
		if e := h.wait(held); e.Code != c.code || e.Signal != c.sig || e.Unknown || e.At.IsZero() {
			t.Errorf("%s ended with %+v", c.name, e)
		}
		if s := <-told; s.Name != c.name || s.Exit == nil || s.Exit.Code != c.code {
			t.Errorf("told of %+v, want the end of %s", s, c.name)
		}
		if err := held.Signal(ctx, syscall.SIGTERM); !errs.Is(err, errs.Conflict) {
			t.Errorf("signal after the end: %v", err)
		}
		if _, err := h.Start(ctx, c.name, c.p); !errs.Is(err, errs.Exists) {
			t.Errorf("a second start: %v", err)
		}
		if err := h.Forget(ctx, c.name); err != nil {
			t.Error(err)
		}
		if err := h.Forget(ctx, c.name); err != nil {
			t.Errorf("forgetting twice: %v", err)
		}
		if _, err := h.Find(c.name); !errs.Is(err, errs.NotFound) {
			t.Errorf("found after it was forgotten: %v", err)
		}
	}
	cancel()
	for range told {
		t.Error("told of something that did not happen")
	}
}

func TestRefusals(t *testing.T) {
	h := newHouse(t)
	for name, c := range map[string]struct {
		program keeper.Program
		kind    errs.Kind
		says    string
	}{
		"missing":  {keeper.Program{Argv: []string{"/no/such/program"}}, errs.Internal, "cannot be started"},
		"relative": {keeper.Program{Argv: []string{"sh"}}, errs.Invalid, "full path"},
		"../up":    {sh("true"), errs.Invalid, "cannot name"},
		"huge":     {keeper.Program{Argv: []string{"/bin/true", strings.Repeat("x", keeper.MaxMessage)}}, errs.Invalid, "too long"},
		"failing":  {launcher(t, keeper.Program{Argv: []string{"-fail"}}), errs.Internal, "no such image"},
		"silent":   {keeper.Program{Argv: []string{"/bin/true"}, Launcher: true}, errs.Internal, "no answer"},
		"stranger": {keeper.Program{Argv: []string{"/bin/sh", "-c", "echo " + strconv.Itoa(os.Getpid()) + " >&4"}, Launcher: true}, errs.Internal, "sibling"},
	} {
		_, err := h.Start(h.ctx(), name, c.program)
		if !errs.Is(err, c.kind) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if all := h.All(); len(all) != 0 {
		t.Errorf("kept after a refusal: %+v", all)
	}
	held := h.start("runs", sh("exec sleep 1000"))
	if err := h.Forget(h.ctx(), "runs"); !errs.Is(err, errs.Conflict) {
		t.Errorf("forgot what runs: %v", err)
	}
	if err := h.Shutdown(h.ctx()); !errs.Is(err, errs.Conflict) {
		t.Errorf("ended while something runs: %v", err)
	}
	if _, err := held.Console(h.ctx()); !errs.Is(err, errs.Unsupported) {
		t.Errorf("console of a program without one: %v", err)
	}
}

// TestSurroundings: what a program finds when it starts.
func TestSurroundings(t *testing.T) {
	h := newHouse(t)
	for name, wrap := range map[string]func(keeper.Program) keeper.Program{
		"direct":   func(p keeper.Program) keeper.Program { return p },
		"launched": func(p keeper.Program) keeper.Program { return launcher(t, p) },
	} {
		p := sh(`read x <&3; echo input=$x; echo oom=$(cat /proc/self/oom_score_adj); echo fds=$(echo /proc/self/fd/*)
			echo env=$(tr '\0' ' ' </proc/$$/environ); echo ign=$(grep SigIgn /proc/self/status); tty; echo size=$(stty size); echo done`)
		p.Input, p.Console, p.Log = []byte("secret\n"), true, filepath.Join(h.dir, name+".log")
		h.wait(h.start(name, wrap(p)))
		b, err := os.ReadFile(p.Log)
		if err != nil {
			t.Fatal(err)
		}
		out := strings.ReplaceAll(string(b), "\r", "")
		for _, want := range []string{"input=secret\n", "oom=0\n", "env=PATH=/usr/bin:/bin\n", "SigIgn: 0000000000000000\n", "/dev/pts/", "size=24 80\n", "done\n"} {
			if !strings.Contains(out, want) {
				t.Errorf("%s: no %q in\n%s", name, want, out)
			}
		}
		// 0, 1, 2, the input, and the one that lists them.
		if !strings.Contains(out, "fds=/proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2 /proc/self/fd/3 /proc/self/fd/4\n") {
			t.Errorf("%s: descriptors leak:\n%s", name, out)
		}
	}
}

func TestConsole(t *testing.T) {
	h := newHouse(t)
	p := sh(`trap 'echo size $(stty size)' WINCH; echo hello; while read line; do echo "got $line"; done; exit 3`)
	p.Console, p.Log = true, filepath.Join(h.dir, "c.log")
	held := h.start("c", launcher(t, p))
	one, err := held.Console(h.ctx())
	if err != nil {
		t.Fatal(err)
	}
	two, err := held.Console(h.ctx())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(one, "abc\n"); err != nil {
		t.Fatal(err)
	}
	expect(t, one, "got abc")
	expect(t, two, "got abc")
	if err := one.Close(); err != nil {
		t.Fatal(err)
	}
	if err := two.Resize(40, 132); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(two, "x\n"); err != nil { // a shell runs its trap after its read
		t.Fatal(err)
	}
	expect(t, two, "size 40 132")
	if _, err := two.Write([]byte{4}); err != nil { // ^D
		t.Fatal(err)
	}
	if e := h.wait(held); e.Code != 3 {
		t.Errorf("ended with %+v", e)
	}
	if _, err := io.Copy(io.Discard, two); err != nil {
		t.Errorf("after the end: %v", err)
	}
	b, _ := os.ReadFile(p.Log)
	if !bytes.Contains(b, []byte("hello")) || !bytes.Contains(b, []byte("got abc")) {
		t.Errorf("log holds %q", b)
	}
	if _, err := held.Console(h.ctx()); !errs.Is(err, errs.Conflict) {
		t.Errorf("console after the end: %v", err)
	}
}

// TestHangup: a guest whose getty hangs its terminal up, or that closes it on
// all sides, gets it back, and the keeper does not spin meanwhile.
func TestHangup(t *testing.T) {
	h := newHouse(t)
	p := sh(`T=$(tty); exec 0<&- 1>&- 2>&-; sleep 0.2; exec <>$T >&0 2>&1; echo back; read x; echo got $x; sleep 1000`)
	p.Console, p.Log = true, filepath.Join(h.dir, "h.log")
	held := h.start("h", p)
	c, err := held.Console(h.ctx())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "xyz\n"); err != nil {
		t.Fatal(err)
	}
	expect(t, c, "got xyz")
	b, _ := os.ReadFile(p.Log)
	if !bytes.Contains(b, []byte("back")) {
		t.Errorf("log holds %q", b)
	}
}

// TestFlood: a guest that writes without end is bounded on disk and in memory,
// is not held up by a viewer that does not read, and holds up nobody.
func TestFlood(t *testing.T) {
	h := newHouse(t)
	p := sh("head -c 30000000 /dev/zero | tr '\\0' 'y'; echo; echo END")
	p.Console, p.Log, p.LogMax = true, filepath.Join(h.dir, "f.log"), 100_000
	held := h.start("flood", p)
	idle, err := held.Console(h.ctx()) // is never read
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	quiet := sh("while read x; do echo $x; done")
	quiet.Console = true
	other, err := h.start("quiet", quiet).Console(h.ctx())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := io.WriteString(other, "ping\n"); err != nil {
		t.Fatal(err)
	}
	expect(t, other, "ping")
	if e := h.wait(held); e.Code != 0 {
		t.Fatalf("ended with %+v", e)
	}
	for _, path := range []string{p.Log, p.Log + ".1"} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Size() > p.LogMax {
			t.Errorf("%s has %d bytes", path, info.Size())
		}
	}
	b, _ := os.ReadFile(p.Log)
	if !bytes.Contains(b, []byte("END")) {
		t.Errorf("the end of the output is missing")
	}
	if rss := rss(t, h.pid()); rss > 40<<20 {
		t.Errorf("keeper uses %d bytes", rss)
	}
}

func rss(t testing.TB, pid int) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		t.Fatal(err)
	}
	pages, _ := strconv.Atoi(strings.Fields(string(b))[1])
	return pages * os.Getpagesize()
}

// TestDaemonKilled: what ends while no daemon is there is known to the next.
func TestDaemonKilled(t *testing.T) {
	h := newHouse(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	fifo := filepath.Join(h.dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "-daemon", h.dir, binary(t), "/bin/sh", "-c", "read x <"+fifo+"; exit 5")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	expect(t, out, "started <nil>")
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if err := os.WriteFile(fifo, []byte("go\n"), 0); err != nil {
		t.Fatal(err)
	}
	h.open()
	held, err := h.Find("from-daemon")
	if err != nil {
		t.Fatal(err)
	}
	if e := h.wait(held); e.Code != 5 || e.Unknown {
		t.Errorf("ended with %+v", e)
	}
}

// TestKeeperKilled: a lost keeper is replaced at once, and the next one goes on
// with programs, consoles and exits.
func TestKeeperKilled(t *testing.T) {
	h := newHouse(t)
	ctx, cancel := context.WithCancel(h.ctx())
	defer cancel()
	p := sh(`echo ready; while read line; do echo "got $line"; test "$line" = end && exit 11; done`)
	p.Console, p.Log = true, filepath.Join(h.dir, "c.log")
	held := h.start("talks", launcher(t, p))
	plain := h.start("sleeps", sh("exec sleep 1000"))
	over := h.start("over", sh("exit 4"))
	h.wait(over)
	c, err := held.Console(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	told := h.Exits(ctx)
	for i := range 3 {
		h.kill()
		say := fmt.Sprintf("round %d", i)
		shown := make(chan struct{})
		go func() {
			defer close(shown)
			expect(t, c, "got "+say) // through the attachment of before the first crash
		}()
		for again := true; again; {
			// Output of the moment between two keepers is in the log alone.
			if _, err := io.WriteString(c, say+"\n"); err != nil {
				t.Fatal(err)
			}
			select {
			case <-shown:
				again = false
			case <-time.After(20 * time.Millisecond):
			}
		}
	}
	fresh, err := held.Console(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(fresh, "again\n"); err != nil {
		t.Fatal(err)
	}
	expect(t, fresh, "got again")
	fresh.Close()
	if _, err := io.WriteString(c, "end\n"); err != nil {
		t.Fatal(err)
	}
	if e := h.wait(held); e.Code != 11 || e.Unknown {
		t.Errorf("console program ended with %+v", e)
	}
	if err := plain.Signal(ctx, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if e := h.wait(plain); e.Signal != syscall.SIGTERM || e.Unknown {
		t.Errorf("plain program ended with %+v", e)
	}
	if s, u := <-told, <-told; s.Name != "talks" || u.Name != "sleeps" {
		t.Errorf("told of %s and %s", s.Name, u.Name)
	}
	if again, err := h.Find("over"); err != nil || again.State().Exit == nil || again.State().Exit.Code != 4 {
		t.Errorf("what had ended before is not known any more: %v", err)
	}
}

// TestEndWhileNoKeeper: a program that ends together with its keeper is known
// by the daemon's descriptor.
func TestEndWhileNoKeeper(t *testing.T) {
	h := newHouse(t)
	held := h.start("p", sh("exec sleep 1000"))
	pid := h.pid()
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := held.Signal(h.ctx(), syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	h.kill()
	if e := h.wait(held); e.Signal != syscall.SIGUSR1 || e.Unknown {
		t.Errorf("ended with %+v", e)
	}
}

// TestBothKilled: without a daemon's descriptors the next keeper finds programs
// by its notes.
func TestBothKilled(t *testing.T) {
	h := newHouse(t)
	h.start("lives", sh("exec sleep 1000"))
	dies := h.start("dies", sh("exec sleep 1000"))
	talks := sh("trap '' HUP; exec sleep 1000")
	talks.Console = true
	h.start("talks", talks)
	lives, err := h.Find("lives")
	if err != nil {
		t.Fatal(err)
	}
	before, victim := lives.State(), dies.State().Pid
	fd, err := unix.PidfdOpen(victim, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	keeperPid := h.pid()
	if err := unix.Kill(keeperPid, unix.SIGSTOP); err != nil { // it must not see the end
		t.Fatal(err)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
		t.Fatal(err)
	}
	h.kill()
	for gone := time.Now().Add(20 * time.Second); unix.Kill(victim, 0) == nil && time.Now().Before(gone); {
		time.Sleep(time.Millisecond) // until init has reaped it
	}
	h.open()
	again, err := h.Find("lives")
	if err != nil {
		t.Fatal(err)
	}
	if s := again.State(); s.Pid != before.Pid || s.Exit != nil || !s.Started.Equal(before.Started) {
		t.Errorf("%+v, was %+v", s, before)
	}
	dead, err := h.Find("dies")
	if err != nil {
		t.Fatal(err)
	}
	if e := h.wait(dead); !e.Unknown {
		t.Errorf("ended with %+v though nobody can know", e)
	}
	mute, err := h.Find("talks")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := mute.Console(h.ctx()); !errs.Is(err, errs.Unavailable) {
		t.Errorf("console that was lost: %v", err)
	}
	if err := again.Signal(h.ctx(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if e := h.wait(again); e.Signal != syscall.SIGTERM || e.Unknown {
		t.Errorf("adopted program ended with %+v", e)
	}
}

// TestUpgrade: another version takes over in place.
func TestUpgrade(t *testing.T) {
	h := newHouse(t)
	newer := filepath.Join(t.TempDir(), "lodge-keeper")
	b, err := os.ReadFile(binary(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(newer, append(b, "newer"...), 0o700); err != nil {
		t.Fatal(err)
	}
	p := sh(`while read line; do echo "got $line"; test "$line" = end && exit 11; done`)
	p.Console, p.Log = true, filepath.Join(h.dir, "c.log")
	held := h.start("talks", p)
	over := h.start("over", sh("exit 4"))
	h.wait(over)
	c, err := held.Console(h.ctx())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	was, pid := version(t, h), h.pid()

	broken := filepath.Join(t.TempDir(), "broken")
	if err := os.WriteFile(broken, []byte("not a program"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := h.Upgrade(h.ctx(), broken); err == nil || version(t, h) != was {
		t.Fatalf("upgrade to what cannot run: %v", err)
	}
	if err := h.Upgrade(h.ctx(), newer); err != nil {
		t.Fatal(err)
	}
	if version(t, h) == was || h.pid() != pid {
		t.Errorf("version %s, pid %d after %s, %d", version(t, h), h.pid(), was, pid)
	}
	if _, err := io.WriteString(c, "one\n"); err != nil {
		t.Fatal(err)
	}
	expect(t, c, "got one")
	h.start("new", sh("exec sleep 1000"))
	if _, err := io.WriteString(c, "end\n"); err != nil {
		t.Fatal(err)
	}
	if e := h.wait(held); e.Code != 11 || e.Unknown {
		t.Errorf("ended with %+v", e)
	}
	if again, err := h.Find("over"); err != nil || again.State().Exit == nil || again.State().Exit.Code != 4 {
		t.Errorf("what had ended before is not known any more: %v", err)
	}
}

func version(t *testing.T, h *house) string {
	t.Helper()
	v, err := h.Version(h.ctx())
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// TestMany starts 200 programs, eight at a time, loses the keeper, and ends
// them all.
func TestMany(t *testing.T) {
	h := newHouse(t)
	ctx, cancel := context.WithCancel(h.ctx())
	defer cancel()
	const n = 200
	var wg sync.WaitGroup
	slots := make(chan struct{}, 8)
	for i := range n {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			p := keeper.Program{Argv: []string{"/bin/sleep", "1000"}, Console: true}
			if _, err := h.Start(ctx, fmt.Sprintf("p%d", i), p); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	h.kill()
	told := h.Exits(ctx)
	for _, s := range h.All() {
		held, err := h.Find(s.Name)
		if err != nil {
			t.Fatal(err)
		}
		if err := held.Signal(ctx, syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
	}
	seen := map[string]bool{}
	for len(seen) < n {
		s := <-told
		if s.Exit.Signal != syscall.SIGTERM || seen[s.Name] {
			t.Errorf("%s ended with %+v", s.Name, s.Exit)
		}
		seen[s.Name] = true
	}
}

// TestTwoClients: changes made by one are known to the other, and only one
// keeper runs.
func TestTwoClients(t *testing.T) {
	h := newHouse(t)
	other, err := keeper.Open(h.ctx(), keeper.Options{Dir: h.dir, Binary: binary(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	ctx, cancel := context.WithCancel(h.ctx())
	defer cancel()
	told := other.Exits(ctx)
	h.kill() // both notice
	h.wait(h.start("p", sh("exit 6")))
	if s := <-told; s.Name != "p" || s.Exit.Code != 6 {
		t.Errorf("told of %+v", s)
	}
}

func TestClosed(t *testing.T) {
	h := newHouse(t)
	held := h.start("p", sh("exec sleep 1000"))
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := held.Wait(h.ctx()); !errs.Is(err, errs.Unavailable) {
		t.Errorf("wait after close: %v", err)
	}
	if _, err := h.Start(h.ctx(), "q", sh("true")); !errs.Is(err, errs.Unavailable) {
		t.Errorf("start after close: %v", err)
	}
	h.open()
	ctx, cancel := context.WithCancel(h.ctx())
	cancel()
	again, err := h.Find("p")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := again.Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("wait that was given up: %v", err)
	}
}
