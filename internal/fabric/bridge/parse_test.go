package bridge

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"lodge/internal/model/network"
)

// FuzzReverse reads names that guests ask for.
func FuzzReverse(f *testing.F) {
	for _, s := range []string{"2.0.77.10.in-addr.arpa.", "1.2.3.in-addr.arpa.", "-1.2.3.4.in-addr.arpa.", ".ip6.arpa.",
		strings.Repeat("0.", 32) + "ip6.arpa.", strings.Repeat("g.", 32) + "ip6.arpa."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		a, ok := reverse(name)
		if !ok {
			return
		}
		canonical, err := dns.ReverseAddr(a.String())
		if err != nil {
			t.Fatalf("%q read as %v: %v", name, a, err)
		}
		if b, ok := reverse(canonical); !ok || b.Unmap() != a.Unmap() && !a.Is4In6() {
			t.Errorf("%q read as %v, whose name %q reads as %v", name, a, canonical, b)
		}
	})
}

// FuzzAnswer puts whatever question a guest can make.
func FuzzAnswer(f *testing.F) {
	z := newZone("default", network.Spec{Domain: "lodge.internal", IPv4: netip.MustParsePrefix("10.77.0.0/16")}, nil)
	f.Add("web1.lodge.internal.", uint16(1), uint16(1))
	f.Add("lodge.internal.", uint16(6), uint16(1))
	f.Add("2.0.77.10.in-addr.arpa.", uint16(12), uint16(1))
	f.Add(".", uint16(2), uint16(1))
	f.Add("", uint16(255), uint16(255))
	f.Fuzz(func(t *testing.T, name string, kind, class uint16) {
		req := &dns.Msg{Question: []dns.Question{{Name: name, Qtype: kind, Qclass: class}}}
		if packed, err := req.Pack(); err != nil || req.Unpack(packed) != nil {
			return // cannot come over the wire
		}
		if m := z.answer(req); m != nil {
			if _, err := m.Pack(); err != nil {
				t.Errorf("answer to %q does not fit the wire: %v", name, err)
			}
		}
	})
}

// FuzzPlug reads back what is kept in the kernel.
func FuzzPlug(f *testing.F) {
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	f.Add(plug{master: "lodge-default", mac: mac, v4: netip.MustParseAddr("10.77.0.2")}.comment())
	f.Add(plug{master: "lodgeab12cb1", mac: mac, v6: netip.MustParseAddr("fd77::2")}.comment())
	f.Add("a b c d e")
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := parsePlug(text)
		if err != nil {
			return
		}
		again, err := parsePlug(p.comment())
		if err != nil || again.master != p.master || !again.same(p) {
			t.Errorf("%q read as %+v, then as %+v, %v", text, p, again, err)
		}
	})
}

func TestNamesFitTheKernel(t *testing.T) {
	for _, name := range []string{"default", "a", "a-network-with-a-very-long-name"} {
		n := namesOf("lodge", name)
		for _, dev := range []string{n.root, n.leaf(leaves), n.rootEnd(leaves), n.leafEnd(leaves)} {
			if len(dev) > 15 || !n.isPart(dev) {
				t.Errorf("network %q: device %q", name, dev)
			}
		}
	}
	if a, b := namesOf("lodge", "a-network-with-a-very-long-name"), namesOf("lodge", "a-network-with-a-very-long-name-2"); a.root == b.root {
		t.Errorf("two networks share %s", a.root)
	}
}
