package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"lodge/api"
	"lodge/test/sandbox"
)

// newVMs starts a server that can run virtual machines.
func newVMs(t *testing.T, flags ...string) *server {
	t.Helper()
	t.Setenv("http_proxy", sandbox.Proxy(t))
	s := newServer(t, flags...)
	s.busybox()
	if r := s.try("kernel", "build", "linux/debian-12"); r.code != 0 {
		sandbox.Missing(t, fmt.Sprintf("the kernel of virtual machines cannot be had here: %s", r.err))
	}
	return s
}

// is waits until a guest answers by its name.
func (s *server) is(name string) {
	s.t.Helper()
	var last result
	for end := time.Now().Add(3 * time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if last = s.try("exec", name, "--", "hostname"); last.code == 0 && strings.TrimSpace(last.out) == name {
			return
		}
	}
	s.t.Fatalf("%s does not answer: %+v\n%s\n%s", name, last, s.try("show", name).out, s.try("logs", name, "--tail", "30").out)
}

// count starts something in a guest that only lives in its memory.
func (s *server) count(name string) {
	s.t.Helper()
	s.shell(name, "mkdir -p /dev/shm; mount -t tmpfs none /dev/shm 2>/dev/null; echo alive >/dev/shm/state; (while true; do sleep 1; done) >/dev/null 2>&1 </dev/null & echo $! >/dev/shm/pid")
}

// counts says whether that lives still.
func (s *server) counts(name string) bool {
	s.t.Helper()
	return s.shell(name, "kill -0 $(cat /dev/shm/pid) 2>/dev/null && cat /dev/shm/state || echo gone") == "alive"
}

// TestMemory saves and restores what a virtual machine is doing, and makes clones
// that go on from it.
func TestMemory(t *testing.T) {
	s := newVMs(t)
	s.lodge("launch", "busybox", "vm1", "--model", "vm", "--memory", "128MiB")
	s.is("vm1")
	s.count("vm1")
	s.shell("vm1", "echo one >/root/f; sync")
	timed := func(what string, args ...string) {
		t.Helper()
		start := time.Now()
		s.lodge(args...)
		t.Logf("%s: %v", what, time.Since(start).Round(time.Millisecond))
	}
	timed("snapshot with memory", "snapshot", "create", "vm1", "warm", "--memory")
	s.is("vm1")
	s.shell("vm1", "echo two >/root/f; echo dead >/dev/shm/state; sync")
	timed("snapshot without", "snapshot", "create", "vm1", "cold")

	timed("restore with memory", "snapshot", "restore", "vm1", "warm", "--start")
	s.is("vm1")
	if got := s.shell("vm1", "cat /root/f"); got != "one" || !s.counts("vm1") {
		t.Errorf("the files are %q, and what it was doing is gone or not", got)
	}

	s.lodge("pause", "vm1")
	timed("snapshot of a paused guest", "snapshot", "create", "vm1", "still1", "--memory")
	timed("and another", "snapshot", "create", "vm1", "still2", "--memory")
	if g := s.guest("vm1"); g.Phase != "paused" || g.Problem != nil {
		t.Errorf("a paused guest after two snapshots: %+v", g)
	}
	s.lodge("snapshot", "restore", "vm1", "still2", "--start")
	s.is("vm1")
	if !s.counts("vm1") {
		t.Error("the second snapshot of a paused guest has lost what it was doing")
	}

	timed("save", "save", "vm1")
	if g := s.guest("vm1"); g.Phase != "stopped" || !g.Saved {
		t.Errorf("%+v", g)
	}
	timed("go on", "start", "vm1")
	s.is("vm1")
	if !s.counts("vm1") {
		t.Error("what it was doing is gone")
	}

	timed("clone --running", "clone", "vm1", "vm2", "--running")
	start := time.Now()
	s.is("vm2")
	t.Logf("and answers %v later", time.Since(start).Round(time.Millisecond))
	if !s.counts("vm2") || !s.counts("vm1") {
		t.Error("a clone of a running guest does not go on from where that is")
	}
	s.shell("vm2", "echo three >/root/f; sync")
	if got := s.shell("vm1", "cat /root/f"); got != "one" {
		t.Errorf("what a clone writes is in the other: %q", got)
	}
	a, b := s.guest("vm1"), s.guest("vm2")
	for name, address := range map[string]string{"vm1": b.Addresses[0], "vm2": a.Addresses[0]} {
		if r := s.try("exec", name, "--", "ping", "-c1", "-W10", address); r.code != 0 {
			t.Errorf("%s does not reach %s: %s%s", name, address, r.out, r.err)
		}
	}
	timed("clone --running of a snapshot", "clone", "vm1", "vm3", "--running", "--snapshot", "warm")
	s.is("vm3")
	if !s.counts("vm3") {
		t.Error("a clone of a snapshot with memory does not go on")
	}

	// A snapshot is one of every model.
	s.lodge("model", "vm1", "os", "--restart")
	s.lodge("snapshot", "restore", "vm1", "warm", "--start")
	s.is("vm1")
	if got := s.shell("vm1", "cat /root/f; if test -e /dev/shm/state; then echo memory; fi"); got != "one" {
		t.Errorf("under model os: %q", got)
	}
	s.lodge("stop", "--force", "vm1", "vm2", "vm3")
	s.lodge("start", "vm2")
	s.is("vm2")
	if s.counts("vm2") {
		t.Error("a guest that was stopped goes on from old memory")
	}
	if got := s.shell("vm2", "cat /root/f"); got != "three" {
		t.Errorf("it holds %q", got)
	}
}

