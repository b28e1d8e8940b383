package keeper_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"lodge/internal/base/errs"
	"lodge/internal/keeper"
)

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

// TestUnread: typing at a program that reads nothing waits, and can be given up.
func TestUnread(t *testing.T) {
	h := newHouse(t)
	p := sh("stty raw -echo; echo raw; exec sleep 1000")
	p.Console, p.Log = true, filepath.Join(h.dir, "u.log")
	c, err := h.start("u", p).Console(h.ctx())
	if err != nil {
		t.Fatal(err)
	}
	for until := time.Now().Add(20 * time.Second); time.Now().Before(until); time.Sleep(time.Millisecond) {
		if b, _ := os.ReadFile(p.Log); bytes.Contains(b, []byte("raw")) {
			break
		}
	}
	gaveUp := make(chan error)
	go func() {
		_, err := c.Write(make([]byte, 1<<20))
		gaveUp <- err
	}()
	select {
	case err := <-gaveUp:
		t.Fatalf("a megabyte went nowhere: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-gaveUp; !errors.Is(err, os.ErrClosed) {
		t.Errorf("write ended with %v", err)
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
