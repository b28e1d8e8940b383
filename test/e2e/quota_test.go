package e2e

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const mebi = 1 << 20

// disk is what df says, in bytes.
type disk struct{ size, used, free uint64 }

// df asks df inside a guest, as its root, about path.
func (s *server) df(name, path string) disk {
	s.t.Helper()
	return parseDf(s.t, s.lodge("exec", name, "--", "df", "-kP", path))
}

func parseDf(t testing.TB, out string) disk {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(out), "\n")
	f := strings.Fields(lines[len(lines)-1])
	if len(f) != 6 {
		t.Fatalf("df says %q", out)
	}
	var n [3]uint64
	for i := range n {
		kib, err := strconv.ParseUint(f[i+1], 10, 64)
		if err != nil {
			t.Fatalf("df says %q", out)
		}
		n[i] = kib << 10
	}
	return disk{n[0], n[1], n[2]}
}

// TestQuota: a guest sees its disk as it was ordered, not the pool that it lies
// in, whoever looks and whatever became of daemon and keeper.
func TestQuota(t *testing.T) {
	s := newServer(t)
	s.busybox()
	// Its first program runs df whenever it is asked to.
	s.lodge("launch", "busybox", "q", "--disk", "1GiB", "--memory", "128MiB", "--", "sh", "-c",
		"trap exit TERM; mkdir -p /asked; while true; do if rmdir /asked/go 2>/dev/null; then df -kP / >/asked/df; mkdir /asked/done; fi; sleep 0.02; done")
	fresh := s.df("q", "/")
	if fresh.size != 1<<30 || fresh.used > 16*mebi || fresh.used+fresh.free != fresh.size {
		t.Errorf("a new guest of 1 GiB shows %+v", fresh)
	}
	fromInit := func() disk {
		t.Helper()
		out := s.lodge("exec", "q", "--", "sh", "-c", "mkdir /asked/go; until rmdir /asked/done 2>/dev/null; do sleep 0.02; done; cat /asked/df")
		return parseDf(t, out)
	}
	if d := fromInit(); d.size != fresh.size || d.free > fresh.free+mebi || d.free+mebi < fresh.free {
		t.Errorf("init is shown %+v, exec %+v", d, fresh)
	}
	s.lodge("exec", "q", "--", "sh", "-c", "dd if=/dev/urandom of=/root/big bs=1M count=100 2>/dev/null; sync")
	grown := s.df("q", "/")
	if by := grown.used - fresh.used; by < 96*mebi || by > 120*mebi {
		t.Errorf("100 MiB more are %d bytes more: %+v after %+v", by, grown, fresh)
	}
	t.Run("elsewhere", func(t *testing.T) { elsewhere(t, s) })
	t.Run("anyone", func(t *testing.T) { anyone(t, s) })

	s.lodge("set", "q", "--disk", "2GiB")
	if d := s.df("q", "/"); d.size != 2<<30 {
		t.Errorf("after set --disk 2GiB: %+v", d)
	}
	if err := unix.Kill(s.keeper(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if d := fromInit(); d.size != 2<<30 {
		t.Errorf("init is shown %+v after the keeper was lost", d)
	}
	s.kill()
	s.start()
	until(t, "the guest can be entered", func() error {
		if r := s.try("exec", "q", "--", "true"); r.code != 0 {
			return errors.New(r.err)
		}
		return nil
	})
	if err := unix.Kill(s.keeper(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if d := fromInit(); d.size != 2<<30 {
		t.Errorf("init is shown %+v after the daemon and its keeper were lost", d)
	}

	s.lodge("set", "q", "--disk", "200MiB")
	if r := s.try("exec", "q", "--", "sh", "-c", "dd if=/dev/zero of=/root/more bs=1M count=300"); r.code == 0 || !strings.Contains(strings.ToLower(r.out+r.err), "quota") {
		t.Errorf("writing past the limit: %+v", r)
	}
	if d := s.df("q", "/"); d.size != 200*mebi || d.free > 8*mebi {
		t.Errorf("a full disk shows %+v", d)
	}
	s.lodge("set", "q", "--disk", "50MiB")
	if d := s.df("q", "/"); d.size != 50*mebi || d.free != 0 {
		t.Errorf("a disk that is more than full shows %+v", d)
	}
}

// elsewhere: paths of the root are its own, of any shape; other file systems
// are as they are.
func elsewhere(t *testing.T, s *server) {
	out := s.lodge("exec", "q", "--", "sh", "-c", `cd /root; mkdir -p d; ln -sf / d/up; mkdir -p bound; mount -o bind d bound
		for p in / /root/big big . ./d d/up/root ../root/./big /bin/busybox bound; do stat -f -c "%b*%S" $p; done
		echo; for p in /proc /dev /sys; do stat -f -c "%t" $p; done; umount bound; stat -f /no/such 2>&1; true`)
	root, other, _ := strings.Cut(out, "\n\n")
	want := fmt.Sprintf("%d*4096", uint64(1<<30)/4096)
	lines := strings.Split(root, "\n")
	if len(lines) != 9 || slices.ContainsFunc(lines, func(l string) bool { return l != want }) {
		t.Errorf("paths of the root are shown as %q", lines)
	}
	if !strings.HasPrefix(other, "9fa0\n1021994\n62656572\n") || !strings.Contains(other, "/no/such") {
		t.Errorf("other file systems are shown as %q", other)
	}
}

// anyone: users that are not root are shown the same, but not what they may not
// look for.
func anyone(t *testing.T, s *server) {
	s.lodge("exec", "q", "--", "sh", "-c", "echo ann:x:1000:1000::/:/bin/sh >>/etc/passwd; mkdir -m 700 /hidden; touch /hidden/file")
	if d := parseDf(t, s.lodge("exec", "--user", "ann", "q", "--", "df", "-kP", "/")); d.size != 1<<30 {
		t.Errorf("a user is shown %+v", d)
	}
	r := s.try("exec", "--user", "ann", "q", "--", "stat", "-f", "/hidden/file")
	if r.code == 0 || !strings.Contains(r.err, "denied") {
		t.Errorf("a user is told of a hidden file: %+v", r)
	}
}
