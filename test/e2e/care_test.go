package e2e

import (
	"strings"
)

// ownKey is a public key as a person has it.
const ownKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHJ1bm5pbmctb3V0LW9mLWlkZWFzLWZvci1rZXlzLiEh ann@desk"

// cares has the owner of a guest let in, its clock set and its disk trimmed, or
// told plainly why there is nothing to do.
func (s *server) cares(name string) {
	s.t.Helper()
	s.fed("open, sesame\n", "password", name)
	if out := s.lodge("exec", name, "--", "cut", "-c1-8", "/etc/shadow"); !strings.Contains(out, "root:$6$") {
		s.t.Errorf("root of %s has no password: %q", name, out)
	}
	if r := s.tryWith([]byte("x\n"), "password", name, "--user", "nobody-here"); r.code != 3 || !strings.Contains(r.err, name) || !strings.Contains(r.err, "nobody-here") {
		s.t.Errorf("a password for a user who is not in %s: %+v", name, r)
	}
	s.fed(ownKey+"\n", "authorize", name, "-")
	if out := s.lodge("exec", name, "--", "cat", "/root/.ssh/authorized_keys"); out != ownKey+"\n" {
		s.t.Errorf("keys of %s: %q", name, out)
	}
	if ofModel[name] == "os" {
		s.refused(1, []string{name, "nothing to trim", "free at once"}, "trim", name)
		s.refused(1, []string{name, "no clock of its own"}, "clock", name)
		return
	}
	s.lodge("exec", name, "--", "date", "-s", "2001-02-03 04:05:06")
	s.lodge("clock", name)
	if out := s.lodge("exec", name, "--", "date", "+%Y"); strings.HasPrefix(out, "2001") {
		s.t.Errorf("the clock of %s was not set: %q", name, out)
	}
	if out := s.lodge("trim", name); !strings.Contains(out, name+": ") {
		s.t.Errorf("trim of %s says %q", name, out)
	}
}
