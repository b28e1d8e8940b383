package bridge

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/miekg/dns"

	"lodge/internal/fabric"
	"lodge/internal/model/network"
)

// nameTTL is how long, in seconds, a guest's name may be remembered: guests
// are deleted and made anew under the same name within moments.
const nameTTL = 5

// zone decides what one network's own names and addresses are. It holds no
// state: the daemon's tables behind names do.
type zone struct {
	network  string
	domain   string // fully qualified, lower case: "lodge.internal."
	prefixes []netip.Prefix
	gateways []netip.Addr
	names    fabric.Names
}

func newZone(name string, spec network.Spec, lookup fabric.Names) zone {
	z := zone{network: name, names: lookup}
	if spec.Domain != "" {
		z.domain = dns.CanonicalName(spec.Domain)
	}
	for _, p := range []netip.Prefix{spec.IPv4, spec.IPv6} {
		if p.IsValid() {
			z.prefixes = append(z.prefixes, p.Masked())
			z.gateways = append(z.gateways, network.Gateway(p))
		}
	}
	return z
}

// matches reports whether a zone made from spec would be this one.
func (z zone) matches(spec network.Spec) bool {
	o := newZone(z.network, spec, z.names)
	if z.domain != o.domain || len(z.prefixes) != len(o.prefixes) {
		return false
	}
	for i := range o.prefixes {
		if z.prefixes[i] != o.prefixes[i] {
			return false
		}
	}
	return true
}

// serves reports whether a client may ask at all: only the network's own, so
// that this is never an open resolver.
func (z zone) serves(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	for _, p := range z.prefixes {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// answer answers a question about this network, or returns nil when it is for
// the host's resolvers.
func (z zone) answer(req *dns.Msg) *dns.Msg {
	q := req.Question[0]
	name := dns.CanonicalName(q.Name)
	if q.Qclass != dns.ClassINET {
		return nil
	}
	if a, ok := reverse(name); ok && z.serves(a) {
		return z.pointer(req, a)
	}
	var found []netip.Addr
	own := z.domain != "" && dns.IsSubDomain(z.domain, name)
	switch {
	case own && name == z.domain:
		return z.apex(req)
	case own:
		found = z.lookup(strings.TrimSuffix(strings.TrimSuffix(name, z.domain), "."))
	case dns.CountLabel(name) == 1:
		found = z.lookup(strings.TrimSuffix(name, "."))
	}
	if len(found) == 0 && !own {
		return nil
	}
	m := reply(req)
	m.Answer = addresses(q, found)
	if len(found) == 0 {
		m.Rcode = dns.RcodeNameError
	}
	if len(m.Answer) == 0 && own {
		m.Ns = append(m.Ns, z.soa(z.domain))
	}
	return m
}

// apex answers for the domain itself, which has nothing but its SOA.
func (z zone) apex(req *dns.Msg) *dns.Msg {
	m := reply(req)
	if req.Question[0].Qtype == dns.TypeSOA {
		m.Answer = append(m.Answer, z.soa(z.domain))
	} else {
		m.Ns = append(m.Ns, z.soa(z.domain))
	}
	return m
}

// addresses are those records of found that q asks for.
func addresses(q dns.Question, found []netip.Addr) []dns.RR {
	var out []dns.RR
	for _, a := range found {
		h := dns.RR_Header{Name: q.Name, Rrtype: q.Qtype, Class: dns.ClassINET, Ttl: nameTTL}
		switch a = a.Unmap(); {
		case a.Is4() && q.Qtype == dns.TypeA:
			out = append(out, &dns.A{Hdr: h, A: a.AsSlice()})
		case a.Is6() && q.Qtype == dns.TypeAAAA:
			out = append(out, &dns.AAAA{Hdr: h, AAAA: a.AsSlice()})
		}
	}
	return out
}

func (z zone) lookup(guest string) []netip.Addr {
	if z.names == nil {
		return nil
	}
	return z.names.Lookup(z.network, guest)
}

// pointer answers for an address of the network.
func (z zone) pointer(req *dns.Msg, a netip.Addr) *dns.Msg {
	m := reply(req)
	name := ""
	if z.names != nil {
		name = z.names.Reverse(z.network, a)
	}
	q := req.Question[0]
	if name == "" {
		m.Rcode = dns.RcodeNameError
	} else if q.Qtype == dns.TypePTR {
		m.Answer = append(m.Answer, &dns.PTR{Ptr: dns.Fqdn(name + "." + z.domain),
			Hdr: dns.RR_Header{Name: q.Name, Rrtype: dns.TypePTR, Class: dns.ClassINET, Ttl: nameTTL}})
		return m
	}
	m.Ns = append(m.Ns, z.soa(dns.CanonicalName(q.Name)))
	return m
}

func (z zone) soa(owner string) dns.RR {
	return &dns.SOA{Hdr: dns.RR_Header{Name: owner, Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: nameTTL},
		Ns: "ns." + z.mname(), Mbox: "hostmaster." + z.mname(), Serial: 1,
		Refresh: 3600, Retry: 600, Expire: 86400, Minttl: nameTTL}
}

func (z zone) mname() string {
	if z.domain == "" || z.domain == "." {
		return "invalid."
	}
	return z.domain
}

func reply(req *dns.Msg) *dns.Msg {
	m := new(dns.Msg)
	m.SetReply(req)
	m.Authoritative, m.RecursionAvailable = true, true
	return m
}

// reverse reads the address out of a whole name below in-addr.arpa or
// ip6.arpa; guests choose these bytes.
func reverse(name string) (netip.Addr, bool) {
	if s, ok := strings.CutSuffix(name, ".in-addr.arpa."); ok {
		return reverse4(strings.Split(s, "."))
	}
	if s, ok := strings.CutSuffix(name, ".ip6.arpa."); ok {
		return reverse6(strings.Split(s, "."))
	}
	return netip.Addr{}, false
}

func reverse4(labels []string) (netip.Addr, bool) {
	if len(labels) != 4 {
		return netip.Addr{}, false
	}
	var b [4]byte
	for i, l := range labels {
		v, err := strconv.ParseUint(l, 10, 8)
		if err != nil {
			return netip.Addr{}, false
		}
		b[3-i] = byte(v)
	}
	return netip.AddrFrom4(b), true
}

func reverse6(labels []string) (netip.Addr, bool) {
	if len(labels) != 32 {
		return netip.Addr{}, false
	}
	var b [16]byte
	for i, l := range labels {
		v, err := strconv.ParseUint(l, 16, 4)
		if err != nil || len(l) != 1 {
			return netip.Addr{}, false
		}
		b[15-i/2] |= byte(v) << (4 * (i % 2))
	}
	return netip.AddrFrom16(b), true
}
