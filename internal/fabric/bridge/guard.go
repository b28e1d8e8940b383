package bridge

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
	"lodge/internal/fabric"
)

// The sets of the table "bridge PREFIX_NAME". A plug is an element or two in
// each; the rules never change.
const (
	setPorts = "ports" // device; its comment is the plug itself, see plug.comment
	setMACs  = "macs"  // device . MAC that it may send from
	setIPv4  = "ipv4"  // device . IPv4 address that it may send from
	setIPv6  = "ipv6"  // device . IPv6 address that it may send from
	setLoops = "loops" // device . the same device
	setAsks  = "asks"  // device that asks for its addresses, and how often
)

func guardTable(name string) *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyBridge, Name: name}
}

func guardSet(t *nftables.Table, name string) *nftables.Set {
	s := &nftables.Set{Table: t, Name: name, KeyType: nftables.TypeIFName}
	second := map[string]nftables.SetDatatype{
		setMACs: nftables.TypeEtherAddr, setIPv4: nftables.TypeIPAddr,
		setIPv6: nftables.TypeIP6Addr, setLoops: nftables.TypeIFName,
	}
	if d, ok := second[name]; ok {
		s.KeyType = nftables.MustConcatSetType(nftables.TypeIFName, d)
	}
	if name == setAsks {
		s.Dynamic, s.HasTimeout, s.Timeout = true, true, time.Minute
	}
	return s
}

// Numbers of the wire: offsets in headers, ethertypes, ICMPv6 types.
const (
	arpOp, arpSenderMAC, arpSenderIP, arpTargetIP = 6, 8, 14, 24
	ip4Source, ip4Dest                            = 12, 16
	ip6Length, ip6Source                          = 4, 8
	ndTarget, ndOption                            = 8, 24 // from the ICMPv6 header
	rsOption                                      = 8
	dhcpMAC                                       = 8 + 28 // from the UDP header: what the client calls itself

	typeRS, typeRA, typeNS, typeNA, typeRedirect = 133, 134, 135, 136, 137
	typeMLDv2                                    = 143
)

func portAnd(base expr.PayloadBase, offset, length uint32) []expr.Any {
	return rule(meta(expr.MetaKeyIIFNAME, reg1), load(base, offset, length, reg2))
}

func etherType(t uint16) []expr.Any { return metaIs(expr.MetaKeyPROTOCOL, be16(t)) }

func icmp6(t byte) []expr.Any {
	return rule(metaIs(expr.MetaKeyL4PROTO, []byte{unix.IPPROTO_ICMPV6}),
		fieldIs(expr.PayloadBaseTransportHeader, 0, []byte{t}))
}

func udpPorts(src, dst uint16) []expr.Any {
	return rule(metaIs(expr.MetaKeyL4PROTO, []byte{unix.IPPROTO_UDP}),
		fieldIs(expr.PayloadBaseTransportHeader, 0, append(be16(src), be16(dst)...)))
}

// tooOften matches when a port has asked the host for its addresses more often
// than any guest does: what each question costs the daemon is bounded, port by
// port.
func tooOften() []expr.Any {
	return rule(meta(expr.MetaKeyIIFNAME, reg1), one(&expr.Dynset{
		SrcRegKey: reg1, SetName: setAsks, Operation: unix.NFT_DYNSET_OP_UPDATE, Timeout: time.Minute,
		Exprs: one(&expr.Limit{Type: expr.LimitTypePkts, Rate: 20, Unit: expr.LimitTimeSecond, Burst: 40, Over: true}),
	}))
}

