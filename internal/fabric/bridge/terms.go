package bridge

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
	"github.com/insomniacslk/dhcp/rfc1035label"
	"github.com/miekg/dns"

	"lodge/internal/fabric"
	"lodge/internal/model/network"
)

const (
	// leaseTime is long because an address is its guest's until the guest is
	// removed; it ends at all so that a guest that became another one, as a
	// copy does, hears of it.
	leaseTime = 24 * time.Hour
	// routerLife is the longest a router may promise to be one (RFC 8319).
	routerLife = 65535 * time.Second
	// forever is a lifetime that never ends (RFC 4861, section 4.6.2).
	forever = 1<<32 - 1
)

// terms are what a network tells the guests that ask: pure answers to
// questions that are decoded already.
type terms struct {
	network string
	domain  string
	v4, v6  netip.Prefix
	mtu     int
	mac     string // of the bridge: what names this server and router
	names   fabric.Names
}

func newTerms(name string, spec network.Spec, mtu int, mac net.HardwareAddr, names fabric.Names) terms {
	return terms{network: name, domain: spec.Domain, v4: spec.IPv4, v6: spec.IPv6, mtu: mtu, mac: string(mac), names: names}
}

// answer4 answers what the guest at port p asks, or returns nil for what gets
// no answer.
func (t terms) answer4(req *dhcpv4.DHCPv4, p plug) *dhcpv4.DHCPv4 {
	if !t.v4.IsValid() || !p.v4.IsValid() || req.OpCode != dhcpv4.OpcodeBootRequest || isSet(req.GatewayIPAddr) {
		return nil
	}
	self := network.Gateway(t.v4).AsSlice()
	if chosen := req.ServerIdentifier(); isSet(chosen) && !chosen.Equal(self) {
		return nil // the guest took another's offer
	}
	kind, lease := dhcpv4.MessageTypeAck, true
	switch req.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		kind = dhcpv4.MessageTypeOffer
	case dhcpv4.MessageTypeRequest:
		asked := req.RequestedIPAddress()
		if !isSet(asked) {
			asked = req.ClientIPAddr
		}
		if !asked.Equal(p.v4.AsSlice()) {
			kind, lease = dhcpv4.MessageTypeNak, false
		}
	case dhcpv4.MessageTypeInform:
		lease = false
	default:
		return nil
	}
	re, err := dhcpv4.NewReplyFromRequest(req, dhcpv4.WithMessageType(kind),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(self)), dhcpv4.WithOptionCopied(req, dhcpv4.OptionClientIdentifier))
	if err != nil || kind == dhcpv4.MessageTypeNak {
		return re
	}
	if lease {
		re.YourIPAddr = p.v4.AsSlice()
		re.UpdateOption(dhcpv4.OptIPAddressLeaseTime(leaseTime))
	}
	t.settings4(re, p, self)
	return re
}

func (t terms) settings4(re *dhcpv4.DHCPv4, p plug, self net.IP) {
	re.UpdateOption(dhcpv4.OptSubnetMask(net.CIDRMask(t.v4.Bits(), 32)))
	re.UpdateOption(dhcpv4.OptRouter(self))
	re.UpdateOption(dhcpv4.OptDNS(self))
	re.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionInterfaceMTU, binary.BigEndian.AppendUint16(nil, uint16(t.mtu))))
	if t.domain != "" {
		re.UpdateOption(dhcpv4.OptDomainName(t.domain))
		re.UpdateOption(dhcpv4.OptDomainSearch(&rfc1035label.Labels{Labels: []string{t.domain}}))
	}
	if t.names == nil {
		return
	}
	if name := t.names.Reverse(t.network, p.v4); name != "" {
		re.UpdateOption(dhcpv4.OptHostName(name))
	}
}

// to4 is where an answer goes. A guest that has no address yet can be reached
// at the one it is being given: the host knows its MAC.
func to4(re *dhcpv4.DHCPv4, p plug) netip.Addr {
	if re.MessageType() == dhcpv4.MessageTypeNak || re.IsBroadcast() {
		return netip.AddrFrom4([4]byte{255, 255, 255, 255})
	}
	return p.v4
}

func isSet(ip net.IP) bool { return len(ip) > 0 && !ip.IsUnspecified() }

func (t terms) duid() dhcpv6.DUID {
	return &dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: net.HardwareAddr(t.mac)}
}

