package enginetest

import (
	"strings"
	"testing"
	"time"

	"lodge/internal/base/errs"
	"lodge/internal/engine"
)

// key is a public key.
const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHJ1bm5pbmctb3V0LW9mLWlkZWFzLWZvci1rZXlzLiEh ann@desk"

// passwords checks that users get the passwords they are given, and that those
// who are not there are told of.
func passwords(t *testing.T, h *suite) {
	r := h.guest(t)
	a, ok := r.m.(engine.Admitter)
	if !ok {
		t.Skip("the engine cannot let owners in")
	}
	r.must("printf 'root:*:1::::::\nann:!:2::::::\n' >/etc/shadow; chmod 640 /etc/shadow")
	if err := a.SetPassword(t.Context(), "ann", "open, sesame"); err != nil {
		t.Fatal(err)
	}
	if out := r.shell("cut -d: -f1,2 /etc/shadow | cut -c1-7; stat -c %a /etc/shadow"); out != "root:*\nann:$6$\n640" {
		t.Errorf("with another password for ann: %q", out)
	}
	if err := a.SetPassword(t.Context(), "nobody-here", "x"); !errs.Is(err, errs.NotFound) || !strings.Contains(err.Error(), "nobody-here") {
		t.Errorf("a user who is not there: %v", err)
	}
	for user, password := range map[string]string{"ann": "", "a:b": "x", "": "x"} {
		if err := a.SetPassword(t.Context(), user, password); !errs.Is(err, errs.Invalid) {
			t.Errorf("%q, %q: %v", user, password, err)
		}
	}
	r.must("rm /etc/shadow")
}

// authorize checks that who has a key is let in, and that no user of the guest
// can have the file of another changed.
func authorize(t *testing.T, h *suite) {
	r := h.guest(t)
	a, ok := r.m.(engine.Admitter)
	if !ok {
		t.Skip("the engine cannot let owners in")
	}
	r.must("echo 'root:*:1::::::' >/etc/shadow; mkdir -p /home/ann /root; chown 1000:1000 /home/ann")
	for range 2 { // what is there already does not come twice
		for _, user := range []string{"root", "ann"} {
			if err := a.Authorize(t.Context(), user, []string{key}); err != nil {
				t.Fatal(err)
			}
		}
	}
	const look = "for d in /root /home/ann; do cat $d/.ssh/authorized_keys; stat -c '%a %u' $d/.ssh $d/.ssh/authorized_keys; done"
	if out := r.shell(look); out != key+"\n700 0\n600 0\n"+key+"\n700 1000\n600 1000" {
		t.Errorf("with a key: %q", out)
	}
	if err := a.Authorize(t.Context(), "ann", []string{"no key"}); !errs.Is(err, errs.Invalid) {
		t.Errorf("what is no key: %v", err)
	}
	if err := a.Authorize(t.Context(), "nobody-here", []string{key}); !errs.Is(err, errs.NotFound) {
		t.Errorf("a key for a user who is not there: %v", err)
	}
	for _, trap := range []string{
		"ln -sf /etc/shadow /home/ann/.ssh/authorized_keys",
		"rm -r /home/ann/.ssh; mkdir /etc/ssh-of-root; ln -s /etc/ssh-of-root /home/ann/.ssh",
		"rm /home/ann/.ssh; mkfifo /home/ann/.ssh",
		"rm /home/ann/.ssh; mkdir /home/ann/.ssh; mkfifo /home/ann/.ssh/authorized_keys",
	} {
		r.must(trap)
		if err := a.Authorize(t.Context(), "ann", []string{key}); err == nil {
			t.Errorf("a key was put where this leads: %s", trap)
		}
	}
	if out := r.shell("grep -c ssh- /etc/shadow; ls /etc/ssh-of-root"); out != "0" {
		t.Errorf("somebody else's file was written: %q", out)
	}
	r.must("rm -r /home/ann/.ssh /root/.ssh /etc/shadow /etc/ssh-of-root")
}

// trim checks that what was removed is given back.
func trim(t *testing.T, h *suite) {
	r := h.guest(t)
	m, ok := r.m.(engine.Trimmer)
	if !ok {
		t.Skip("the engine's guests have nothing to trim")
	}
	if n, err := m.Trim(t.Context()); err != nil || n == 0 {
		t.Errorf("trimmed %d bytes: %v", n, err)
	}
}

// timekeeping checks that a clock that went wrong is set right.
func timekeeping(t *testing.T, h *suite) {
	r := h.guest(t)
	m, ok := r.m.(engine.Timekeeper)
	if !ok {
		t.Skip("the engine's guests have no clock of their own")
	}
	r.must("date -s '2001-02-03 04:05:06'")
	now := time.Now()
	if err := m.SetClock(t.Context(), now); err != nil {
		t.Fatal(err)
	}
	if year := r.shell("date +%Y"); year != now.UTC().Format("2006") {
		t.Errorf("it is the year %s there", year)
	}
}
