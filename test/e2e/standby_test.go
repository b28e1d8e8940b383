package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lodge/api"
)

// stand waits until so many guests stand ready: "1 guest".
func (s *server) stand(many string) {
	s.t.Helper()
	until(s.t, many+" stand ready", func() error {
		var e api.Engine
		if err := json.Unmarshal([]byte(s.lodge("engine", "show", "qemu", "-o", "json")), &e); err != nil {
			return err
		}
		if !slices.Contains(e.Facts, api.Fact{Name: "standing ready", Value: many}) {
			return fmt.Errorf("%+v", e.Facts)
		}
		return nil
	})
}

// standing waits until one guest stands ready, and returns its id.
func (s *server) standing() string {
	s.t.Helper()
	s.stand("1 guest")
	marks, _ := filepath.Glob(s.path("data/guests/*/standby"))
	if len(marks) != 1 {
		s.t.Fatalf("marked as standing ready: %v", marks)
	}
	return filepath.Base(filepath.Dir(marks[0]))
}

// TestStandby: of a kind of machine that was launched before, one runs already
// when the next is asked for, and becomes that. Nothing of it can be seen before,
// and nothing is left of it when nobody wants it.
func TestStandby(t *testing.T) {
	s := newVMs(t, "--standby-memory", "1GiB")
	launch := func(name string) {
		t.Helper()
		s.lodge("launch", "busybox", name, "--model", "vm", "--memory", "128MiB", "--publish", fmt.Sprintf("%d:80", 20000+int(name[len(name)-1])))
	}
	launch("vm1")
	s.is("vm1")
	ready := s.standing()
	if all := s.guests(); len(all) != 1 {
		t.Errorf("%d guests are shown", len(all))
	}

	began := time.Now()
	launch("vm2")
	s.is("vm2")
	t.Logf("launched, and answered after %v", time.Since(began).Round(time.Millisecond))
	g := s.guest("vm2")
	if g.ID != ready {
		t.Fatalf("vm2 is %s, and %s stood ready", g.ID, ready)
	}
	for from, to := range map[string]string{"vm1": "vm2", "vm2": "vm1"} {
		if r := s.try("exec", from, "--", "ping", "-c1", "-W10", s.guest(to).Addresses[0]); r.code != 0 {
			t.Errorf("%s does not reach %s: %s%s", from, to, r.out, r.err)
		}
	}
	s.shell("vm2", "echo mine >/root/f; sync")
	s.lodge("restart", "vm2")
	s.is("vm2")
	if got := s.shell("vm2", "cat /root/f"); got != "mine" {
		t.Errorf("after its first boot its file holds %q", got)
	}

	// One that dies is not given to anybody, and one of a killed daemon's ends.
	ready = s.standing()
	s.kill()
	s.start()
	s.is("vm1")
	until(t, "what stood ready is gone", func() error {
		left, _ := filepath.Glob(s.path("data/pools/*/mnt/volumes/" + ready))
		plain, _ := filepath.Glob(s.path("data/pools/*/volumes/" + ready))
		groups, _ := filepath.Glob("/sys/fs/cgroup/*/" + s.flag("--cgroup") + "/" + ready)
		if _, err := os.Stat(s.path("data/guests/" + ready)); err == nil || len(left)+len(plain)+len(groups) > 0 {
			return fmt.Errorf("%v, files of %s %v, groups %v", err, ready, append(left, plain...), groups)
		}
		return nil
	})
	launch("vm3") // makes another wanted
	s.is("vm3")
	ready = s.standing()
	groups, _ := filepath.Glob("/sys/fs/cgroup/*/" + s.flag("--cgroup") + "/" + ready + "/cgroup.procs")
	if len(groups) == 0 {
		t.Fatal("what stands ready has no group")
	}
	text, err := os.ReadFile(groups[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, word := range strings.Fields(string(text)) {
		var pid int
		if _, err := fmt.Sscan(word, &pid); err == nil {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
	s.stand("0 guests")
	launch("vm4")
	s.is("vm4")
	if s.guest("vm4").ID == ready {
		t.Error("vm4 is the one that was killed")
	}

	// Killed between the wish and the guest: the next daemon finishes it.
	ready = s.standing()
	attempt(s, "launch", "busybox", "vm5", "--model", "vm", "--memory", "128MiB", "--no-wait")
	s.kill()
	s.start()
	if g, there := s.guests()["vm5"]; there {
		if g.ID != ready {
			t.Errorf("vm5 is %s, and %s stood ready", g.ID, ready)
		}
		s.is("vm5")
		if got := s.shell("vm5", "hostname"); got != "vm5" {
			t.Errorf("vm5 calls itself %q", got)
		}
	}
}
