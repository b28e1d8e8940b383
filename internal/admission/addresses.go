package admission

import (
	"encoding/binary"
	"net/netip"
	"sync"

	"lodge/internal/base/errs"
	"lodge/internal/model/network"
	"lodge/internal/store"
)

// addresses hands out what is free in a network. What is taken is known from
// the leases' twin; what was handed out and is not committed yet, from
// reserved.
type addresses struct {
	leases   *store.Table[network.LeaseSpec, struct{}]
	mu       *sync.Mutex
	reserved map[string]struct{} // names of leases under way
	next     map[string]uint64   // by network: where to look first, so that a search does not start over
}

// span is the most offsets one search visits: a /12's worth.
const span = 1 << 20

// pair is one place in a network: an address of each family it has.
type pair struct {
	IPv4, IPv6 netip.Prefix
}

// names are those of the leases that hold p in the network named.
func (p pair) names(networkName string) []string {
	var all []string
	for _, a := range []netip.Prefix{p.IPv4, p.IPv6} {
		if a.IsValid() {
			all = append(all, network.LeaseName(networkName, a.String()))
		}
	}
	return all
}

// take reserves the next free place in a network. free must be called once the
// leases are committed or given up.
func (a *addresses) take(name string, s network.Spec) (p pair, free func(), err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	count := min(hosts(s.IPv4), hosts(s.IPv6))
	if count == noFamily {
		return pair{}, func() {}, nil
	}
	start := a.next[name]
	for i := range min(count, span) {
		offset := (start + i) % count
		p := pair{IPv4: at(s.IPv4, offset+2), IPv6: at(s.IPv6, offset+2)}
		names := p.names(name)
		if a.taken(names) {
			continue
		}
		for _, n := range names {
			a.reserved[n] = struct{}{}
		}
		a.next[name] = offset + 1
		return p, func() { a.release(names) }, nil
	}
	return pair{}, nil, &errs.Error{Kind: errs.NoSpace, Ref: "network/" + name, Msg: "has no free address left", Hint: "remove guests, or make a larger network: lodge network create"}
}

func (a *addresses) taken(names []string) bool {
	for _, n := range names {
		if _, ok := a.reserved[n]; ok {
			return true
		}
		if _, err := a.leases.Get(n); err == nil {
			return true
		}
	}
	return false
}

func (a *addresses) release(names []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, n := range names {
		delete(a.reserved, n)
	}
}

// noFamily is the number of hosts that an absent family allows: it limits
// nothing.
const noFamily = 1 << 32

// hosts counts the addresses that guests can have in p: all but the network's
// own, the gateway's and the last (IPv4's broadcast).
func hosts(p netip.Prefix) uint64 {
	if !p.IsValid() {
		return noFamily
	}
	bits := p.Addr().BitLen() - p.Bits()
	switch {
	case bits < 2:
		return 0
	case bits >= 32:
		return noFamily - 3
	}
	return 1<<bits - 3
}

// at returns the address that is offset beyond p's first, with p's length; the
// zero prefix for a family that is absent.
func at(p netip.Prefix, offset uint64) netip.Prefix {
	if !p.IsValid() {
		return netip.Prefix{}
	}
	if p.Addr().Is4() {
		b := p.Masked().Addr().As4()
		binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+uint32(offset))
		return netip.PrefixFrom(netip.AddrFrom4(b), p.Bits())
	}
	b := p.Masked().Addr().As16()
	low := binary.BigEndian.Uint64(b[8:])
	binary.BigEndian.PutUint64(b[8:], low+offset)
	return netip.PrefixFrom(netip.AddrFrom16(b), p.Bits())
}

func text(p netip.Prefix) string {
	if !p.IsValid() {
		return ""
	}
	return p.String()
}
