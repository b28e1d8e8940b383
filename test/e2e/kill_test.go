package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lodge/api"
)

// crowd is how many guests the tests of crashes have: as many as the promise is
// about.
const crowd = 200

// alive checks that the guests' first processes are there.
func alive(t testing.TB, guests map[string]api.Guest, except ...string) {
	t.Helper()
	gone := map[string]bool{}
	for _, name := range except {
		gone[name] = true
	}
	for name, g := range guests {
		if gone[name] {
			continue
		}
		if err := unix.Kill(g.Pid, 0); g.Pid == 0 || err != nil {
			t.Errorf("%s (pid %d) does not live: %v", name, g.Pid, err)
		}
	}
}

// TestDaemonKilled kills lodged with a crowd running: nobody notices, and the
// next one knows all that happened.
func TestDaemonKilled(t *testing.T) {
	s := newServer(t)
	s.busybox()
	begun := time.Now()
	s.lodge("launch", "busybox", "g", "--count", fmt.Sprint(crowd), "--memory", "32MiB")
	t.Logf("%d guests were up after %v", crowd, time.Since(begun))
	for i, code := range []int{0, 3, 42} {
		s.lodge("launch", "busybox", fmt.Sprintf("ends-%d", i), "--memory", "32MiB", "--", "/bin/sh", "-c",
			fmt.Sprintf("trap 'exit %d' USR1; echo ready; while :; do sleep 0.1; done", code))
	}
	before := s.guests()
	alive(t, before)

	s.kill()
	alive(t, before)
	for i := range 3 {
		if err := unix.Kill(before[fmt.Sprintf("ends-%d", i)].Pid, unix.SIGUSR1); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "three guests end", func() error {
		for i := range 3 {
			if state(before[fmt.Sprintf("ends-%d", i)].Pid) != "" {
				return fmt.Errorf("ends-%d lives", i)
			}
		}
		return nil
	})
	alive(t, before, "ends-0", "ends-1", "ends-2")

	begun = time.Now()
	s.start()
	t.Logf("the new lodged answered after %v", time.Since(begun))
	until(t, "the new lodged sees all guests", func() error {
		after := s.guests()
		for i, code := range []int{0, 3, 42} {
			g := after[fmt.Sprintf("ends-%d", i)]
			if g.Exit == nil || g.Exit.Code != code || g.Phase != "stopped" {
				return fmt.Errorf("%s: %s, %+v", g.Name, g.Phase, g.Exit)
			}
		}
		return nil
	})
	s.lodge("exec", fmt.Sprintf("g-%d", crowd), "--", "true")
	t.Logf("the new lodged showed all and ran a program in one after %v", time.Since(begun))
	after := s.guests()
	for name, g := range before {
		if a := after[name]; !strings.HasPrefix(name, "ends-") && (a.Phase != "running" || a.Pid != g.Pid) {
			t.Errorf("%s was pid %d, is %s with pid %d", name, g.Pid, a.Phase, a.Pid)
		}
	}
	console(t, s, "g-1")
	s.lodge("pause", "g-2")
	s.lodge("resume", "g-2")
	s.lodge("stop", "g-3")
	s.lodge("start", "g-3")
	s.lodge("rm", "-f", "g-4", "ends-0", "ends-1", "ends-2")
	s.noLeaks()
	s.lodge("rm", "-f", "--all")
	s.noLeaks()
}

// state returns a process's state letter; "" when it is gone, or dead and not
// yet reaped.
func state(pid int) string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	if rest[0] == 'Z' || rest[0] == 'X' {
		return ""
	}
	return rest[:1]
}

// console checks that a busybox guest's console works in both directions.
func console(t *testing.T, s *server, name string) {
	t.Helper()
	m := s.terminal("console", name)
	m.say("\n")
	m.see("#")
	m.say("echo $((21*2))-it\n")
	m.see("42-it")
	m.say("\x1d")
	if code := m.ends(); code != 0 {
		t.Errorf("console %s ended with %d:\n%s", name, code, m.text())
	}
}

