package bridge

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"lodge/internal/fabric"
	"lodge/internal/model/network"
)

// The maps of the table "inet PREFIX_NAME": where a port of the host leads.
const (
	mapAny4 = "forward4"    // protocol . port -> guest . port
	mapAny6 = "forward6"    // the same
	mapOne4 = "forward4_at" // protocol . address of the host . port -> guest . port
	mapOne6 = "forward6_at" // the same
)

func natTable(name string) *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyINet, Name: name}
}

func natMap(t *nftables.Table, name string) *nftables.Set {
	proto, port := nftables.TypeInetProto, nftables.TypeInetService
	addr := nftables.TypeIPAddr
	if name == mapAny6 || name == mapOne6 {
		addr = nftables.TypeIP6Addr
	}
	s := &nftables.Set{Table: t, Name: name, IsMap: true, DataType: nftables.MustConcatSetType(addr, port)}
	if name == mapOne4 || name == mapOne6 {
		s.KeyType = nftables.MustConcatSetType(proto, addr, port)
	} else {
		s.KeyType = nftables.MustConcatSetType(proto, port)
	}
	return s
}

// nat queues the table that leads packets out, in and nowhere else.
func nat(c *nftables.Conn, nm names, spec network.Spec) error {
	l := &layout{c: c, table: natTable(nm.table)}
	c.AddTable(l.table)
	for _, s := range []string{mapAny4, mapAny6, mapOne4, mapOne6} {
		l.set(natMap(l.table, s))
	}
	drop, accept := verdict(expr.VerdictDrop), verdict(expr.VerdictAccept)
	const established = expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED
	arrive := arrivals()
	l.chain(&nftables.Chain{Name: "arrive", Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest}, arrive...)
	l.chain(&nftables.Chain{Name: "local", Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityNATDest}, arrive...)
	l.chain(&nftables.Chain{Name: "leave", Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource}, departures(nm, spec)...)
	l.chain(&nftables.Chain{Name: "raw", Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw},
		rule(iif(nm.root), within(loopback4(), false, expr.CmpOpEq), drop),
		// With br_netfilter a leaf's frames come by here too; translated there,
		// they would be translated for the wrong device. The root does it.
		rule(metaIs(expr.MetaKeyIIFNAME, []byte(nm.leaves())), one(&expr.Notrack{})))

	// Guests of one network talk to each other; from elsewhere comes only what
	// answers a guest or was forwarded. A network without NAT is routed, so
	// outside may begin; other networks of this host still may not.
	stranger := oif(nm.root)
	if !spec.NAT {
		stranger = rule(metaIs(expr.MetaKeyIIFNAME, []byte(nm.all)), oif(nm.root))
	}
	l.chain(&nftables.Chain{Name: "pass", Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter},
		rule(iif(nm.root), oif(nm.root), accept),
		rule(oif(nm.root), ctHas(expr.CtKeySTATE, established), accept),
		rule(oif(nm.root), ctHas(expr.CtKeySTATUS, ctDNAT), accept),
		rule(stranger, drop))
	return l.err
}

// ctDNAT is IPS_DST_NAT of linux/netfilter/nf_conntrack_common.h.
const ctDNAT = 1 << 5

func loopback6() netip.Prefix { return netip.PrefixFrom(netip.IPv6Loopback(), 128) }

func loopback4() netip.Prefix { return netip.PrefixFrom(netip.AddrFrom4([4]byte{127}), 8) }

// arrivals are the rules of port forwards, for packets from elsewhere and from
// the host itself. The maps hold the forwards, so the number of rules is fixed.
func arrivals() [][]expr.Any {
	dnat := func(fam, portReg uint32) []expr.Any {
		return one(&expr.NAT{Type: expr.NATTypeDestNAT, Family: fam, RegAddrMin: reg1, RegProtoMin: portReg})
	}
	local := rule(one(&expr.Fib{Register: reg1, ResultADDRTYPE: true, FlagDADDR: true}),
		cmp(expr.CmpOpEq, []byte{unix.RTN_LOCAL, 0, 0, 0}))
	proto := meta(expr.MetaKeyL4PROTO, reg1)
	ip, th := expr.PayloadBaseNetworkHeader, expr.PayloadBaseTransportHeader
	const v4, v6 = unix.NFPROTO_IPV4, unix.NFPROTO_IPV6
	return [][]expr.Any{
		// Linux takes no answer for ::1 from any device but lo, so a forward
		// cannot start there: who tries is refused at once, and goes on to
		// 127.0.0.1 if "localhost" was meant.
		rule(within(loopback6(), false, expr.CmpOpEq), verdict(expr.VerdictReturn)),
		rule(family(v4), proto, load(ip, 16, 4, reg32x01), load(th, 2, 2, reg32x02), mapped(mapOne4), dnat(v4, reg32x01)),
		rule(family(v4), local, proto, load(th, 2, 2, reg32x01), mapped(mapAny4), dnat(v4, reg32x01)),
		rule(family(v6), proto, load(ip, 24, 16, reg32x01), load(th, 2, 2, reg32x05), mapped(mapOne6), dnat(v6, reg2)),
		rule(family(v6), local, proto, load(th, 2, 2, reg32x01), mapped(mapAny6), dnat(v6, reg2)),
	}
}

// departures give a packet the host's address where the answer would else not
// come back through the host.
func departures(nm names, spec network.Spec) [][]expr.Any {
	masq := one(&expr.Masq{})
	forwarded := ctHas(expr.CtKeySTATUS, ctDNAT)
	rules := [][]expr.Any{
		rule(oif(nm.root), within(loopback4(), true, expr.CmpOpEq), masq),
	}
	for _, p := range []netip.Prefix{spec.IPv4, spec.IPv6} {
		if !p.IsValid() {
			continue
		}
		// A guest that reached a guest through the host's address.
		rules = append(rules, rule(oif(nm.root), within(p, true, expr.CmpOpEq), forwarded, masq))
		if spec.NAT {
			rules = append(rules, rule(oifNot(nm.root), within(p, true, expr.CmpOpEq), within(p, false, expr.CmpOpNeq), masq))
		}
	}
	return rules
}

// forwardElements are what the maps hold for these forwards.
func forwardElements(all []fabric.Forward) map[string][]nftables.SetElement {
	protocols := map[string]byte{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP}
	out := map[string][]nftables.SetElement{}
	for _, f := range all {
		key := part([]byte{protocols[f.Protocol]})
		at, to := f.Listen.Unmap(), []netip.Addr{f.To4, f.To6}
		if at.IsValid() {
			key = append(key, at.AsSlice()...)
		}
		key = append(key, part(be16(f.Port))...)
		for i, name := range [][2]string{{mapAny4, mapOne4}, {mapAny6, mapOne6}} {
			if !to[i].IsValid() || at.IsValid() && at.Is4() != (i == 0) {
				continue
			}
			m := name[0]
			if at.IsValid() {
				m = name[1]
			}
			val := append(to[i].AsSlice(), part(be16(f.Target))...)
			out[m] = append(out[m], nftables.SetElement{Key: key, Val: val})
		}
	}
	return out
}
