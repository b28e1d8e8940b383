package bridge_test

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"lodge/internal/fabric"
	"lodge/internal/fabric/fabrictest"
	"lodge/test/sandbox"
)

// patience bounds what must happen; a passing test never waits for it.
const patience = time.Minute

// client runs a DHCP client in a guest, with a script that keeps what it is
// told, and returns that.
func client(t *testing.T, g *fabrictest.Guest, name string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if path, err = exec.LookPath("/usr/sbin/" + name); err != nil {
			sandbox.Missing(t, fmt.Sprintf("needs %s to ask as a guest does: scripts/deps.sh test installs it", name))
		}
	}
	dir := t.TempDir()
	script, told := filepath.Join(dir, "script"), filepath.Join(dir, "told")
	body := "#!/bin/sh\nall=$(echo ACTION=$1; env)\necho \"$all\" >>" + told + "\n" // in one write
	if err := os.WriteFile(script, []byte(body), 0o755); err != nil {
		t.Fatal(err)
	}
	args = slices.Clone(args)
	for i := range args {
		args[i] = strings.NewReplacer("SCRIPT", script, "DIR", dir).Replace(args[i])
	}
	cmd := exec.Command(path, args...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := g.Do(cmd.Start); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	wait(t, name+"'s end", func() bool {
		if b, err := os.ReadFile(told); err == nil && strings.Contains(strings.ToLower(string(b)), "bound") {
			return true
		}
		return len(ended) > 0
	})
	_ = cmd.Process.Kill() // it may stay, to renew
	err = <-ended
	t.Logf("%s %v: %v\n%s", name, args, err, &said)
	b, err := os.ReadFile(told)
	if err != nil {
		t.Fatal(err)
	}
	return "\n" + string(b)
}

func holds(t *testing.T, told string, lines ...string) {
	t.Helper()
	for _, l := range lines {
		if !strings.Contains(told, "\n"+l+"\n") {
			t.Errorf("was not told %q; was told:%s", l, told)
		}
	}
}

// blank is a guest that asks for its addresses.
func blank(t testing.TB, f fabric.Fabric, n int) *fabrictest.Guest {
	t.Helper()
	return fabrictest.NewBlank(t, f, fabrictest.Port(spec(), "gt", n))
}

func names(n int) book {
	p := fabrictest.Port(spec(), "gt", n)
	return book{"web1": {p.IPv4, p.IPv6}}
}

var ask4 = []string{"udhcpc", "-i", "eth0", "-f", "-q", "-n", "-t", "10", "-s", "SCRIPT", "-O", "mtu", "-O", "search"}

func TestAddressesByDHCP(t *testing.T) {
	f := ensure(t, open(t, names(2)), "default", spec())
	g, other := blank(t, f, 2), newWire(t, guest(t, f, spec(), 3))
	told := client(t, g, "busybox", append(ask4, "-O", "hostname", "-r", "10.77.9.9")...)
	holds(t, told, "ACTION=bound", "ip="+g.Port.IPv4.String(), "subnet=255.255.0.0", "router=10.77.0.1", "dns=10.77.0.1",
		"domain=lodge.internal", "mtu=1500", "lease=86400", "serverid=10.77.0.1", "hostname=web1")
	if other.heard(func(b []byte) bool { return strings.Contains(string(b), "\x63\x82\x53\x63") }) {
		t.Error("a guest hears what another asks")
	}
	g.Addr("eth0", g.Port.IPv4.String()+"/16")
	g.Greet(t)
	var host *fabrictest.Space
	if _, err := host.Ask("tcp", at(g.Port.IPv4.String(), 7)); err != nil {
		t.Error(err)
	}
}

// heard reports whether a frame that is came until now.
func (w *wire) heard(is func([]byte) bool) bool {
	w.t.Helper()
	b := make([]byte, 4096)
	for {
		n, _, err := unix.Recvfrom(w.fd, b, unix.MSG_DONTWAIT)
		if err != nil {
			return false
		}
		if is(b[:n]) {
			return true
		}
	}
}

func TestAddressesByAnotherClient(t *testing.T) {
	f := ensure(t, open(t, names(2)), "default", spec())
	g := blank(t, f, 2)
	files := []string{"-1", "-v", "-sf", "SCRIPT", "-lf", "DIR/leases", "-pf", "DIR/pid", "-d", "eth0"}
	t.Run("IPv4", func(t *testing.T) {
		told := client(t, g, "dhclient", append([]string{"-4"}, files...)...)
		holds(t, told, "reason=BOUND", "new_ip_address="+g.Port.IPv4.String(), "new_routers=10.77.0.1",
			"new_domain_name_servers=10.77.0.1", "new_domain_name=lodge.internal", "new_interface_mtu=1500")
	})
	t.Run("IPv6", func(t *testing.T) {
		settled(t, g)
		told := client(t, g, "dhclient", append([]string{"-6"}, files...)...)
		holds(t, told, "reason=BOUND6", "new_ip6_address="+g.Port.IPv6.String(), "new_dhcp6_name_servers=fd77::1",
			"new_dhcp6_domain_search=lodge.internal.")
	})
}