// answer6 answers what the guest at port p asks, or returns nil for what gets
// no answer (RFC 8415, section 18.3).
func (t terms) answer6(req *dhcpv6.Message, p plug) *dhcpv6.Message {
	if !t.v6.IsValid() {
		return nil
	}
	chosen := req.Options.ServerID()
	if chosen != nil && !bytes.Equal(chosen.ToBytes(), t.duid().ToBytes()) {
		return nil
	}
	re := &dhcpv6.Message{MessageType: dhcpv6.MessageTypeReply, TransactionID: req.TransactionID}
	re.AddOption(dhcpv6.OptServerID(t.duid()))
	if id := req.GetOneOption(dhcpv6.OptionClientID); id != nil {
		re.AddOption(id)
	} else if req.MessageType != dhcpv6.MessageTypeInformationRequest {
		return nil
	}
	switch req.MessageType {
	case dhcpv6.MessageTypeSolicit:
		if req.GetOneOption(dhcpv6.OptionRapidCommit) == nil {
			re.MessageType = dhcpv6.MessageTypeAdvertise
		} else {
			re.AddOption(&dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionRapidCommit})
		}
		leases6(re, req, p)
	case dhcpv6.MessageTypeRequest, dhcpv6.MessageTypeRenew:
		if chosen == nil {
			return nil
		}
		leases6(re, req, p)
	case dhcpv6.MessageTypeRebind:
		leases6(re, req, p)
	case dhcpv6.MessageTypeConfirm:
		re.AddOption(confirm6(req, p))
	case dhcpv6.MessageTypeRelease, dhcpv6.MessageTypeDecline:
		re.AddOption(&dhcpv6.OptStatusCode{StatusCode: iana.StatusSuccess})
	case dhcpv6.MessageTypeInformationRequest:
	default:
		return nil
	}
	re.AddOption(dhcpv6.OptDNS(network.Gateway(t.v6).AsSlice()))
	if t.domain != "" {
		re.AddOption(dhcpv6.OptDomainSearchList(&rfc1035label.Labels{Labels: []string{t.domain}}))
	}
	return re
}

// mostIAs is how many bindings of one question are looked at; a client has one.
const mostIAs = 8

// leases6 gives the port's address to the first binding the guest asks for,
// and ends every other address that it thinks it has.
func leases6(re, req *dhcpv6.Message, p plug) {
	for i, ia := range req.Options.IANA() {
		if i == mostIAs {
			return
		}
		out := &dhcpv6.OptIANA{IaId: ia.IaId, T1: leaseTime / 2, T2: leaseTime * 4 / 5}
		own := i == 0 && p.v6.IsValid()
		if own {
			out.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: p.v6.AsSlice(), PreferredLifetime: leaseTime, ValidLifetime: leaseTime})
		} else {
			out.Options.Add(&dhcpv6.OptStatusCode{StatusCode: iana.StatusNoAddrsAvail})
		}
		for j, a := range ia.Options.Addresses() {
			if j == mostIAs {
				break
			}
			if !own || !a.IPv6Addr.Equal(p.v6.AsSlice()) {
				out.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: a.IPv6Addr})
			}
		}
		re.AddOption(out)
	}
}

func confirm6(req *dhcpv6.Message, p plug) dhcpv6.Option {
	for _, ia := range req.Options.IANA() {
		for _, a := range ia.Options.Addresses() {
			if !p.v6.IsValid() || !a.IPv6Addr.Equal(p.v6.AsSlice()) {
				return &dhcpv6.OptStatusCode{StatusCode: iana.StatusNotOnLink}
			}
		}
	}
	return &dhcpv6.OptStatusCode{StatusCode: iana.StatusSuccess}
}

// Numbers of router advertisements: flags (RFC 4861) and options (RFC 4861,
// 8106).
const (
	raManaged, raOther                              = 0x80, 0x40 // addresses and the rest come by DHCPv6
	onLink                                          = 0x80
	optSource, optPrefix, optMTU, optDNS, optSearch = 1, 3, 5, 25, 31
)

// advert is the router advertisement of the network, its checksum left to the
// kernel. Guests make no addresses of their own from the prefix: each has the
// one that is its own, by DHCPv6.
func (t terms) advert() []byte {
	life := uint32(routerLife / time.Second)
	b := []byte{typeRA, 0, 0, 0, 64, raManaged | raOther}
	b = binary.BigEndian.AppendUint16(b, uint16(life))
	b = append(b, make([]byte, 8)...)
	b = append(append(b, optSource, 1), t.mac...)
	b = binary.BigEndian.AppendUint32(append(b, optMTU, 1, 0, 0), uint32(t.mtu))
	b = append(b, optPrefix, 4, byte(t.v6.Bits()), onLink)
	b = binary.BigEndian.AppendUint32(b, forever)
	b = binary.BigEndian.AppendUint32(b, forever)
	b = append(append(b, 0, 0, 0, 0), t.v6.Masked().Addr().AsSlice()...)
	b = binary.BigEndian.AppendUint32(append(b, optDNS, 3, 0, 0), life)
	b = append(b, network.Gateway(t.v6).AsSlice()...)
	name := make([]byte, 256)
	n, err := dns.PackDomainName(dns.Fqdn(t.domain), name, 0, nil, false)
	if t.domain == "" || err != nil {
		return b
	}
	for n%8 != 0 {
		n++
	}
	b = binary.BigEndian.AppendUint32(append(b, optSearch, byte(1+n/8), 0, 0), life)
	return append(b, name[:n]...)
}
