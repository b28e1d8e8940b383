package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lodge/api"
)

// shell runs a script in a guest.
func (s *server) shell(guest, script string) string {
	s.t.Helper()
	return strings.TrimSpace(s.lodge("exec", guest, "--", "sh", "-c", script))
}

func (s *server) snapshots(guest string) []api.Snapshot {
	s.t.Helper()
	return list[api.Snapshot](s, "snapshot", "ls", guest)
}

func TestSnapshot(t *testing.T) {
	s := newServer(t)
	s.busybox()
	s.lodge("launch", "busybox", "web1", "--publish", "18099:80")
	const see = "cat /root/f; stat -c '%a %u' /root/f"
	s.shell("web1", "echo one >/root/f; chmod 4750 /root/f; chown 1000 /root/f; rm /bin/vi; sync")
	before := s.shell("web1", see)
	s.lodge("snapshot", "create", "web1", "first", "--note", "as it came")
	s.shell("web1", "echo two >/root/f; mkdir /root/more")
	s.lodge("snapshot", "create", "web1")
	all := s.snapshots("web1")
	if len(all) != 2 || all[0].Name != "first" && all[1].Name != "first" || !all[0].Ready || !all[1].Ready {
		t.Fatalf("%+v", all)
	}
	if text := s.lodge("snapshot", "show", "web1", "first", "-o", "json"); !strings.Contains(text, "as it came") || !strings.Contains(text, `"model": "os"`) {
		t.Errorf("show says %s", text)
	}
	if text := s.lodge("show", "web1", "-o", "json"); strings.Contains(text, "as it came") {
		t.Error("a guest carries its snapshots")
	}
	s.refused(4, []string{"is running", "--start"}, "snapshot", "restore", "web1", "first")
	s.refused(4, []string{"has a snapshot first already"}, "snapshot", "create", "web1", "first")
	s.refused(3, []string{"has no snapshot third"}, "snapshot", "restore", "web1", "third")
	s.refused(1, []string{"cannot keep its memory"}, "snapshot", "create", "web1", "m", "--memory")

	address := s.guest("web1").Addresses[0]
	s.lodge("snapshot", "restore", "web1", "first", "--start")
	if got := s.shell("web1", see+"; ls /root/more /bin/vi 2>&1 | grep -c 'No such'"); got != before+"\n2" {
		t.Errorf("after going back: %q, want %q and what came later gone", got, before)
	}
	if g := s.guest("web1"); g.Addresses[0] != address || len(g.Publish) != 1 {
		t.Errorf("it lost what is its own: %+v", g)
	}
	s.lodge("stop", "--force", "web1")
	s.lodge("snapshot", "restore", "web1", "first")
	if g := s.guest("web1"); g.Phase != "stopped" {
		t.Errorf("it is %s after going back without --start", g.Phase)
	}

	s.refused(4, []string{"has 2 snapshots", "--force"}, "rm", "web1")
	s.lodge("snapshot", "rm", "web1", "first")
	if all := s.snapshots("web1"); len(all) != 1 {
		t.Errorf("%+v", all)
	}
	s.lodge("rm", "--force", "web1")
	left, err := filepath.Glob(s.path("data/pools/*/*/snapshots/*"))
	if err != nil || len(left) != 0 {
		t.Errorf("left on the pool: %v, %v", left, err)
	}
}

func TestClone(t *testing.T) {
	s := newServer(t)
	s.busybox()
	s.lodge("launch", "busybox", "a", "--disk", "1GiB", "--label", "tier=x")
	s.shell("a", "echo one >/root/f; echo id >/etc/machine-id; sync")
	s.lodge("snapshot", "create", "a", "s")
	s.shell("a", "echo two >/root/f")
	s.lodge("clone", "a", "b", "--start")
	s.lodge("clone", "a", "c", "--snapshot", "s", "--start")
	for guest, want := range map[string]string{"a": "two", "b": "two", "c": "one"} {
		if got := s.shell(guest, "cat /root/f; hostname"); got != want+"\n"+guest {
			t.Errorf("%s holds %q, want %q", guest, got, want)
		}
	}
	if got := s.shell("b", "cat /etc/machine-id 2>/dev/null || echo none"); got == "id" {
		t.Error("a clone has the machine-id of the other")
	}
	a, b := s.guest("a"), s.guest("b")
	if a.Addresses[0] == b.Addresses[0] || b.DiskBytes != a.DiskBytes || b.Labels["tier"] != "x" {
		t.Errorf("%+v and %+v", a, b)
	}
	s.shell("b", "echo own >/root/f")
	if got := s.shell("a", "cat /root/f"); got != "two" {
		t.Errorf("what a clone writes is in the other: %q", got)
	}
	s.refused(1, []string{"cannot keep its memory"}, "clone", "a", "d", "--running")
	s.refused(1, []string{"cannot keep its memory"}, "save", "a")
	s.lodge("rm", "--force", "a")
	if got := s.shell("c", "cat /root/f"); got != "one" {
		t.Errorf("a clone does not outlive the other: %q", got)
	}
}

// TestKilledWithSnapshots kills the daemon again and again while snapshots,
// restores and clones are made. Each is there wholly or not at all, the guest
// runs, and nothing is left.
func TestKilledWithSnapshots(t *testing.T) {
	s := newServer(t)
	s.busybox()
	s.lodge("launch", "busybox", "a")
	s.shell("a", "for i in $(seq 200); do echo $i >/root/$i; done; sync")
	s.lodge("snapshot", "create", "a", "base")
	for i := range 12 {
		name := string(rune('a'+i)) + "x"
		for _, c := range [][]string{
			{"snapshot", "create", "a", name, "--no-wait"}, {"clone", "a", name, "--no-wait"}, {"snapshot", "restore", "a", "base", "--start", "--no-wait"},
		} {
			attempt(s, c...)
		}
		time.Sleep(time.Duration(i*7) * time.Millisecond)
		s.kill()
		s.start()
	}
	until(t, "everything is where it was asked to be", func() error {
		for _, g := range s.guests() {
			if g.Doing != "" || g.Problem != nil {
				return fmt.Errorf("%s: doing %q, problem %+v", g.Name, g.Doing, g.Problem)
			}
		}
		for _, n := range s.snapshots("a") {
			if !n.Ready {
				return fmt.Errorf("snapshot %s: %+v", n.Name, n.Problem)
			}
		}
		return nil
	})
	if got := s.shell("a", "ls /root | wc -l; cat /root/200"); got != "200\n200" {
		t.Errorf("the guest holds %q", got)
	}
	for name := range s.guests() {
		if name == "a" {
			continue
		}
		s.lodge("start", name)
		if got := s.shell(name, "ls /root | wc -l"); got != "200" {
			t.Errorf("clone %s holds %q", name, got)
		}
	}
	for _, n := range s.snapshots("a") {
		s.lodge("snapshot", "restore", "a", n.Name, "--start")
		if got := s.shell("a", "ls /root | wc -l"); got != "200" {
			t.Errorf("snapshot %s holds %q", n.Name, got)
		}
	}
	s.lodge("rm", "--force", "--all")
	for _, where := range []string{"snapshots", "incoming", "volumes"} {
		left, err := filepath.Glob(s.path("data/pools/*/*/" + where + "/*"))
		if err != nil || len(left) != 0 {
			t.Errorf("left in %s: %v, %v", where, left, err)
		}
	}
	if left, err := os.ReadDir(s.path("data/guests")); err != nil || len(left) != 0 {
		t.Errorf("left of guests: %v, %v", left, err)
	}
}
