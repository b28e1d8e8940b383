package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

// must runs a command of the host, which must succeed.
func must(t testing.TB, argv ...string) string {
	t.Helper()
	r := run(t, nil, argv...)
	if r.code != 0 {
		t.Fatalf("%v: %d %s%s", argv, r.code, r.out, r.err)
	}
	return r.out
}

// internet makes a network namespace that stands for the world: the host
// reaches it, and it knows no way to guests. It listens at 203.0.113.2:7 and
// [2001:db8:1::2]:7 and tells each client its address.
func internet(t *testing.T) {
	t.Helper()
	holder := exec.Command("unshare", "-n", "sleep", "1000")
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	pid := fmt.Sprint(holder.Process.Pid)
	t.Cleanup(func() { holder.Process.Kill(); holder.Wait() })
	until(t, "the world has a namespace", func() error {
		ours, _ := os.Readlink("/proc/self/ns/net")
		if theirs, err := os.Readlink("/proc/" + pid + "/ns/net"); err != nil || theirs == ours {
			return errors.New("not yet")
		}
		return nil
	})
	must(t, "ip", "link", "add", "world", "type", "veth", "peer", "name", "eth0", "netns", pid)
	t.Cleanup(func() { run(t, nil, "ip", "link", "del", "world") })
	in := []string{"nsenter", "-n", "-t", pid}
	for _, argv := range [][]string{
		{"ip", "addr", "add", "203.0.113.1/24", "dev", "world"}, {"ip", "-6", "addr", "add", "2001:db8:1::1/64", "dev", "world", "nodad"},
		{"ip", "link", "set", "world", "up"},
		append(slices.Clone(in), "ip", "addr", "add", "203.0.113.2/24", "dev", "eth0"),
		append(slices.Clone(in), "ip", "-6", "addr", "add", "2001:db8:1::2/64", "dev", "eth0", "nodad"),
		append(slices.Clone(in), "ip", "link", "set", "eth0", "up"),
		append(slices.Clone(in), "ip", "link", "set", "lo", "up"),
	} {
		must(t, argv...)
	}
	t.Setenv("WORLD", pid)
}

// fromWorld runs a command out there.
func fromWorld(t *testing.T, argv ...string) result {
	t.Helper()
	return run(t, nil, append([]string{"nsenter", "-n", "-t", os.Getenv("WORLD")}, argv...)...)
}

// serves makes a guest answer its name on a TCP port.
func (s *server) serves(name string, port int) {
	s.t.Helper()
	s.lodge("exec", name, "--", "sh", "-c", fmt.Sprintf("hostname > /tmp/name; (nc -ll -p %d -e cat /tmp/name >/dev/null 2>&1 &)", port))
	until(s.t, name+" listens", func() error {
		if r := s.try("exec", name, "--", "sh", "-c", fmt.Sprintf("nc -w1 127.0.0.1 %d </dev/null", port)); strings.TrimSpace(r.out) != name {
			return fmt.Errorf("%+v", r)
		}
		return nil
	})
}

// dial returns what a TCP server says at once.
func dial(address string) (string, error) {
	c, err := net.DialTimeout("tcp", address, 2*time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(2 * time.Second))
	text, err := io.ReadAll(c)
	return strings.TrimSpace(string(text)), err
}

// TestNetwork lets guests talk to each other, to the world, and the world to
// them, with other firewalls' rules in the way.
func TestNetwork(t *testing.T) {
	s := newServer(t)
	internet(t)
	s.busybox()
	s.lodge("launch", "busybox", "a", "--memory", "32MiB", "--publish", "8080:80")
	s.lodge("launch", "busybox", "b", "--memory", "32MiB")
	s.serves("a", 80)
	in := func(name, script string) result { return s.try("exec", name, "--", "sh", "-c", script) }
	works := func(what, name, script string) {
		t.Helper()
		if r := in(name, script); r.code != 0 {
			t.Errorf("%s: %d %s%s", what, r.code, r.out, r.err)
		}
	}
	fails := func(what, name, script string) {
		t.Helper()
		if r := in(name, script); r.code == 0 {
			t.Errorf("%s works: %s", what, r.out)
		}
	}
	everything := func(when string) {
		t.Helper()
		works(when+": a by its name", "b", "ping -4 -c1 -W3 a")
		works(when+": a by its full name over IPv6", "b", "ping -6 -c1 -W3 a.lodge.internal")
		works(when+": the world", "b", "ping -c1 -W3 203.0.113.2")
		works(when+": the world over IPv6", "b", "ping -6 -c1 -W3 2001:db8:1::2")
		works(when+": the gateway", "b", "ping -c1 -W3 $(ip route | sed -n 's/default via \\([^ ]*\\).*/\\1/p')")
		for _, address := range []string{"127.0.0.1:8080", "203.0.113.1:8080", "[2001:db8:1::1]:8080"} {
			until(t, when+": a published port at "+address, func() error {
				if name, err := dial(address); name != "a" {
					return fmt.Errorf("%q, %v", name, err)
				}
				return nil
			})
		}
		if r := fromWorld(t, "bash", "-c", "exec 3<>/dev/tcp/203.0.113.1/8080; timeout 3 cat <&3"); strings.TrimSpace(r.out) != "a" {
			t.Errorf("%s: a published port from the world: %+v", when, r)
		}
	}
	everything("alone")

	s.lodge("forward", "add", "b", "8081:81")
	s.serves("b", 81)
	until(t, "a port forward", func() error {
		if name, err := dial("127.0.0.1:8081"); name != "b" {
			return fmt.Errorf("%q, %v", name, err)
		}
		return nil
	})
	works("a guest reaches another's published port", "a", "test \"$(nc -w2 203.0.113.1 8081 </dev/null)\" = b")
	forwards := list[struct {
		Name string
		Port int
	}](s, "forward", "ls")
	for _, f := range forwards {
		if f.Port == 8081 {
			s.lodge("forward", "rm", f.Name)
		}
	}
	until(t, "the forward is gone", func() error {
		if name, err := dial("127.0.0.1:8081"); err == nil {
			return fmt.Errorf("it answers %q", name)
		}
		return nil
	})

	s.lodge("rename", "a", "c")
	works("the new name", "b", "ping -c1 -W3 c")
	fails("the old name", "b", "ping -c1 -W1 a")
	s.lodge("rename", "c", "a")

	t.Run("spoofing", func(t *testing.T) { spoof(t, s) })
	for name, rules := range foreignRules {
		must(t, "sh", "-c", "printf '%s' \"$0\" | nft -f -", rules)
		s.end()
		s.start()
		until(t, "the daemon sees to "+name, func() error {
			if r := in("b", "ping -c1 -W1 203.0.113.2"); r.code != 0 {
				return errors.New(s.try("doctor").out)
			}
			return nil
		})
		everything("with rules of " + name)
		must(t, "nft", "delete", "table", "ip", "filter")
	}
	t.Run("two networks", func(t *testing.T) { twoNetworks(t, s) })
	s.lodge("rm", "-f", "--all")
	s.noLeaks()
	if r := s.down(); r.code != 0 {
		t.Fatalf("down: %s%s", r.out, r.err)
	}
	if out := must(t, "nft", "list", "ruleset"); strings.Contains(out, s.flag("--prefix")) {
		t.Errorf("down leaves rules:\n%s", out)
	}
	if out := must(t, "ip", "-o", "link"); strings.Contains(out, s.flag("--prefix")+"-") {
		t.Errorf("down leaves devices:\n%s", out)
	}
}

