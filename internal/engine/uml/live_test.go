package uml

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"lodge/internal/base/errs"
	"lodge/internal/engine"
	"lodge/internal/launch"
	"lodge/internal/model/guest"
)

// TestMemoryGoesBack takes memory from a guest that had used it, and gives it
// back. What its programs keep in memory stays what it is.
func TestMemoryGoesBack(t *testing.T) {
	const all, less = 256 << 20, 128 << 20
	r := newRig(t)
	g, p := r.guest(t, guest.Spec{Memory: all})
	m := r.boot(t, g, p)
	defer r.end(t, m)
	sh := func(script string) string { t.Helper(); return said(t, m, "sh", "-c", script) }
	charged := func() uint64 {
		t.Helper()
		u, err := m.Usage(t.Context())
		must(t, err)
		return u.Memory
	}
	sum := sh("mount -t tmpfs -o size=220m none /tmp && head -c 20000000 /dev/urandom > /tmp/kept && head -c 150000000 /dev/zero > /tmp/used && rm /tmp/used && md5sum /tmp/kept")
	before := charged()

	spec := g.Spec
	spec.Memory = less
	must(t, m.Resize(t.Context(), spec))
	after := charged()
	if after > before-100<<20 {
		t.Errorf("%d MiB were charged, and %d are after half of 256 was taken", before>>20, after>>20)
	}
	if is := sh("md5sum /tmp/kept"); is != sum {
		t.Errorf("what was in memory changed: %s, %s before", is, sum)
	}
	// More than it can give.
	spec.Memory = 32 << 20
	if err := m.Resize(t.Context(), spec); !errs.Is(err, errs.Unsupported) || charged() > after {
		t.Errorf("%v, %d MiB are charged", err, charged()>>20)
	}
	if is := sh("md5sum /tmp/kept"); is != sum {
		t.Errorf("what was in memory changed: %s, %s before", is, sum)
	}

	must(t, m.Resize(t.Context(), g.Spec))
	sh("head -c 150000000 /dev/zero > /tmp/used")
	if is := charged(); is < after+100<<20 {
		t.Errorf("%d MiB are charged of memory that was given back and used", is>>20)
	}
	if is := sh("md5sum /tmp/kept"); is != sum {
		t.Errorf("what was in memory changed: %s, %s before", is, sum)
	}
	spec.Memory = all + 1<<20
	if err := m.Resize(t.Context(), spec); !errs.Is(err, errs.Unsupported) {
		t.Errorf("it has more than it was started with: %v", err)
	}
}

// TestCardOffAndOn switches a card of a guest off and on from inside, as its
// owner may.
func TestCardOffAndOn(t *testing.T) {
	r := newRig(t)
	g, p := r.guest(t, guest.Spec{})
	p.NICs = []engine.NIC{r.nic(t, 1)}
	m := r.boot(t, g, p)
	defer r.end(t, m)
	must(t, m.line.Await(t.Context()))
	const ping = "for i in $(seq 100); do ping -c 1 -W 1 10.67.0.1 && exit 0; done; exit 1"
	said(t, m, "sh", "-c", ping)
	for range 2 {
		said(t, m, "sh", "-c", "ip link set eth0 down && ip link set eth0 up && "+ping)
	}
}

// TestCardsComeAndGo plugs more cards than there are doors for, one after the
// other.
func TestCardsComeAndGo(t *testing.T) {
	r := newRig(t)
	g, p := r.guest(t, guest.Spec{})
	m := r.boot(t, g, p)
	defer r.end(t, m)
	must(t, m.line.Await(t.Context()))
	for i := range 2*spares + 1 {
		n := r.nic(t, i+1)
		n.Name = fmt.Sprintf("net%d", i)
		must(t, m.PlugNIC(t.Context(), n))
		if out := said(t, m, "ip", "link", "show", n.Name); !strings.Contains(out, strings.ToLower(n.MAC)) {
			t.Fatalf("the card is %s", out)
		}
		must(t, m.UnplugNIC(context.Background(), n.Name))
	}
}

// TestSlim watches a guest that used memory, and has little to do now, give it
// back by itself, and what it booted from go.
func TestSlim(t *testing.T) {
	r := newRig(t)
	g, p := r.guest(t, guest.Spec{Memory: 256 << 20})
	m := r.boot(t, g, p)
	defer r.end(t, m)
	said(t, m, "sh", "-c", "mount -t tmpfs -o size=220m none /tmp && head -c 120000000 /dev/zero > /tmp/used && rm /tmp/used")
	archive, err := launch.Take(m.held, launch.Jail{Files: fixedFiles()}.Descriptor(initrdFile))
	must(t, err)
	defer archive.Close()
	deadline := time.Now().Add(2 * time.Minute)
	for {
		u, err := m.Usage(t.Context())
		must(t, err)
		fi, err := archive.Stat()
		must(t, err)
		if u.Memory < 80<<20 && fi.Size() == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d MiB are charged, and %d bytes are left of what it booted from", u.Memory>>20, fi.Size())
		}
		time.Sleep(100 * time.Millisecond)
	}
	said(t, m, "sh", "-c", "head -c 120000000 /dev/zero > /tmp/used && md5sum /tmp/used")
}

// TestSqueezedGuestTakesMemory has programs of a guest fill nearly all of its
// memory, again and again, while all that is free is taken from it: none of them
// is ended for want of memory, and what they keep stays what it is.
func TestSqueezedGuestTakesMemory(t *testing.T) {
	r := newRig(t)
	g, p := r.guest(t, guest.Spec{Memory: 128 << 20})
	m := r.boot(t, g, p)
	defer r.end(t, m)
	must(t, m.line.Await(t.Context()))
	sum := said(t, m, "sh", "-c", "mount -t tmpfs -o size=100m none /tmp && head -c 5000000 /dev/urandom > /tmp/kept && md5sum /tmp/kept")
	ended := make(chan error, 1)
	times := 0
	go func() {
		var err error
		for ; err == nil && times < 20; times++ {
			err = squeeze(t.Context(), m.line, m.held)
		}
		ended <- err
	}()
	for done := false; !done; {
		select {
		case err := <-ended:
			must(t, err)
			done = true
		default:
		}
		said(t, m, "sh", "-c", "for i in $(seq 10); do dd if=/dev/zero of=/dev/null bs=6M count=1 & all=\"$all $!\"; done; for p in $all; do wait $p || exit 1; done")
	}
	if is := said(t, m, "sh", "-c", "md5sum /tmp/kept"); is != sum {
		t.Errorf("what was in memory changed: %s, %s before", is, sum)
	}
	if is := said(t, m, "sh", "-c", "grep '^oom_kill ' /proc/vmstat"); strings.TrimSpace(is) != "oom_kill 0" {
		t.Errorf("of programs that were ended for want of memory the guest says %q", is)
	}
}