// guard queues the table that lets a port speak only for itself.
func guard(c *nftables.Conn, name string) error {
	l := &layout{c: c, table: guardTable(name)}
	c.AddTable(l.table)
	for _, s := range []string{setPorts, setMACs, setIPv4, setIPv6, setLoops, setAsks} {
		l.set(guardSet(l.table, s))
	}
	drop, accept := verdict(expr.VerdictDrop), verdict(expr.VerdictAccept)
	link, ip, th := expr.PayloadBaseLLHeader, expr.PayloadBaseNetworkHeader, expr.PayloadBaseTransportHeader
	var any4 [4]byte
	var any6 [16]byte

	l.chain(&nftables.Chain{Name: "arp"},
		rule(portAnd(ip, arpSenderMAC, 6), notIn(setMACs), drop),
		rule(portAnd(ip, arpSenderIP, 4), in(setIPv4), accept),
		// A probe (RFC 5227) asks before it has an address.
		rule(fieldIs(ip, arpOp, be16(1)), fieldIs(ip, arpSenderIP, any4[:]), accept),
		drop)
	// A client that has no address goes by what it says its MAC is, which may
	// be no other's. A packet that does not say is none.
	own := rule(portAnd(th, dhcpMAC, 6), in(setMACs))
	l.chain(&nftables.Chain{Name: "ask4"},
		rule(tooOften(), drop),
		rule(own, portAnd(ip, ip4Source, 4), in(setIPv4), accept),
		rule(own, fieldIs(ip, ip4Source, any4[:]), accept),
		drop)
	l.chain(&nftables.Chain{Name: "ip4"},
		// 127.0.0.0/8 of the host is not the guests' (see bridgeSysctls).
		rule(fieldIs(ip, ip4Dest, []byte{127}), drop),
		rule(metaIs(expr.MetaKeyL4PROTO, []byte{unix.IPPROTO_UDP}), fieldIs(th, 0, be16(67)), drop),
		rule(udpPorts(68, 67), jump("ask4")),
		rule(portAnd(ip, ip4Source, 4), in(setIPv4), accept),
		drop)
	// 32 bytes are the message and one link-layer option: nothing can hide
	// behind the first.
	oneOption := rule(load(ip, ip6Length, 2, reg1), cmp(expr.CmpOpGt, be16(32)))
	l.chain(&nftables.Chain{Name: "na"},
		rule(oneOption, drop),
		rule(portAnd(ip, ip6Source, 16), notIn(setIPv6), drop),
		rule(portAnd(th, ndTarget, 16), notIn(setIPv6), drop),
		rule(fieldIs(th, ndOption, []byte{2, 1}), portAnd(th, ndOption+2, 6), notIn(setMACs), drop),
		accept)
	l.chain(&nftables.Chain{Name: "ns"},
		// From nowhere: a duplicate address probe, which names no sender.
		rule(fieldIs(ip, ip6Source, any6[:]), portAnd(th, ndTarget, 16), in(setIPv6), accept),
		rule(oneOption, drop),
		rule(portAnd(ip, ip6Source, 16), notIn(setIPv6), drop),
		rule(fieldIs(th, ndOption, []byte{1, 1}), portAnd(th, ndOption+2, 6), notIn(setMACs), drop),
		accept)
	l.chain(&nftables.Chain{Name: "ip6"},
		rule(icmp6(typeRA), drop),
		rule(icmp6(typeRedirect), drop),
		// Which groups a guest listens to concerns nobody: multicast goes to
		// every port. Flooded, the reports of each guest that starts would cost
		// every other guest's network stack some work.
		rule(icmp6(typeMLDv2), drop),
		rule(udpPorts(547, 546), drop),
		rule(icmp6(typeNA), jump("na")),
		rule(icmp6(typeNS), jump("ns")),
		rule(udpPorts(546, 547), tooOften(), drop),
		rule(icmp6(typeRS), tooOften(), drop),
		rule(icmp6(typeRS), fieldIs(th, rsOption, []byte{1, 1}), portAnd(th, rsOption+2, 6), notIn(setMACs), drop),
		rule(portAnd(ip, ip6Source, 16), in(setIPv6), accept),
		rule(fieldIs(ip, ip6Source, any6[:]), icmp6(typeRS), accept),
		drop)
	l.chain(&nftables.Chain{Name: "from_port", Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRef(-300)},
		rule(meta(expr.MetaKeyIIFNAME, reg1), notIn(setPorts), accept),
		rule(portAnd(link, 6, 6), notIn(setMACs), drop),
		rule(etherType(unix.ETH_P_IP), jump("ip4")),
		rule(etherType(unix.ETH_P_IPV6), jump("ip6")),
		rule(etherType(unix.ETH_P_ARP), jump("arp")),
		drop)
	l.quiet()
	return l.err
}

