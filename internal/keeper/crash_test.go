package keeper_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
	"lodge/internal/keeper"
)

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

// newer is the keeper's program with another version.
func newer(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "lodge-keeper")
	b, err := os.ReadFile(binary(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append(b, "newer"...), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestUpgrade: another version takes over in place.
func TestUpgrade(t *testing.T) {
	h := newHouse(t)
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
	if err := h.Upgrade(h.ctx(), newer(t)); err != nil {
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