// TestMemoryAndDeath kills the daemon while memory is saved and gone on from.
func TestMemoryAndDeath(t *testing.T) {
	s := newVMs(t)
	s.lodge("launch", "busybox", "vm1", "--model", "vm", "--memory", "128MiB")
	s.is("vm1")
	s.count("vm1")
	for i := range 6 {
		what := [][]string{{"save", "vm1"}, {"start", "vm1"}, {"snapshot", "create", "vm1", fmt.Sprint("s", i), "--memory"}}[i%3]
		attempt(s, append(what, "--no-wait")...)
		time.Sleep(time.Duration(i*40) * time.Millisecond)
		s.kill()
		s.start()
		until(t, "it is where it was asked to be", func() error {
			g := s.guest("vm1")
			if g.Doing != "" || g.Problem != nil || g.Wanted == "saved" && !g.Saved || g.Wanted == "on" && g.Phase != "running" {
				return fmt.Errorf("%s, wanted %s, doing %q, problem %+v", g.Phase, g.Wanted, g.Doing, g.Problem)
			}
			return nil
		})
		if s.guest("vm1").Phase == "running" {
			s.is("vm1")
		}
	}
	s.lodge("start", "vm1")
	s.is("vm1")
	if !s.counts("vm1") {
		t.Error("what it was doing is gone")
	}
}

// TestKilledWhileCloning kills lodged at all moments of making clones of guests
// with kernels of their own, some of which go on from where the other is. Each
// is there wholly, as a guest of its own, or not at all.
func TestKilledWhileCloning(t *testing.T) {
	s := newModels(t)
	s.lodge("launch", "busybox", "v", "--model", "vm", "--memory", "128MiB")
	s.lodge("launch", "busybox", "p", "--model", "paravirt", "--memory", "128MiB")
	was := map[string]int{}
	for _, name := range []string{"v", "p"} {
		s.answers(name)
		was[name] = s.guest(name).Pid
		s.shell(name, "mkdir -p /etc/ssh; echo "+name+" >/root/f; echo its key >/etc/ssh/ssh_host_ed25519_key; echo its id >/etc/machine-id; sync")
	}
	s.count("v")
	keys := map[string]string{}
	rounds := 3
	if os.Getenv("LODGE_TEST_LONG") != "" {
		rounds = 24
	}
	for round := range rounds {
		for _, ask := range [][]string{
			{"clone", "v", fmt.Sprintf("r%d", round), "--running", "--count", "2"}, {"clone", "v", fmt.Sprintf("c%d", round)}, {"clone", "p", fmt.Sprintf("q%d", round), "--start"},
		}[round%3:] {
			attempt(s, append(ask, "--no-wait")...)
		}
		time.Sleep(time.Duration(rand.IntN(1000)) * time.Millisecond)
		s.kill()
		s.start()
		for name, pid := range was {
			if g := s.guest(name); g.Pid != pid {
				t.Fatalf("round %d: %s is %s with pid %d, was %d", round, name, g.Phase, g.Pid, pid)
			}
		}
		settled(s)
		for name, g := range s.guests() {
			if name == "v" || name == "p" {
				continue
			}
			if g.Phase != "running" {
				s.lodge("start", name)
			}
			s.is(name)
			if got := s.shell(name, "cat /root/f"); got != map[string]string{"r": "v", "c": "v", "q": "p"}[name[:1]] {
				t.Errorf("%s holds %q", name, got)
			}
			if name[0] == 'r' && !s.counts(name) {
				t.Errorf("%s does not go on from where the other is", name)
			}
			key := s.shell(name, "cat /etc/machine-id /etc/ssh/ssh_host_ed25519_key 2>/dev/null; true")
			if other := keys[key]; other != "" || strings.Contains(key, "its ") {
				t.Errorf("%s and %s are the same guest to others: %q", name, other, key)
			}
			keys[key] = name
			s.lodge("rm", "-f", name)
		}
	}
	s.noLeaks()
	s.lodge("rm", "-f", "--all")
	s.noLeaks()
}

// settled waits until every guest is where it was asked to be, also by what a
// daemon that starts anew has still to do.
func settled(s *server) {
	s.t.Helper()
	until(s.t, "everything is where it was asked to be", func() error {
		if under := list[api.Operation](s, "op", "ls"); len(under) > 0 {
			return fmt.Errorf("%+v", under)
		}
		for _, g := range s.guests() {
			if g.Doing != "" || g.Problem != nil || g.Wanted == "on" && g.Phase != "running" {
				return fmt.Errorf("%s: %s, doing %q, problem %+v", g.Name, g.Phase, g.Doing, g.Problem)
			}
		}
		return nil
	})
}
