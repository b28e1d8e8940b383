package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestKilledWhilePlugging kills lodged at all moments of giving running guests
// disks, discs and network cards, and of taking them away. The guests run on,
// and have in the end what their records say and no more.
func TestKilledWhilePlugging(t *testing.T) {
	s := newModels(t)
	s.lodge("network", "create", "lab", "--ipv4", "10.77.6.0/24")
	disc := s.path("disc.iso")
	if err := os.WriteFile(disc, make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	models := map[string]string{"p": "paravirt", "v": "vm"}
	for name, model := range models {
		s.lodge("launch", "busybox", name, "--model", model, "--memory", "128MiB")
	}
	was := map[string]int{}
	for name := range models {
		s.answers(name)
		was[name] = s.guest(name).Pid
	}
	rounds := 6
	if os.Getenv("LODGE_TEST_LONG") != "" {
		rounds = 24
	}
	for round := range rounds {
		var work sync.WaitGroup
		for name := range models {
			asks := [][]string{{"attach", "disk", name, fmt.Sprintf("d%d=16MiB", round)}, {"detach", "disk", name, fmt.Sprintf("d%d", round-1), "--delete-data"}}
			if round%2 == 0 {
				asks = append(asks, []string{"attach", "nic", name, "lab"}, []string{"attach", "iso", name, "cd=" + disc})
			} else {
				asks = append(asks, []string{"detach", "nic", name, "eth1"}, []string{"detach", "iso", name, "cd"})
			}
			for _, ask := range asks {
				work.Go(func() { attempt(s, ask...) })
			}
		}
		time.Sleep(time.Duration(rand.IntN(600)) * time.Millisecond)
		s.kill()
		work.Wait()
		s.start()
		for name, pid := range was {
			if g := s.guest(name); g.Pid != pid || g.Phase != "running" {
				t.Fatalf("round %d: %s is %s with pid %d, was %d", round, name, g.Phase, g.Pid, pid)
			}
		}
	}
	for name := range models {
		s.hasItsDevices(name)
	}
	s.noLeaks()
	for name := range models {
		g := s.guest(name)
		for _, d := range g.Disks {
			if d.ISO == "" {
				s.lodge("detach", "disk", name, d.Name, "--delete-data")
			} else {
				s.lodge("detach", "iso", name, d.Name)
			}
		}
		for _, n := range g.NICs[1:] {
			s.lodge("detach", "nic", name, n.Name)
		}
		s.hasItsDevices(name)
	}
	s.noLeaks()
	s.outgrowsItsPorts("v")
	s.lodge("rm", "-f", "--all")
	s.lodge("network", "rm", "lab")
	s.noLeaks()
}

// outgrowsItsPorts gives a guest of model vm one disk more than its machine has
// free ports. That one waits, is said to, and comes when a port is free again, as
// another does with the next start.
func (s *server) outgrowsItsPorts(name string) {
	s.t.Helper()
	n, said := 0, ""
	for ; len(s.guest(name).Pending) == 0; n++ {
		if n > 16 {
			s.t.Fatalf("%s took %d disks while it ran", name, n)
		}
		r := s.try("attach", "disk", name, fmt.Sprintf("e%d=16MiB", n))
		if said = r.err; r.code != 0 {
			s.t.Fatalf("disk e%d: exit status %d\n%s", n, r.code, r.err)
		}
	}
	want := fmt.Sprintf("disk e%d comes", n-1)
	if got := s.guest(name).Pending; n < 2 || len(got) != 1 || got[0] != want {
		s.t.Fatalf("%s has %d disks and is to get with its next start: %q", name, n-1, got)
	}
	if !strings.Contains(said, want+" with the next start") {
		s.t.Errorf("who attached it is told %q", said)
	}
	s.kill()
	s.start()
	if got := s.guest(name).Pending; len(got) != 1 || got[0] != want {
		s.t.Errorf("after lodged was killed it is to get with its next start: %q", got)
	}
	s.lodge("detach", "disk", name, "e0", "--delete-data")
	s.hasItsDevices(name)
	s.lodge("attach", "disk", name, "last=16MiB")
	if got := s.guest(name).Pending; len(got) != 1 {
		s.t.Errorf("its ports are all taken again, and it is to get with its next start: %q", got)
	}
	s.lodge("restart", name)
	s.hasItsDevices(name)
}

// hasItsDevices waits until a guest of model vm or paravirt finds the disks and
// cards of its record, or is told to get them with its next start, and no others.
func (s *server) hasItsDevices(name string) {
	s.t.Helper()
	s.answers(name)
	until(s.t, name+" has what its record says", func() error {
		g := s.guest(name)
		if g.Doing != "" || g.Problem != nil {
			return fmt.Errorf("it is doing %q, problem %+v", g.Doing, g.Problem)
		}
		if len(g.Pending) > 0 {
			return fmt.Errorf("pending: %q", g.Pending)
		}
		disks, nics := 0, strings.Fields(s.shell(name, "ls /sys/class/net"))
		// 16 MiB and 1 MiB, which no other has.
		for line := range strings.Lines(s.shell(name, "cat /proc/partitions")) {
			if f := strings.Fields(line); len(f) == 4 && (f[2] == "16384" || f[2] == "1024") {
				disks++
			}
		}
		cards := 0
		for _, n := range nics {
			if strings.HasPrefix(n, "eth") {
				cards++
			}
		}
		if disks != len(g.Disks) || cards != len(g.NICs) {
			return fmt.Errorf("it has %d disks and %d cards, its record %d and %d: %v, %v", disks, cards, len(g.Disks), len(g.NICs), nics, g.Disks)
		}
		return nil
	})
}