// foreignRules drop what is forwarded, as other programs' rules do.
var foreignRules = map[string]string{
	"docker": `table ip filter {
	chain DOCKER-USER { return; }
	chain FORWARD { type filter hook forward priority filter; policy drop; jump DOCKER-USER; }
}`,
	"ufw": `table ip filter {
	chain ufw-before-forward { }
	chain ufw-user-forward { }
	chain FORWARD { type filter hook forward priority filter; policy drop; jump ufw-before-forward; jump ufw-user-forward; }
}`,
}

// spoof tries to be somebody else from inside a guest.
func spoof(t *testing.T, s *server) {
	a := s.guest("a").NICs[0]
	addr, _, _ := strings.Cut(a.IPv4, "/")
	for what, script := range map[string]string{
		"another's address":      "ip addr add " + addr + "/32 dev eth0 && ping -c1 -W1 -I " + addr + " 203.0.113.2; x=$?; ip addr del " + addr + "/32 dev eth0; exit $x",
		"a made-up address":      "ip addr add 192.0.2.9/32 dev eth0 && ping -c1 -W1 -I 192.0.2.9 203.0.113.2; x=$?; ip addr del 192.0.2.9/32 dev eth0; exit $x",
		"a made-up IPv6 address": "ip -6 addr add 2001:db8:66::9/128 dev eth0 && sleep 1 && ping -6 -c1 -W1 -I 2001:db8:66::9 2001:db8:1::2; x=$?; ip -6 addr del 2001:db8:66::9/128 dev eth0; exit $x",
	} {
		if r := s.try("exec", "b", "--", "sh", "-c", script); r.code == 0 {
			t.Errorf("%s works: %s", what, r.out)
		}
	}
	mac := s.guest("b").NICs[0].MAC
	s.try("exec", "b", "--", "sh", "-c", "ip link set eth0 address "+a.MAC)
	if r := s.try("exec", "b", "--", "ping", "-c1", "-W1", "203.0.113.2"); r.code == 0 {
		t.Error("another's hardware address works")
	}
	s.lodge("exec", "b", "--", "ip", "link", "set", "eth0", "address", mac)
	s.lodge("restart", "--force", "b")
	s.lodge("exec", "b", "--", "ping", "-c1", "-W3", "203.0.113.2")
}

// twoNetworks checks that guests of one network don't reach those of another.
func twoNetworks(t *testing.T, s *server) {
	s.lodge("network", "create", "lab", "--ipv4", "10.77.5.0/29")
	for round := range 3 { // a /29 has room for five guests
		s.lodge("launch", "busybox", "lab", "--count", "5", "--memory", "32MiB", "--network", "lab")
		if round == 0 {
			s.lodge("exec", "lab-1", "--", "ping", "-c1", "-W3", "lab-5")
			s.lodge("exec", "lab-1", "--", "ping", "-c1", "-W3", "203.0.113.2")
			for from, to := range map[string]string{"lab-1": "a", "a": "lab-1"} {
				address := s.guest(to).Addresses[0]
				if r := s.try("exec", from, "--", "ping", "-c1", "-W1", address); r.code == 0 {
					t.Errorf("%s reaches %s on another network", from, to)
				}
			}
			r := s.try("launch", "busybox", "sixth", "--memory", "32MiB", "--network", "lab")
			if r.code == 0 || !strings.Contains(r.err, "lab") || !strings.Contains(r.err, "hint") {
				t.Errorf("a sixth guest: %+v", r)
			}
			if _, there := s.guests()["sixth"]; there {
				t.Error("the sixth guest was made")
			}
		}
		s.lodge("rm", "-f", "lab-1", "lab-2", "lab-3", "lab-4", "lab-5")
	}
	s.lodge("network", "rm", "lab")
}