// settled waits until the guest's link-local address may be used.
func settled(t *testing.T, g *fabrictest.Guest) {
	t.Helper()
	wait(t, "a link-local address", func() bool {
		list, err := g.H.AddrList(g.Up("eth0"), netlink.FAMILY_V6)
		return err == nil && len(list) > 0 && list[0].Flags&unix.IFA_F_TENTATIVE == 0
	})
}

func wait(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s never came", what)
		}
	}
}

func TestRouterAdvertisement(t *testing.T) {
	f := ensure(t, open(t, nil), "default", spec())
	g := blank(t, f, 2)
	for _, kv := range [][2]string{{"accept_ra", "2"}, {"disable_ipv6", "1"}, {"disable_ipv6", "0"}} {
		err := g.Do(func() error {
			return os.WriteFile("/proc/sys/net/ipv6/conf/eth0/"+kv[0], []byte(kv[1]), 0o644)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	wait(t, "a way out", func() bool {
		list, err := g.H.RouteList(g.Up("eth0"), netlink.FAMILY_V6)
		if err != nil {
			return false
		}
		for _, r := range list {
			if r.Gw.IsLinkLocalUnicast() && (r.Dst == nil || r.Dst.IP.IsUnspecified()) {
				return true
			}
		}
		return false
	})
	list, err := g.H.AddrList(g.Up("eth0"), netlink.FAMILY_V6)
	if err != nil || len(list) != 1 || !list[0].IP.IsLinkLocalUnicast() {
		t.Errorf("made itself addresses that are not its own: %v, %v", list, err)
	}
	// With the address that DHCPv6 gives, the way that was advertised is one.
	g.Addr("eth0", g.Port.IPv6.String()+"/128")
	var host *fabrictest.Space
	g.Greet(t)
	if _, err := host.Ask("tcp", at(g.Port.IPv6.String(), 7)); err != nil {
		t.Error(err)
	}
}

// TestAddressesBeyondOneBridge asks from a port on a leaf, of a daemon that
// found it plugged.
func TestAddressesBeyondOneBridge(t *testing.T) {
	d := open(t, nil)
	f := ensure(t, d, "default", spec())
	n := 2
	for ; n < 2+900; n++ {
		if _, err := f.Plug(t.Context(), fabrictest.Port(spec(), "mp", n)); err != nil {
			t.Fatal(err)
		}
	}
	g := blank(t, f, n)
	if g.Socket.Master == f.Device() {
		t.Fatalf("port %d is on %s", n, g.Socket.Master)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	ensure(t, open(t, nil), "default", spec())
	holds(t, client(t, g, "busybox", ask4...), "ACTION=bound", "ip="+g.Port.IPv4.String())
}

// TestAsksForAnother: who calls itself by a neighbour's MAC is not heard, who
// has an address that is not its own is told so.
func TestAsksForAnother(t *testing.T) {
	f := ensure(t, open(t, nil), "default", spec())
	a, b := blank(t, f, 2), blank(t, f, 3)
	w := newWire(t, a)
	mac, _ := net.ParseMAC(a.Port.MAC)
	discover := func(chaddr string, mods ...dhcpv4.Modifier) []byte {
		m, err := net.ParseMAC(chaddr)
		if err != nil {
			t.Fatal(err)
		}
		d, err := dhcpv4.NewDiscovery(m, mods...)
		if err != nil {
			t.Fatal(err)
		}
		all := net.HardwareAddr{255, 255, 255, 255, 255, 255}
		return ether(all, mac, 0x800, ip4(17, netip.AddrFrom4([4]byte{}), netip.AddrFrom4([4]byte{255, 255, 255, 255}), udp(68, 67, d.ToBytes())))
	}
	xid := func(x string) dhcpv4.Modifier { return dhcpv4.WithTransactionID(dhcpv4.TransactionID([]byte(x))) }
	w.send(discover(b.Port.MAC, xid("evil")))
	w.send(discover("02:00:00:00:00:99", xid("none")))
	w.send(discover(a.Port.MAC, xid("own!")))
	if w.until([]byte("own!"), []byte("evil"), []byte("none")) {
		t.Error("a guest was answered in another's name")
	}
	w.send(discover(a.Port.MAC, xid("nak!"), dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest),
		dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(b.Port.IPv4.AsSlice()))))
	var got *dhcpv4.DHCPv4
	wait(t, "an answer", func() bool {
		return w.heard(func(f []byte) (is bool) {
			if len(f) < 42 || f[0] == 255 && f[35] != 67 || !strings.Contains(string(f), "nak!") || f[35] != 67 {
				return false
			}
			var err error
			got, err = dhcpv4.FromBytes(f[42:])
			return err == nil
		})
	})
	if got.MessageType() != dhcpv4.MessageTypeNak {
		t.Errorf("answered %v", got.Summary())
	}
	// A flood is cut off before it reaches the daemon, for its sender alone.
	for range 500 {
		w.send(discover(a.Port.MAC, xid("many")))
	}
	holds(t, client(t, b, "busybox", ask4...), "ACTION=bound", "ip="+b.Port.IPv4.String())
	answers := 0
	for w.heard(func(f []byte) bool { return len(f) > 42 && f[35] == 67 }) {
		answers++
	}
	if answers == 0 || answers > 450 {
		t.Errorf("%d of 500 questions were answered", answers)
	}
}