// quiet queues the chain that spares a guest the questions about others: with
// 1,000 ports each broadcast would otherwise wake 1,000 network stacks.
func (l *layout) quiet() {
	drop, accept := verdict(expr.VerdictDrop), verdict(expr.VerdictAccept)
	link, ip, th := expr.PayloadBaseLLHeader, expr.PayloadBaseNetworkHeader, expr.PayloadBaseTransportHeader
	to := func(base expr.PayloadBase, offset, length uint32) []expr.Any {
		return rule(meta(expr.MetaKeyOIFNAME, reg1), load(base, offset, length, reg2))
	}
	l.chain(&nftables.Chain{Name: "to_port", Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityRef(-300)},
		rule(load(link, 0, 1, reg1), masked(1, []byte{1}), cmp(expr.CmpOpEq, []byte{0}), accept),
		rule(meta(expr.MetaKeyOIFNAME, reg1), notIn(setPorts), accept),
		// What asks for addresses and routers is for the host alone.
		rule(etherType(unix.ETH_P_IP), udpPorts(68, 67), drop),
		rule(etherType(unix.ETH_P_IPV6), udpPorts(546, 547), drop),
		rule(etherType(unix.ETH_P_IPV6), icmp6(typeRS), drop),
		// A port in hairpin mode must not hear its own broadcasts: its
		// duplicate address probe would find a duplicate.
		rule(meta(expr.MetaKeyOIFNAME, reg1), meta(expr.MetaKeyIIFNAME, reg2), in(setLoops), drop),
		rule(etherType(unix.ETH_P_ARP), fieldIs(ip, arpOp, be16(1)), to(ip, arpTargetIP, 4), notIn(setIPv4), drop),
		rule(etherType(unix.ETH_P_IPV6), icmp6(typeNS), to(th, ndTarget, 16), notIn(setIPv6), drop))
}

// plug is what is remembered of a port that was plugged.
type plug struct {
	master string
	mac    net.HardwareAddr
	v4, v6 netip.Addr
}

func plugOf(p fabric.Port) (plug, error) {
	if p.Device == "" || len(p.Device) > 15 || strings.ContainsAny(p.Device, "/ \x00\n") {
		return plug{}, errs.Bad("device", fmt.Sprintf("%q cannot name a device", p.Device), "at most 15 characters")
	}
	mac, err := net.ParseMAC(p.MAC)
	if err != nil || len(mac) != 6 || mac[0]&1 != 0 {
		return plug{}, errs.Bad("mac", fmt.Sprintf("%q is no address of a network card", p.MAC), "such as 02:00:00:00:00:01")
	}
	if p.IPv4.IsValid() && !p.IPv4.Is4() {
		return plug{}, errs.Bad("ipv4", fmt.Sprintf("%v is no IPv4 address", p.IPv4), "")
	}
	if p.IPv6.IsValid() && (!p.IPv6.Is6() || p.IPv6.Is4In6() || p.IPv6.Zone() != "") {
		return plug{}, errs.Bad("ipv6", fmt.Sprintf("%v is no IPv6 address", p.IPv6), "")
	}
	return plug{mac: mac, v4: p.IPv4, v6: p.IPv6}, nil
}

func (p plug) same(o plug) bool {
	return p.v4 == o.v4 && p.v6 == o.v6 && p.mac.String() == o.mac.String()
}

// comment is how a plug is kept in the kernel, for the daemon that comes after
// this one.
func (p plug) comment() string {
	text := func(a netip.Addr) string {
		if !a.IsValid() {
			return "-"
		}
		return a.String()
	}
	return strings.Join([]string{p.master, p.mac.String(), text(p.v4), text(p.v6)}, " ")
}

func parsePlug(comment string) (plug, error) {
	f := strings.Fields(comment)
	if len(f) != 4 {
		return plug{}, fmt.Errorf("port remembered as %q", comment)
	}
	mac, err := net.ParseMAC(f[1])
	if err != nil || len(mac) != 6 {
		return plug{}, fmt.Errorf("port remembered as %q", comment)
	}
	p := plug{master: f[0], mac: mac}
	for i, a := range []*netip.Addr{&p.v4, &p.v6} {
		if f[2+i] == "-" {
			continue
		}
		if *a, err = netip.ParseAddr(f[2+i]); err != nil {
			return plug{}, fmt.Errorf("port remembered as %q: %w", comment, err)
		}
	}
	return p, nil
}

// linkLocal is the fe80:: address that a kernel derives from a MAC (EUI-64).
func linkLocal(mac net.HardwareAddr) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]})
}

// elements are what the plug of dev puts into each set.
func (p plug) elements(dev string) map[string][]nftables.SetElement {
	key := func(second []byte) nftables.SetElement {
		return nftables.SetElement{Key: append(ifname(dev), part(second)...)}
	}
	out := map[string][]nftables.SetElement{
		setPorts: {{Key: ifname(dev), Comment: p.comment()}},
		setMACs:  {key(append([]byte(nil), p.mac...))},
		setLoops: {key(ifname(dev))},
		setIPv6:  {key(linkLocal(p.mac).AsSlice())},
	}
	if p.v4.IsValid() {
		out[setIPv4] = []nftables.SetElement{key(p.v4.AsSlice())}
	}
	if p.v6.IsValid() && p.v6 != linkLocal(p.mac) {
		out[setIPv6] = append(out[setIPv6], key(p.v6.AsSlice()))
	}
	return out
}