// TestKeeperKilled kills the parent of all guests.
func TestKeeperKilled(t *testing.T) {
	s := newServer(t)
	s.busybox()
	s.lodge("launch", "busybox", "g", "--count", "20", "--memory", "32MiB")
	s.lodge("launch", "busybox", "ends", "--memory", "32MiB", "--", "/bin/sh", "-c", "trap 'exit 9' USR1; while :; do sleep 0.1; done")
	before := s.guests()
	console(t, s, "g-1")

	if err := unix.Kill(s.keeper(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	alive(t, before)
	until(t, "exec works again", func() error {
		if r := s.try("exec", "g-1", "--", "true"); r.code != 0 {
			return fmt.Errorf("%s", r.err)
		}
		return nil
	})
	console(t, s, "g-1")
	console(t, s, "g-20")
	if err := unix.Kill(before["ends"].Pid, unix.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	until(t, "an end is seen with its exit status", func() error {
		if g := s.guest("ends"); g.Exit == nil || g.Exit.Code != 9 {
			return fmt.Errorf("%s, %+v", g.Phase, g.Exit)
		}
		return nil
	})
	s.lodge("launch", "busybox", "later", "--memory", "32MiB")
	s.lodge("stop", "g-2")
	s.lodge("restart", "g-3")
	s.noLeaks()

	// Both at once.
	before = s.guests()
	delete(before, "ends")
	delete(before, "g-2")
	if err := unix.Kill(s.keeper(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s.kill()
	alive(t, before)
	s.start()
	until(t, "the guests are adopted", func() error {
		for name, g := range s.guests() {
			if b, up := before[name]; up && (g.Phase != "running" || g.Pid != b.Pid || g.Doing != "") {
				return fmt.Errorf("%s: %s, pid %d, was %d", name, g.Phase, g.Pid, b.Pid)
			}
		}
		return nil
	})
	s.lodge("exec", "g-4", "--", "true")
	s.lodge("stop", "--force", "g-4")
	s.lodge("restart", "g-5")
	s.lodge("rm", "-f", "--all")
	s.noLeaks()
}

// TestKilledAnywhere kills lodged at all moments of launching and removing.
func TestKilledAnywhere(t *testing.T) {
	s := newServer(t)
	s.busybox()
	s.lodge("launch", "busybox", "stays", "--memory", "32MiB")
	stays := s.guest("stays")
	for round := range 20 {
		var work sync.WaitGroup
		for _, argv := range [][]string{
			{"launch", "busybox", fmt.Sprintf("a%d", round), "--memory", "32MiB", "--count", "3"},
			{"rm", "-f", fmt.Sprintf("a%d-1", round-1), fmt.Sprintf("a%d-2", round-1)},
			{"restart", "--force", fmt.Sprintf("a%d-3", round-1)},
			{"set", fmt.Sprintf("a%d-3", round-1), "--memory", "40MiB"},
		} {
			work.Go(func() { attempt(s, argv...) })
		}
		time.Sleep(time.Duration(rand.IntN(400)) * time.Millisecond)
		s.kill()
		work.Wait()
		s.start()
		if g := s.guest("stays"); g.Pid != stays.Pid || g.Phase != "running" {
			t.Fatalf("round %d: the bystander is %s with pid %d, was %d", round, g.Phase, g.Pid, stays.Pid)
		}
	}
	until(t, "every guest is where it is wanted", func() error {
		for _, g := range s.guests() {
			if g.Doing != "" || g.Problem != nil || g.Wanted == "on" && g.Phase != "running" {
				return fmt.Errorf("%s: %s (%s), wanted %s, %+v", g.Name, g.Phase, g.Doing, g.Wanted, g.Problem)
			}
		}
		return nil
	})
	s.noLeaks()
	s.lodge("exec", "stays", "--", "true")
	s.lodge("rm", "-f", "--all")
	s.noLeaks()
	if ops := s.lodge("op", "ls", "-o", "json"); strings.TrimSpace(ops) != "[]" {
		t.Errorf("operations never end: %s", ops)
	}
}

// attempt runs the command line without a care how it ends.
func attempt(s *server, args ...string) {
	cmd := exec.Command(binary(s.t, "lodge"), args...)
	cmd.Env = append(os.Environ(), "LODGE_HOST=unix://"+s.path("run/lodged.sock"))
	cmd.Run()
}
