package qemu

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lodge/internal/engine"
	"lodge/internal/engine/enginetest"
	"lodge/internal/model/guest"
)

// TestMoveWithCard moves a guest with a network card there and back. The card's
// ends on the host have other names, and what its neighbours know of it leads to
// where it is.
func TestMoveWithCard(t *testing.T) {
	r := newRig(t)
	bridge(t)
	// As a network's bridge: else it has that of the card that leaves.
	if out, err := exec.Command("ip", "link", "set", "suite0", "address", "02:00:00:00:00:fe").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	k, _ := enginetest.Keeper(t)
	g, p := r.guest(t, guest.Spec{Memory: 128 << 20})
	card := suiteNIC(t, 7)
	card.Device = "mv0"
	p.NICs = []engine.NIC{card}
	x := &mover{r: r, k: k, all: t, kept: r.start(t, k, g, p)}
	x.ready()
	address := card.IPv4.Addr().String()
	talks := func(when string) {
		t.Helper()
		// The guest has not spoken since it moved. Nothing listens there, which
		// only it can say.
		if c, err := net.DialTimeout("tcp", address+":9", 30*time.Second); !errors.Is(err, syscall.ECONNREFUSED) {
			if err == nil {
				c.Close()
			}
			t.Errorf("%s nobody reaches it: %v", when, err)
		}
		if out := x.shell("ping -c 1 -w 30 10.68.0.254; ip link"); !strings.Contains(out, " 0% packet loss") || !strings.Contains(out, card.MAC) {
			t.Errorf("%s it reaches nobody: %s", when, out)
		}
	}
	talks("at first")
	for _, where := range []string{"mv1", "mv0"} {
		x.parts.NICs = []engine.NIC{card}
		x.parts.NICs[0].Device = where
		x.move(t, "", engine.Moving{})
		talks("as " + where)
		out, err := exec.Command("ip", "-o", "link", "show", "master", "suite0").CombinedOutput()
		if err != nil || strings.Count(string(out), "\n") != 1 || !strings.Contains(string(out), where+":") {
			t.Errorf("the bridge's ports are %q, %v", out, err)
		}
	}
}

// TestMoveOutlivesDaemon: the daemon that moves a guest dies. The guest arrives all
// the same, once, and the next daemon sees which QEMU has it and which stands
// still: ending that one leaves nothing.
func TestMoveOutlivesDaemon(t *testing.T) {
	r := newRig(t)
	x := newMover(t, r)
	y := x.target(t, "", false)
	here, there, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := y.m.Receive(t.Context(), engine.Arrival{Stream: there}); err != nil {
		t.Fatal(err)
	}
	s := &sender{m: x.m, l: x.m.link, d: engine.Departure{Stream: here, Bandwidth: 64 << 20}, began: time.Now()}
	if err := s.begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	here.Close()
	there.Close()
	r.engine.Close()
	r.engine = New(r.engine.o)
	for _, k := range []*kept{x.kept, y} {
		m, err := r.engine.Connect(t.Context(), k.g, k.parts, k.held)
		if err != nil {
			t.Fatal(err)
		}
		k.m = m.(*Machine)
	}
	for end := time.Now().Add(2 * time.Minute); y.m.link.state() != "running" || !paused(x.m.link.state()); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it is %s where it was, and %s where it was to go; %s", x.m.link.state(), y.m.link.state(), lastLines(y))
		}
	}
	if p, err := x.m.Probe(t.Context()); err != nil || !p.Paused {
		t.Errorf("where it was it is %+v, %v", p, err)
	}
	x.end()
	x.kept = y
	x.whole(t)
}

func socketPair() (a, b *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	return os.NewFile(uintptr(fds[0]), "sender"), os.NewFile(uintptr(fds[1]), "receiver"), nil
}
