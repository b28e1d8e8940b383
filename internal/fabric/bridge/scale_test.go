package bridge_test

import (
	"slices"
	"testing"
	"time"

	"lodge/internal/fabric"
	"lodge/internal/fabric/fabrictest"
)

// TestManyPorts goes past the 1,023 ports of one bridge.
func TestManyPorts(t *testing.T) {
	d := open(t, nil)
	s := spec()
	begin := time.Now()
	f := ensure(t, d, "default", s)
	t.Logf("ensure: %v", time.Since(begin))
	const ports = 1100
	masters := map[string]int{}
	var took []time.Duration
	for n := 2; n < 2+ports; n++ {
		begin := time.Now()
		so, err := f.Plug(t.Context(), fabrictest.Port(s, "mp", n))
		took = append(took, time.Since(begin))
		if err != nil {
			t.Fatalf("port %d: %v", n, err)
		}
		masters[so.Master]++
	}
	median := func(d []time.Duration) time.Duration {
		d = slices.Clone(d)
		slices.Sort(d)
		return d[len(d)/2]
	}
	t.Logf("plug: median %v at 10 ports, %v at 1,000 (slowest %v); ports by bridge: %v",
		median(took[:20]), median(took[950:1050]), slices.Max(took), masters)
	if len(masters) < 2 {
		t.Fatalf("all ports on %v", masters)
	}
	for m, n := range masters {
		if n > 1000 {
			t.Errorf("%d ports on %s", n, m)
		}
	}

	near, far := fabrictest.Port(s, "mp", 2), fabrictest.Port(s, "mp", 1+ports)
	a := fabrictest.NewGuest(t, f, near, 16, 64)
	b := fabrictest.NewGuest(t, f, far, 16, 64)
	if a.Socket.Master == b.Socket.Master {
		t.Fatalf("both on %s", a.Socket.Master)
	}
	b.Greet(t)
	a.Greet(t)
	talk := func() {
		t.Helper()
		for _, to := range []string{far.IPv4.String(), far.IPv6.String()} {
			if _, err := a.Ask("tcp", at(to, 7)); err != nil {
				t.Errorf("from root to leaf, %s: %v", to, err)
			}
		}
		if _, err := b.Ask("tcp", at(near.IPv4.String(), 7)); err != nil {
			t.Errorf("from leaf to root: %v", err)
		}
		var host *fabrictest.Space
		if _, err := host.Ask("tcp", at(far.IPv4.String(), 7)); err != nil {
			t.Errorf("from the host to the leaf: %v", err)
		}
	}
	talk()
	if err := f.Forward(t.Context(), []fabric.Forward{{Protocol: "tcp", Port: 8080, To4: far.IPv4, Target: 7}}); err != nil {
		t.Fatal(err)
	}
	out := outside(t)
	out.Greet(t, internet4, internet6)
	for to, as := range map[string]string{internet4: "192.0.2.2", internet6: "2001:db8:1::2"} {
		if seen, err := b.Ask("tcp", at(to, 7)); err != nil || seen.String() != as {
			t.Errorf("from leaf to %s: seen as %v, %v", to, seen, err)
		}
	}
	var host *fabrictest.Space
	for who, s := range map[string]*fabrictest.Space{"the host": host, "a guest on the root": a.Space, "outside": out} {
		if _, err := s.Ask("tcp", "192.0.2.2:8080"); err != nil {
			t.Errorf("%s to a guest on a leaf by the host's port: %v", who, err)
		}
	}

	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	begin = time.Now()
	f = ensure(t, open(t, nil), "default", s)
	t.Logf("ensure by a daemon that finds %d ports: %v", ports, time.Since(begin))
	if again, err := f.Plug(t.Context(), far); err != nil || again.Master != b.Socket.Master {
		t.Errorf("port is on %s, was on %s; %v", again.Master, b.Socket.Master, err)
	}
	talk()
}
