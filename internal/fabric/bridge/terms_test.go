package bridge

import (
	"bytes"
	"net"
	"net/netip"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"

	"lodge/internal/model/network"
)

var (
	askerMAC = net.HardwareAddr{2, 0, 0, 0, 0, 2}
	asker    = plug{mac: askerMAC, v4: netip.MustParseAddr("10.77.0.2"), v6: netip.MustParseAddr("fd77::2")}
)

func testTerms() terms {
	s := network.Spec{Domain: "lodge.internal", IPv4: netip.MustParsePrefix("10.77.0.0/16"), IPv6: netip.MustParsePrefix("fd77::/64")}
	return newTerms("default", s, 1400, net.HardwareAddr{2, 1, 1, 1, 1, 1}, nil)
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestAnswers4(t *testing.T) {
	own, other, server := net.IP{10, 77, 0, 2}, net.IP{10, 77, 0, 9}, net.IP{10, 77, 0, 1}
	request := dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest)
	wants := func(ip net.IP) dhcpv4.Modifier { return dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(ip)) }
	of := func(ip net.IP) dhcpv4.Modifier { return dhcpv4.WithOption(dhcpv4.OptServerIdentifier(ip)) }
	const none = dhcpv4.MessageTypeNone
	all := netip.MustParseAddr("255.255.255.255")
	for _, c := range []struct {
		what string
		mods []dhcpv4.Modifier
		kind dhcpv4.MessageType
		to   netip.Addr
	}{
		{"discover", nil, dhcpv4.MessageTypeOffer, asker.v4},
		{"discover, cannot be reached", []dhcpv4.Modifier{dhcpv4.WithBroadcast(true)}, dhcpv4.MessageTypeOffer, all},
		{"takes the offer", []dhcpv4.Modifier{request, wants(own), of(server)}, dhcpv4.MessageTypeAck, asker.v4},
		{"takes another's offer", []dhcpv4.Modifier{request, wants(own), of(other)}, none, asker.v4},
		{"comes back with its address", []dhcpv4.Modifier{request, wants(own)}, dhcpv4.MessageTypeAck, asker.v4},
		{"comes back with another's", []dhcpv4.Modifier{request, wants(other)}, dhcpv4.MessageTypeNak, all},
		{"renews", []dhcpv4.Modifier{request, dhcpv4.WithClientIP(own)}, dhcpv4.MessageTypeAck, asker.v4},
		{"renews another's", []dhcpv4.Modifier{request, dhcpv4.WithClientIP(other)}, dhcpv4.MessageTypeNak, all},
		{"asks for nothing", []dhcpv4.Modifier{request}, dhcpv4.MessageTypeNak, all},
		{"has its address", []dhcpv4.Modifier{dhcpv4.WithMessageType(dhcpv4.MessageTypeInform), dhcpv4.WithClientIP(own)}, dhcpv4.MessageTypeAck, asker.v4},
		{"gives it back", []dhcpv4.Modifier{dhcpv4.WithMessageType(dhcpv4.MessageTypeRelease)}, none, asker.v4},
		{"comes through a relay", []dhcpv4.Modifier{dhcpv4.WithGatewayIP(other)}, none, asker.v4},
	} {
		req := must(dhcpv4.NewDiscovery(askerMAC, c.mods...))
		re := testTerms().answer4(req, asker)
		if re == nil {
			if c.kind != none {
				t.Errorf("%s: no answer", c.what)
			}
			continue
		}
		back := must(dhcpv4.FromBytes(re.ToBytes()))
		lease := back.MessageType() == dhcpv4.MessageTypeOffer || back.MessageType() == dhcpv4.MessageTypeAck && req.MessageType() == dhcpv4.MessageTypeRequest
		if back.MessageType() != c.kind || to4(re, asker) != c.to || back.YourIPAddr.Equal(own) != lease || back.TransactionID != req.TransactionID {
			t.Errorf("%s: to %v %s", c.what, to4(re, asker), back.Summary())
		}
	}
	if re := testTerms().answer4(must(dhcpv4.NewDiscovery(askerMAC)), plug{mac: askerMAC}); re != nil {
		t.Errorf("a port without an address was offered %s", re.Summary())
	}
}

