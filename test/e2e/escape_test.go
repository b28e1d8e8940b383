package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestEscapes tries the known ways out of a launched guest.
func TestEscapes(t *testing.T) {
	s := newServer(t)
	s.busybox()
	s.lodge("launch", "busybox", "a", "--memory", "64MiB")
	s.lodge("launch", "busybox", "b", "--memory", "64MiB")
	for what, script := range map[string]string{
		"overwriting the program that came from outside": "echo x > /proc/self/exe",
		"a device":                     "mknod /tmp/sda b 8 0",
		"the host's disk":              "mknod /tmp/vda b 254 0 && dd if=/tmp/vda of=/dev/null bs=1 count=1",
		"core_pattern":                 "echo '|/tmp/x' > /proc/sys/kernel/core_pattern",
		"sysrq":                        "echo b > /proc/sysrq-trigger",
		"the host's modules":           "echo /tmp/x > /proc/sys/kernel/modprobe",
		"uevent_helper":                "echo /tmp/x > /sys/kernel/uevent_helper",
		"a v1 release_agent":           "mkdir /tmp/cg && mount -t cgroup -o memory cgroup /tmp/cg && echo /tmp/x > /tmp/cg/release_agent",
		"a release_agent":              "find /sys/fs/cgroup -name release_agent | grep .",
		"the memory of the host":       "dd if=/dev/mem of=/dev/null bs=1 count=1",
		"kallsyms or kcore":            "dd if=/proc/kcore of=/dev/null bs=1 count=1",
		"the host's first process":     "nsenter -t 1 -m -- true && test -e /var/lib/lodge",
		"the host's clock":             "date -s 2001-01-01; test $(date +%Y) = 2001",
		"the host's name of a process": "ps | grep lodged | grep -v grep",
		"its own limits":               "echo max > /sys/fs/cgroup/memory.max; echo max > /sys/fs/cgroup/pids.max",
		"a raw socket of the host":     "ip link | grep -- -default",
		"swapping off":                 "swapoff -a && grep -q swap /proc/swaps",
		"rebooting the host by hand":   "echo 1 > /proc/sys/kernel/panic",
	} {
		if r := s.try("exec", "a", "--", "sh", "-c", script); r.code == 0 {
			t.Errorf("%s: %s%s", what, r.out, r.err)
		}
	}
	for _, mount := range strings.Split(s.lodge("exec", "a", "--", "cat", "/proc/self/mountinfo"), "\n") {
		if strings.Contains(mount, s.dir) || strings.Contains(mount, "/var/tmp") {
			t.Errorf("a guest sees where it lies on the host: %s", mount)
		}
	}
	first := func(name string) uint64 {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/uid_map", s.guest(name).Pid))
		if err != nil {
			t.Fatal(err)
		}
		var in, out, n uint64
		fmt.Sscan(string(text), &in, &out, &n)
		if in != 0 || n != 65536 || out < 1_000_000_000 {
			t.Errorf("%s has ids %s", name, text)
		}
		return out
	}
	if a, b := first("a"), first("b"); a == b {
		t.Errorf("two guests share ids from %d", a)
	}
	t.Run("copying", func(t *testing.T) { copyRace(t, s) })
	s.lodge("exec", "a", "--", "true")
	s.lodge("rm", "-f", "a", "b")
	s.noLeaks()
}

// copyRace copies into and out of a directory that the guest swaps with a link
// to the host's files all the while.
func copyRace(t *testing.T, s *server) {
	secret, outside := s.path("secret"), s.path("target")
	if err := os.WriteFile(secret, []byte("the host's"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(outside, 0o777); err != nil {
		t.Fatal(err)
	}
	s.lodge("exec", "a", "--", "sh", "-c", fmt.Sprintf(`mkdir -p /x/d /y; echo guest > /x/d/secret; ln -s %s /y/l
(while :; do mv /x/d /x/e; ln -s %s /x/d; rm /x/d; mv /x/e /x/d; done) >/dev/null 2>&1 &`, s.dir, s.dir))
	from := s.path("file")
	if err := os.WriteFile(from, []byte("planted"), 0o644); err != nil {
		t.Fatal(err)
	}
	for i := range 30 {
		s.try("cp", from, "a:/x/d/target/planted")
		s.try("cp", from, "a:/y/l/target/planted")
		to := s.path(fmt.Sprintf("got%d", i))
		s.try("cp", "a:/x/d/secret", to)
		if text, err := os.ReadFile(to); err == nil && strings.Contains(string(text), "host") {
			t.Fatal("a file of the host came out of a guest")
		}
	}
	if planted, _ := filepath.Glob(outside + "/*"); len(planted) > 0 {
		t.Fatalf("files were written on the host: %v", planted)
	}
}

// TestHTTPS asks over the network, with and without the token.
func TestHTTPS(t *testing.T) {
	s := newServer(t, "--https", "127.0.0.1:18443")
	token, err := os.ReadFile(s.path("data/token"))
	if err != nil {
		t.Fatal(err)
	}
	certs, _ := filepath.Glob(s.path("data/tls/*.crt"))
	more, _ := filepath.Glob(s.path("data/tls/*cert*.pem"))
	if certs = append(certs, more...); len(certs) == 0 {
		t.Fatalf("there is no certificate in %s", run(t, nil, "ls", s.path("data/tls")).out)
	}
	ask := func(token string, more ...string) result {
		env := append([]string{"LODGE_HOST=https://127.0.0.1:18443", "LODGE_TOKEN=" + token}, more...)
		return runIn(t, env, nil, binary(t, "lodge"), "ls", "-o", "json")
	}
	ca := "LODGE_CACERT=" + certs[0]
	good := strings.TrimSpace(string(token))
	if r := ask(good, ca); r.code != 0 || strings.TrimSpace(r.out) != "[]" {
		t.Errorf("with the token: %+v", r)
	}
	for what, r := range map[string]result{"without a token": ask("", ca), "with a wrong token": ask(good+"x", ca)} {
		if r.code != 5 || !strings.Contains(r.err, "token") {
			t.Errorf("%s: %+v", what, r)
		}
	}
	if r := ask(good); r.code != 6 || !strings.Contains(r.err, "LODGE_CACERT") {
		t.Errorf("without the certificate: %+v", r)
	}
	if info, err := os.Stat(s.path("data/token")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the token's file: %v, %v", info.Mode(), err)
	}
}
