package bridge_test

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"lodge/internal/base/errs"
	"lodge/internal/fabric"
	"lodge/internal/fabric/bridge"
	"lodge/internal/fabric/fabrictest"
	"lodge/internal/model/network"
)

func TestMain(m *testing.M) { os.Exit(fabrictest.Main(m)) }

func spec() network.Spec {
	return network.Spec{Driver: "bridge", NAT: true, Domain: "lodge.internal",
		IPv4: netip.MustParsePrefix("10.77.0.0/16"), IPv6: netip.MustParsePrefix("fd77::/64")}
}

// book is the daemon's part: who is called what.
type book map[string][]netip.Addr

func (b book) Lookup(_, name string) []netip.Addr { return b[name] }

func (b book) Reverse(_ string, a netip.Addr) string {
	for name, addrs := range b {
		for _, x := range addrs {
			if x == a {
				return name
			}
		}
	}
	return ""
}

func open(t testing.TB, names fabric.Names) *bridge.Driver {
	t.Helper()
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(conf, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return bridge.New(bridge.Options{Prefix: "lt", Names: names, ResolvConf: conf})
}

// ensure opens a network that goes with the test.
func ensure(t testing.TB, d fabric.Driver, name string, s network.Spec) fabric.Fabric {
	t.Helper()
	fabrictest.Need(t)
	f, err := d.Ensure(t.Context(), name, s)
	if err != nil {
		t.Fatalf("ensure: %v", err)
	}
	t.Cleanup(func() {
		if err := d.Remove(t.Context(), name); err != nil {
			t.Errorf("remove: %v", err)
		}
	})
	return f
}

func guest(t testing.TB, f fabric.Fabric, s network.Spec, n int) *fabrictest.Guest {
	t.Helper()
	return fabrictest.NewGuest(t, f, fabrictest.Port(s, "gt", n), s.IPv4.Bits(), s.IPv6.Bits())
}

func TestSuite(t *testing.T) {
	before := ruleset(t)
	fabrictest.Run(t, func(t *testing.T) fabric.Driver { return open(t, nil) }, spec())
	if now := ruleset(t); now != before {
		t.Errorf("rules left behind:\n%s", now)
	}
}

// ruleset is what nft prints, which an administrator should be able to read.
func ruleset(t testing.TB) string {
	t.Helper()
	fabrictest.Need(t)
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("needs the nft program, to see what an administrator sees")
	}
	out, err := exec.Command("nft", "list", "ruleset").CombinedOutput()
	if err != nil {
		t.Fatalf("nft list ruleset: %v\n%s", err, out)
	}
	return string(out)
}

// outside is a router with an address of the documentation ranges that is
// "the internet": reachable from the host, knowing nothing of guests.
const internet4, internet6 = "198.51.100.1", "2001:db8:ffff::1"

func outside(t testing.TB) *fabrictest.Space {
	t.Helper()
	r := fabrictest.NewSpace(t)
	r.Join("up0", "", "down0", "", 1500)
	r.Addr("down0", "192.0.2.1/24")
	r.Addr("down0", "2001:db8:1::1/64")
	r.Addr("lo", internet4+"/32")
	r.Addr("lo", internet6+"/128")
	for _, args := range []string{"addr add 192.0.2.2/24 dev up0", "addr add 2001:db8:1::2/64 dev up0 nodad",
		"route add default via 192.0.2.1", "-6 route add default via 2001:db8:1::1"} {
		if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v %s", args, err, out)
		}
	}
	return r
}

func at(host string, port int) string { return net.JoinHostPort(host, fmt.Sprint(port)) }

func TestWayOut(t *testing.T) {
	f := ensure(t, open(t, nil), "default", spec())
	out := outside(t)
	out.Greet(t, internet4, internet6)
	g := guest(t, f, spec(), 2)
	for _, c := range []struct{ proto, to, as string }{
		{"tcp", internet4, "192.0.2.2"}, {"udp", internet4, "192.0.2.2"},
		{"tcp", internet6, "2001:db8:1::2"}, {"udp", internet6, "2001:db8:1::2"},
	} {
		seen, err := g.Ask(c.proto, at(c.to, 7))
		if err != nil || seen.String() != c.as {
			t.Errorf("%s to %s: seen as %v, %v; want %s", c.proto, c.to, seen, err, c.as)
		}
	}
	// Nobody outside may begin, even with a route.
	g.Greet(t)
	out.Default(netip.MustParseAddr("192.0.2.2"))
	if err := out.Silent(at(g.Port.IPv4.String(), 7)); err != nil {
		t.Errorf("from outside: %v", err)
	}
}