func TestAnswers6(t *testing.T) {
	server := &dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: net.HardwareAddr{2, 1, 1, 1, 1, 1}}
	stranger := &dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: net.HardwareAddr{2, 9, 9, 9, 9, 9}}
	old := dhcpv6.OptIAAddress{IPv6Addr: net.ParseIP("fd77::9")}
	own := dhcpv6.OptIAAddress{IPv6Addr: net.ParseIP("fd77::2")}
	const none = dhcpv6.MessageType(0)
	for _, c := range []struct {
		what       string
		kind       dhcpv6.MessageType
		mods       []dhcpv6.Modifier
		answer     dhcpv6.MessageType
		gets, ends bool
	}{
		{"solicit", dhcpv6.MessageTypeSolicit, nil, dhcpv6.MessageTypeAdvertise, true, false},
		{"in one go", dhcpv6.MessageTypeSolicit, []dhcpv6.Modifier{dhcpv6.WithRapidCommit}, dhcpv6.MessageTypeReply, true, false},
		{"request", dhcpv6.MessageTypeRequest, []dhcpv6.Modifier{dhcpv6.WithServerID(server)}, dhcpv6.MessageTypeReply, true, false},
		{"request of another", dhcpv6.MessageTypeRequest, []dhcpv6.Modifier{dhcpv6.WithServerID(stranger)}, none, false, false},
		{"request of nobody", dhcpv6.MessageTypeRequest, nil, none, false, false},
		{"renew what was", dhcpv6.MessageTypeRenew, []dhcpv6.Modifier{dhcpv6.WithServerID(server), dhcpv6.WithIANA(old)}, dhcpv6.MessageTypeReply, true, true},
		{"rebind", dhcpv6.MessageTypeRebind, []dhcpv6.Modifier{dhcpv6.WithIANA(own)}, dhcpv6.MessageTypeReply, true, false},
		{"information", dhcpv6.MessageTypeInformationRequest, nil, dhcpv6.MessageTypeReply, false, false},
	} {
		req := must(dhcpv6.NewSolicit(askerMAC, c.mods...))
		req.MessageType = c.kind
		if c.kind == dhcpv6.MessageTypeInformationRequest {
			req.Options.Del(dhcpv6.OptionIANA)
		}
		re := testTerms().answer6(req, asker)
		if re == nil {
			if c.answer != none {
				t.Errorf("%s: no answer", c.what)
			}
			continue
		}
		back := must(dhcpv6.MessageFromBytes(re.ToBytes()))
		gets, ends := false, false
		for _, ia := range back.Options.IANA() {
			for _, a := range ia.Options.Addresses() {
				gets = gets || a.IPv6Addr.Equal(own.IPv6Addr) && a.ValidLifetime == leaseTime
				ends = ends || a.IPv6Addr.Equal(old.IPv6Addr) && a.ValidLifetime == 0
			}
		}
		if back.MessageType != c.answer || gets != c.gets || ends != c.ends || len(back.Options.DNS()) != 1 {
			t.Errorf("%s: %s", c.what, back.Summary())
		}
	}
	for addr, want := range map[string]iana.StatusCode{"fd77::2": iana.StatusSuccess, "fd77::9": iana.StatusNotOnLink} {
		req := must(dhcpv6.NewSolicit(askerMAC, dhcpv6.WithIANA(dhcpv6.OptIAAddress{IPv6Addr: net.ParseIP(addr)})))
		req.MessageType = dhcpv6.MessageTypeConfirm
		if s := testTerms().answer6(req, asker).Options.Status(); s == nil || s.StatusCode != want {
			t.Errorf("confirm %s: %v", addr, s)
		}
	}
}

// FuzzAnswers sends what a guest may.
func FuzzAnswers(f *testing.F) {
	f.Add(must(dhcpv4.NewDiscovery(askerMAC)).ToBytes())
	f.Add(must(dhcpv6.NewSolicit(askerMAC, dhcpv6.WithRapidCommit)).ToBytes())
	f.Add([]byte{3, 0, 0, 0, 0, 3, 0, 4})
	l := &lender{terms: testTerms(), who: &tenants{}}
	l.who.add(asker)
	from := linkLocal(askerMAC)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > largestAsk {
			return
		}
		re, to := l.reply4(b)
		if re != nil {
			m, err := dhcpv4.FromBytes(re)
			if err != nil || isSet(m.YourIPAddr) && !m.YourIPAddr.Equal(asker.v4.AsSlice()) || to != asker.v4 && to.As4() != [4]byte{255, 255, 255, 255} {
				t.Errorf("answer to %v: %v, %v", to, m, err)
			}
		}
		if re := l.reply6(b, from); len(re) > 2*largestAsk {
			t.Errorf("answer of %d bytes", len(re))
		}
		if l.reply6(b, netip.MustParseAddr("fe80::1")) != nil {
			t.Error("a stranger was answered")
		}
	})
}

func TestAdvertIsWhole(t *testing.T) {
	b := testTerms().advert()
	for opts := b[16:]; len(opts) > 0; opts = opts[8*int(opts[1]):] {
		if len(opts) < 8 || opts[1] == 0 || 8*int(opts[1]) > len(opts) {
			t.Fatalf("options end badly: % x", opts)
		}
		if opts[0] == optPrefix && opts[3] != onLink {
			t.Error("guests may number themselves")
		}
	}
	if !bytes.Contains(b, []byte("\x05lodge\x08internal\x00")) {
		t.Error("no search domain")
	}
}
