package bridge_test

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"lodge/internal/fabric/fabrictest"
)

// wire is a packet socket on a guest's eth0: what a guest's root could send
// and see.
type wire struct {
	t     *testing.T
	fd    int
	index int
}

func newWire(t *testing.T, g *fabrictest.Guest) *wire {
	t.Helper()
	w := &wire{t: t, index: g.Up("eth0").Attrs().Index}
	err := g.Do(func() (err error) {
		all := int(binary.NativeEndian.Uint16(be16(unix.ETH_P_ALL)))
		if w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all); err != nil {
			return err
		}
		return unix.Bind(w.fd, &unix.SockaddrLinklayer{Protocol: uint16(all), Ifindex: w.index})
	})
	if err != nil {
		t.Fatalf("packet socket: %v", err)
	}
	t.Cleanup(func() { unix.Close(w.fd) })
	if err := unix.SetsockoptTimeval(w.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *wire) send(frame []byte) {
	w.t.Helper()
	if err := unix.Sendto(w.fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: w.index}); err != nil {
		w.t.Fatalf("send: %v", err)
	}
}

// until reads frames up to the one that contains last, and reports whether one
// with one of marks was among them.
func (w *wire) until(last []byte, marks ...[]byte) bool {
	w.t.Helper()
	buf, seen := make([]byte, 2048), false
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		n, from, err := unix.Recvfrom(w.fd, buf, 0)
		if err != nil {
			w.t.Fatalf("receive: %v", err)
		}
		if from.(*unix.SockaddrLinklayer).Pkttype == unix.PACKET_OUTGOING {
			continue // its own answers quote what they answer
		}
		if bytes.Contains(buf[:n], last) {
			return seen
		}
		for _, m := range marks {
			seen = seen || bytes.Contains(buf[:n], m)
		}
	}
	w.t.Fatal("the last frame never came")
	return false
}

func be16(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }

func cat(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

func ether(dst, src net.HardwareAddr, kind uint16, body ...[]byte) []byte {
	return cat(dst, src, be16(kind), cat(body...))
}

func ip4(proto byte, src, dst netip.Addr, body []byte) []byte {
	h := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, proto, 0, 0}
	binary.BigEndian.PutUint16(h[2:], uint16(20+len(body)))
	h = cat(h, src.AsSlice(), dst.AsSlice())
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(h[i:]))
	}
	binary.BigEndian.PutUint16(h[10:], ^uint16(sum+sum>>16))
	return cat(h, body)
}

func ip6(next byte, src, dst netip.Addr, body []byte) []byte {
	return cat([]byte{0x60, 0, 0, 0}, be16(uint16(len(body))), []byte{next, 255}, src.AsSlice(), dst.AsSlice(), body)
}

func udp(src, dst uint16, body []byte) []byte {
	return cat(be16(src), be16(dst), be16(uint16(8+len(body))), []byte{0, 0}, body)
}

func arp(op uint16, sha net.HardwareAddr, spa netip.Addr, tha net.HardwareAddr, tpa netip.Addr, mark []byte) []byte {
	return cat([]byte{0, 1, 8, 0, 6, 4}, be16(op), sha, spa.AsSlice(), tha, tpa.AsSlice(), mark)
}