func TestNetworksAreApart(t *testing.T) {
	for _, nat := range []bool{true, false} {
		t.Run(fmt.Sprint("nat=", nat), func(t *testing.T) {
			d := open(t, nil)
			one, two := spec(), spec()
			one.NAT, two.NAT = nat, nat
			two.IPv4, two.IPv6 = netip.MustParsePrefix("10.78.0.0/16"), netip.MustParsePrefix("fd78::/64")
			a := guest(t, ensure(t, d, "one", one), one, 2)
			b := guest(t, ensure(t, d, "two", two), two, 3)
			b.Greet(t)
			for _, to := range []netip.Addr{b.Port.IPv4, b.Port.IPv6} {
				if err := a.Silent(at(to.String(), 7)); err != nil {
					t.Error(err)
				}
			}
			if err := a.Silent(at(two.IPv4.Addr().Next().String(), 1)); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestRoutedNetwork(t *testing.T) {
	s := spec()
	s.NAT = false
	f := ensure(t, open(t, nil), "routed", s)
	out := outside(t)
	out.Default(netip.MustParseAddr("192.0.2.2"))
	g := guest(t, f, s, 2)
	g.Greet(t)
	seen, err := out.Ask("tcp", at(g.Port.IPv4.String(), 7))
	if err != nil || seen.String() != "192.0.2.1" {
		t.Errorf("from outside: seen as %v, %v", seen, err)
	}
}

func TestForwards(t *testing.T) {
	f := ensure(t, open(t, nil), "default", spec())
	out := outside(t)
	a, b := guest(t, f, spec(), 2), guest(t, f, spec(), 3)
	b.Greet(t)
	var host *fabrictest.Space
	to := func(port uint16, proto string) fabric.Forward {
		return fabric.Forward{Protocol: proto, Port: port, To4: b.Port.IPv4, To6: b.Port.IPv6, Target: 7}
	}
	one := to(8081, "tcp")
	one.Listen = netip.MustParseAddr("192.0.2.2")
	all := []fabric.Forward{to(8080, "tcp"), to(8080, "udp"), one}
	if err := f.Forward(t.Context(), all); err != nil {
		t.Fatal(err)
	}
	check := func(t *testing.T) {
		for _, c := range []struct {
			from       *fabrictest.Space
			who, proto string
			to         string
		}{
			{out, "outside", "tcp", "192.0.2.2:8080"}, {out, "outside", "udp", "192.0.2.2:8080"},
			{out, "outside", "tcp", "[2001:db8:1::2]:8080"}, {out, "outside", "udp", "[2001:db8:1::2]:8080"},
			{out, "outside", "tcp", "192.0.2.2:8081"},
			{host, "host", "tcp", "127.0.0.1:8080"}, {host, "host", "udp", "127.0.0.1:8080"},
			{host, "host", "tcp", "192.0.2.2:8080"}, {host, "host", "tcp", "[2001:db8:1::2]:8080"},
			{host, "host", "tcp", "localhost:8080"},
			{a.Space, "guest", "tcp", "192.0.2.2:8080"}, {a.Space, "guest", "tcp", "[2001:db8:1::2]:8080"},
			{a.Space, "guest", "tcp", "10.77.0.1:8080"}, {a.Space, "guest", "udp", "10.77.0.1:8080"},
			{b.Space, "itself", "tcp", "192.0.2.2:8080"}, {b.Space, "itself", "tcp", "[2001:db8:1::2]:8080"},
		} {
			if seen, err := c.from.Ask(c.proto, c.to); err != nil {
				t.Errorf("%s by %s to %s: %v", c.who, c.proto, c.to, err)
			} else {
				t.Logf("%s by %s to %s is seen as %v", c.who, c.proto, c.to, seen)
			}
		}
		if err := host.Silent("127.0.0.1:8081"); err != nil {
			t.Errorf("forward of one address: %v", err)
		}
	}
	check(t)
	t.Run("without a daemon", func(t *testing.T) {
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		check(t)
		f = ensure(t, open(t, nil), "default", spec())
		if err := f.Forward(t.Context(), all); err != nil {
			t.Fatal(err)
		}
		check(t)
	})
}

func TestForwardConflicts(t *testing.T) {
	f := ensure(t, open(t, nil), "default", spec())
	b := guest(t, f, spec(), 3)
	b.Greet(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := uint16(l.Addr().(*net.TCPAddr).Port)
	taken := fabric.Forward{Protocol: "tcp", Port: port, To4: b.Port.IPv4, Target: 7}
	good := fabric.Forward{Protocol: "tcp", Port: 8088, To4: b.Port.IPv4, Target: 7}
	err = f.Forward(t.Context(), []fabric.Forward{taken, good})
	if !errs.Is(err, errs.Conflict) || !strings.Contains(err.Error(), fmt.Sprint(port)) {
		t.Errorf("a taken port: %v", err)
	}
	var host *fabrictest.Space
	if _, err := host.Ask("tcp", "127.0.0.1:8088"); err != nil {
		t.Errorf("the other forward: %v", err)
	}
	if err := f.Forward(t.Context(), []fabric.Forward{good, good}); !errs.Is(err, errs.Conflict) {
		t.Errorf("the same twice: %v", err)
	}
	if err := f.Forward(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if err := host.Silent("127.0.0.1:8088"); err != nil {
		t.Errorf("after its end: %v", err)
	}
	away := good
	away.Listen = netip.MustParseAddr("203.0.113.9")
	if err := f.Forward(t.Context(), []fabric.Forward{away}); !errs.Is(err, errs.Invalid) {
		t.Errorf("an address that is not the host's: %v", err)
	}
}

func TestOneFamily(t *testing.T) {
	for what, drop := range map[string]func(*network.Spec){
		"IPv4": func(s *network.Spec) { s.IPv6 = netip.Prefix{} },
		"IPv6": func(s *network.Spec) { s.IPv4 = netip.Prefix{} },
	} {
		t.Run(what, func(t *testing.T) {
			s := spec()
			drop(&s)
			f := ensure(t, open(t, nil), "half", s)
			out := outside(t)
			out.Greet(t, internet4, internet6)
			g := guest(t, f, s, 2)
			to := internet4
			if !s.IPv4.IsValid() {
				to = internet6
			}
			if _, err := g.Ask("tcp", at(to, 7)); err != nil {
				t.Error(err)
			}
			if len(g.Socket.DNS) != 1 {
				t.Errorf("resolvers: %v", g.Socket.DNS)
			}
		})
	}
}

// TestWhatCannotBe gives networks that no host can have.
func TestWhatCannotBe(t *testing.T) {
	fabrictest.Need(t)
	for what, change := range map[string]func(*network.Spec){
		"no range":        func(s *network.Spec) { s.IPv4, s.IPv6 = netip.Prefix{}, netip.Prefix{} },
		"IPv6 as IPv4":    func(s *network.Spec) { s.IPv4 = s.IPv6 },
		"room for nobody": func(s *network.Spec) { s.IPv4 = netip.MustParsePrefix("10.77.0.0/31") },
		"IPv6 for nobody": func(s *network.Spec) { s.IPv6 = netip.MustParsePrefix("fd77::/127") },
	} {
		s := spec()
		change(&s)
		if _, err := open(t, nil).Ensure(t.Context(), "wrong", s); !errs.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
	// A device that is somebody else's is left alone.
	if out, err := exec.Command("ip", "link", "add", "lt-taken", "type", "bridge").CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("ip", "link", "del", "lt-taken").Run() })
	d := open(t, nil)
	if _, err := d.Ensure(t.Context(), "taken", spec()); !errs.Is(err, errs.Conflict) {
		t.Errorf("a foreign bridge: %v", err)
	}
	if err := d.Remove(t.Context(), "taken"); err != nil || !fabrictest.Devices(t)["lt-taken"] {
		t.Errorf("remove took somebody else's bridge: %v", err)
	}
}
