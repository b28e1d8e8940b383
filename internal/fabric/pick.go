package fabric

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"

	"lodge/internal/base/errs"
)

// Pick chooses prefixes for a network that was made without any: an IPv4 /16
// of RFC 1918 that overlaps none of routes (a /16 because a /24 ends at 253
// guests), and an IPv6 /64 below a ULA prefix of RFC 4193. The same routes and
// seed give the same answer. The error is NoSpace when every private /16 is
// taken.
func Pick(routes []netip.Prefix, seed uint64) (v4, v6 netip.Prefix, err error) {
	rnd := rand.New(rand.NewPCG(seed, 0x6c6f646765))
	v6 = pickULA(routes, rnd)
	// 10.0.0.0/16 and 10.1.0.0/16 are what people number their own offices
	// with, so the draw begins above them.
	first := rnd.IntN(240)
	for i := range 240 {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(16 + (first+i)%240)}), 16)
		if !overlaps(routes, p) {
			return p, v6, nil
		}
	}
	for i := range 16 {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{172, byte(16 + i)}), 16)
		if !overlaps(routes, p) {
			return p, v6, nil
		}
	}
	return netip.Prefix{}, netip.Prefix{}, &errs.Error{Kind: errs.NoSpace, Field: "ipv4",
		Msg:  "every private IPv4 range of this host is in use",
		Hint: "name one yourself, such as 192.168.77.0/24"}
}

func pickULA(routes []netip.Prefix, rnd *rand.Rand) netip.Prefix {
	for {
		var a [16]byte
		// 40 random bits of global id after fd, subnet 0.
		binary.BigEndian.PutUint64(a[:8], 0xfd<<56|(rnd.Uint64()&0xff_ffff_ffff)<<16)
		p := netip.PrefixFrom(netip.AddrFrom16(a), 64)
		if !overlaps(routes, p) {
			return p
		}
	}
}

// overlaps leaves default routes out: they overlap everything.
func overlaps(routes []netip.Prefix, p netip.Prefix) bool {
	for _, r := range routes {
		if r.Bits() > 0 && r.Overlaps(p) {
			return true
		}
	}
	return false
}