// TestSpoofing sends what a guest's root might, each frame followed by an
// honest one that must arrive: what is true passes, what is forged does not.
func TestSpoofing(t *testing.T) {
	f := ensure(t, open(t, nil), "default", spec())
	a, b := guest(t, f, spec(), 2), guest(t, f, spec(), 3)
	wa, wb := newWire(t, a), newWire(t, b)
	mac := func(g *fabrictest.Guest) net.HardwareAddr {
		m, err := net.ParseMAC(g.Port.MAC)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	am, bm := mac(a), mac(b)
	forged := net.HardwareAddr{2, 0xba, 0xd, 0xba, 0xd, 1}
	all := net.HardwareAddr{255, 255, 255, 255, 255, 255}
	a4, b4, a6, b6 := a.Port.IPv4, b.Port.IPv4, a.Port.IPv6, b.Port.IPv6
	any4, any6 := netip.AddrFrom4([4]byte{}), netip.IPv6Unspecified()
	third4, third6 := netip.MustParseAddr("10.77.0.1"), netip.MustParseAddr("fd77::1")
	own := netip.MustParseAddr("fe80::ff:fe00:2") // of 02:00:00:00:00:02
	nodes := netip.MustParseAddr("ff02::1")
	group := net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}
	mark, last := []byte("mark-of-the-frame"), []byte("the-honest-one-after")

	icmp := func(kind byte, body ...[]byte) []byte { return cat([]byte{kind, 0, 0, 0}, cat(body...)) }
	// br_netfilter cuts off what follows an IPv6 packet, so neighbour
	// discovery is marked in a field that nobody reads.
	flags := []byte{0, 0xc0, 0xde, 0x77}
	lla := func(kind byte, m net.HardwareAddr) []byte { return cat([]byte{kind, 1}, m) }
	nd := func(src, dst netip.Addr, to net.HardwareAddr, body []byte) []byte {
		return ether(to, am, 0x86dd, ip6(58, src, dst, body))
	}
	for _, c := range []struct {
		what  string
		pass  bool
		frame []byte
	}{
		{"honest IPv4", true, ether(bm, am, 0x800, ip4(17, a4, b4, udp(9, 9, mark)))},
		{"forged MAC", false, ether(bm, forged, 0x800, ip4(17, a4, b4, udp(9, 9, mark)))},
		{"neighbour's MAC", false, ether(bm, bm, 0x800, ip4(17, a4, b4, udp(9, 9, mark)))},
		{"gateway's IPv4", false, ether(bm, am, 0x800, ip4(17, third4, b4, udp(9, 9, mark)))},
		{"foreign IPv4", false, ether(bm, am, 0x800, ip4(17, netip.MustParseAddr("192.0.2.9"), b4, udp(9, 9, mark)))},
		{"to the host's loopback", false, ether(bm, am, 0x800, ip4(17, a4, netip.MustParseAddr("127.0.0.1"), udp(9, 9, mark)))},
		{"DHCP discovery, which is for the host alone", false, ether(all, am, 0x800, ip4(17, any4, netip.MustParseAddr("255.255.255.255"), udp(68, 67, mark)))},
		{"no IPv4 yet, but not DHCP", false, ether(all, am, 0x800, ip4(17, any4, b4, udp(9, 9, mark)))},
		{"DHCP offer", false, ether(bm, am, 0x800, ip4(17, a4, b4, udp(67, 68, mark)))},
		{"honest ARP request", true, ether(all, am, 0x806, arp(1, am, a4, all, b4, mark))},
		{"honest ARP reply", true, ether(bm, am, 0x806, arp(2, am, a4, bm, b4, mark))},
		{"ARP probe", true, ether(all, am, 0x806, arp(1, am, any4, all, b4, mark))},
		{"ARP for the gateway", false, ether(bm, am, 0x806, arp(2, am, third4, bm, b4, mark))},
		{"ARP with a forged MAC", false, ether(bm, am, 0x806, arp(2, forged, a4, bm, b4, mark))},
		{"ARP that asks for another", false, ether(all, am, 0x806, arp(1, am, a4, all, third4, mark))},
		{"honest IPv6", true, ether(bm, am, 0x86dd, ip6(17, a6, b6, udp(9, 9, mark)))},
		{"IPv6 from the link's own address", true, ether(bm, am, 0x86dd, ip6(17, own, b6, udp(9, 9, mark)))},
		{"gateway's IPv6", false, ether(bm, am, 0x86dd, ip6(17, third6, b6, udp(9, 9, mark)))},
		{"another link-local", false, ether(bm, am, 0x86dd, ip6(17, netip.MustParseAddr("fe80::1"), b6, udp(9, 9, mark)))},
		{"router advertisement", false, nd(own, nodes, group, icmp(134, flags, make([]byte, 8)))},
		{"redirect", false, nd(own, b6, bm, icmp(137, flags, b6.AsSlice(), b6.AsSlice()))},
		{"DHCPv6 reply", false, ether(bm, am, 0x86dd, ip6(17, own, b6, udp(547, 546, mark)))},
		{"honest advertisement", true, nd(a6, b6, bm, icmp(136, flags, a6.AsSlice(), lla(2, am)))},
		{"advertisement of the gateway", false, nd(a6, b6, bm, icmp(136, flags, third6.AsSlice(), lla(2, am)))},
		{"advertisement with a forged MAC", false, nd(a6, b6, bm, icmp(136, flags, a6.AsSlice(), lla(2, forged)))},
		{"advertisement with two options", false, nd(a6, b6, bm, icmp(136, flags, a6.AsSlice(), lla(2, am), lla(2, forged)))},
		{"honest solicitation", true, nd(a6, nodes, group, icmp(135, flags, b6.AsSlice(), lla(1, am)))},
		{"solicitation with a forged MAC", false, nd(a6, nodes, group, icmp(135, flags, b6.AsSlice(), lla(1, forged)))},
		{"solicitation for another", false, nd(a6, nodes, group, icmp(135, flags, third6.AsSlice(), lla(1, am)))},
		{"solicitation from another", false, nd(third6, nodes, group, icmp(135, flags, b6.AsSlice(), lla(1, am)))},
		{"from nowhere, no probe", false, nd(any6, b6, bm, icmp(128, flags))},
		{"neither IP nor ARP", false, ether(bm, am, 0x88b5, mark)},
	} {
		wa.send(c.frame)
		wa.send(ether(bm, am, 0x800, ip4(17, a4, b4, udp(9, 9, last))))
		if got := wb.until(last, mark, flags); got != c.pass {
			t.Errorf("%s: passed %v, want %v", c.what, got, c.pass)
		}
	}
	// The port of a bridge that has nothing to do with networks is free.
	other := netlink.NewLinkAttrs()
	other.Name = "plainbr"
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: other}); err != nil {
		t.Fatal(err)
	}
	br, err := netlink.LinkByName("plainbr")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netlink.LinkDel(br) })
	if err := netlink.LinkSetUp(br); err != nil {
		t.Fatal(err)
	}
	x, y := fabrictest.NewSpace(t), fabrictest.NewSpace(t)
	x.Join("plain1", "plainbr", "eth0", "", 1500)
	y.Join("plain2", "plainbr", "eth0", "", 1500)
	x.Addr("eth0", "192.0.2.1/24")
	y.Addr("eth0", "192.0.2.2/24")
	y.Greet(t)
	// br_netfilter shows the host's forward chains bridged packets too.
	if _, err := x.Ask("tcp", "192.0.2.2:7"); err != nil {
		t.Errorf("another bridge: %v", err)
	}
}
