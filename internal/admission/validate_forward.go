package admission

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"lodge/internal/base/errs"
	"lodge/internal/model/forward"
)

const publishHint = "write [ADDRESS:]HOSTPORT:GUESTPORT[/udp], such as 8080:80"

// ParsePublish reads [ADDRESS:]HOSTPORT:GUESTPORT[/tcp|/udp]; an IPv6 address
// stands in brackets. The result has no guest yet.
func ParsePublish(field, s string) (forward.Spec, error) {
	spec := forward.Spec{Protocol: "tcp"}
	rest, protocol, found := strings.Cut(s, "/")
	if found {
		spec.Protocol = protocol
	}
	if spec.Protocol != "tcp" && spec.Protocol != "udp" {
		return spec, errs.Bad(field, fmt.Sprintf("%q is not a protocol", spec.Protocol), "use tcp or udp")
	}
	i := strings.LastIndexByte(rest, ':')
	if i < 0 {
		return spec, errs.Bad(field, fmt.Sprintf("%q does not say both ports", s), publishHint)
	}
	from, target := rest[:i], rest[i+1:]
	if j := strings.LastIndexByte(from, ':'); j >= 0 {
		address := strings.TrimSuffix(strings.TrimPrefix(from[:j], "["), "]")
		a, err := netip.ParseAddr(address)
		bracketed := strings.HasPrefix(from, "[") && strings.HasSuffix(from[:j], "]")
		if err != nil || a.Zone() != "" || bracketed != a.Is6() {
			return spec, errs.Bad(field, fmt.Sprintf("%q is not an address", from[:j]), publishHint+"; an IPv6 address stands in brackets")
		}
		spec.Listen, from = a.Unmap(), from[j+1:]
		if a.IsUnspecified() {
			spec.Listen = netip.Addr{}
		}
	}
	var err error
	if spec.Port, err = parsePort(field, from); err != nil {
		return spec, err
	}
	spec.Target, err = parsePort(field, target)
	return spec, err
}

func parsePort(field, s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 || s[0] == '+' {
		return 0, errs.Bad(field, fmt.Sprintf("%q is not a port", s), "give a number from 1 to 65535; "+publishHint)
	}
	return uint16(n), nil
}

// Publish writes f as ParsePublish reads it, the protocol always said.
func Publish(f forward.Spec) string {
	listen := ""
	switch {
	case f.Listen.Is6():
		listen = "[" + f.Listen.String() + "]:"
	case f.Listen.IsValid():
		listen = f.Listen.String() + ":"
	}
	return fmt.Sprintf("%s%d:%d/%s", listen, f.Port, f.Target, f.Protocol)
}

// ForwardName is the name of f's record: one listener, one record.
func ForwardName(f forward.Spec) string {
	if f.Listen.IsValid() {
		return fmt.Sprintf("%s-%s-%d", f.Protocol, f.Listen, f.Port)
	}
	return fmt.Sprintf("%s-%d", f.Protocol, f.Port)
}

// overlap reports whether two forwards would listen on the same port.
func overlap(a, b forward.Spec) bool {
	return a.Protocol == b.Protocol && a.Port == b.Port &&
		(!a.Listen.IsValid() || !b.Listen.IsValid() || a.Listen == b.Listen)
}
