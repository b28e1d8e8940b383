package e2e

import (
	"strings"
	"testing"
)

// TestLife walks one guest through everything that can be wanted of it.
func TestLife(t *testing.T) {
	s := newServer(t)
	s.busybox()
	s.lodge("launch", "busybox", "web1", "--memory", "64MiB")
	g := s.guest("web1")
	if g.Phase != "running" || g.Model != "os" || g.MemoryBytes != 64<<20 || len(g.Addresses) != 2 || g.Host != "testhost" {
		t.Errorf("after launch: %+v", g)
	}
	if out := s.lodge("exec", "web1", "--", "hostname"); strings.TrimSpace(out) != "web1" {
		t.Errorf("its host name is %q", out)
	}
	if r := s.try("exec", "web1", "--", "sh", "-c", "echo out; echo err >&2; exit 7"); r.code != 7 || r.out != "out\n" || r.err != "err\n" {
		t.Errorf("exec: %+v", r)
	}
	s.refused(127, []string{"nosuch", "not found"}, "exec", "web1", "--", "nosuch")
	s.refused(126, []string{"/etc"}, "exec", "web1", "--", "/etc")
	s.lodge("pause", "web1")
	if p := s.guest("web1").Phase; p != "paused" {
		t.Errorf("after pause: %s", p)
	}
	s.lodge("resume", "web1")
	s.lodge("exec", "web1", "--", "touch", "/root/kept")
	s.lodge("restart", "web1")
	s.lodge("exec", "web1", "--", "test", "-e", "/root/kept")
	s.lodge("stop", "web1")
	if p := s.guest("web1").Phase; p != "stopped" {
		t.Errorf("after stop: %s", p)
	}
	s.refused(4, []string{"web1", "not running"}, "exec", "web1", "--", "true")
	s.lodge("start", "web1")
	s.refused(4, []string{"web1", "--force"}, "rm", "web1")
	s.lodge("rename", "web1", "web2")
	s.lodge("rm", "-f", "web2")
	if all := s.guests(); len(all) != 0 {
		t.Errorf("after rm: %v", all)
	}
}
