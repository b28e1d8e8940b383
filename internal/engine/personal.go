package engine

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"net/netip"
	"strings"

	"lodge/internal/agent"
	"lodge/internal/base/hostkeys"
	"lodge/internal/model/guest"
)

// FirstProgram is the guest's process 1 and whether it is an operating system's
// init rather than a program that somebody wants to run.
func FirstProgram(g guest.Guest, parts Parts) (argv []string, init bool) {
	switch {
	case len(g.Spec.Command) > 0:
		return g.Spec.Command, false
	case len(parts.Image.Init) > 0:
		return parts.Image.Init, true
	}
	return []string{"/sbin/init"}, true
}

// SearchPath is where guests' programs are looked for when nobody says where.
const SearchPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Environment is what every program of a guest that Lodge starts begins with,
// and the guest's own settings on top.
func Environment(g guest.Guest) map[string]string {
	env := map[string]string{"PATH": SearchPath, "HOME": "/root", "TERM": "xterm-256color", "LANG": "C.UTF-8"}
	maps.Copy(env, g.Spec.Env)
	return env
}

// MachineID is the guest's identity as systemd wants it, the same for all of
// the guest's life and no other's.
func MachineID(g guest.Guest) string {
	sum := sha256.Sum256([]byte("lodge guest " + g.ID))
	return hex.EncodeToString(sum[:16])
}

// ResolverMark is the first line of a resolv.conf that is Lodge's to renew.
const ResolverMark = "# made by lodge; remove this line to keep your own\n"

// Resolver is the guest's resolv.conf.
func Resolver(parts Parts) string {
	s := ResolverMark
	for _, a := range parts.DNS {
		s += "nameserver " + a.String() + "\n"
	}
	if parts.Domain != "" {
		s += "search " + parts.Domain + "\n"
	}
	return s
}

// Hosts is the guest's /etc/hosts.
func Hosts(g guest.Guest, parts Parts) string {
	var s strings.Builder
	s.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n")
	names := g.Name
	if parts.Domain != "" {
		names = g.Name + "." + parts.Domain + " " + g.Name
	}
	address := "127.0.1.1"
	for _, n := range parts.NICs {
		if n.IPv4.IsValid() {
			address = n.IPv4.Addr().String()
			break
		}
	}
	fmt.Fprintf(&s, "%s\t%s\n", address, names)
	return s.String()
}

// ForBoot is parts with keys that the guest's server of the secure shell gets if it
// has none: to make them takes a guest whose processor is translated more than a
// second. They are of the kinds that Lodge's images make. OS-level guests make their
// own as fast.
func ForBoot(parts Parts) (Parts, error) {
	if parts.Kernel.Path == "" || parts.Memory != "" {
		return parts, nil
	}
	parts.HostKeys = nil
	for _, kind := range []string{"ecdsa", "ed25519"} {
		secret, public, err := hostkeys.Make(kind)
		if err != nil {
			return parts, fmt.Errorf("keys for the guest's secure shell: %w", err)
		}
		parts.HostKeys = append(parts.HostKeys, agent.HostKey{Kind: kind, Secret: string(secret), Public: string(public)})
	}
	return parts, nil
}

// AgentConfig is what the agent makes of a kernel and an image this guest. Where
// its devices are is the engine's to add.
func AgentConfig(g guest.Guest, parts Parts) agent.Config {
	argv, init := FirstProgram(g, parts)
	c := agent.Config{
		ID: g.ID, Hostname: g.Name, Machine: MachineID(g), Hosts: Hosts(g, parts), Resolver: Resolver(parts), Domain: parts.Domain,
		Init: argv, Command: !init, Env: Environment(g), UserData: g.Spec.UserData, HostKeys: parts.HostKeys,
	}
	for _, a := range parts.DNS {
		c.DNS = append(c.DNS, a.String())
	}
	for _, n := range parts.NICs {
		c.NICs = append(c.NICs, agentNIC(n))
	}
	return c
}

func agentNIC(n NIC) agent.NIC {
	out := agent.NIC{Name: n.Name, MAC: n.MAC, MTU: n.MTU}
	for _, p := range []netip.Prefix{n.IPv4, n.IPv6} {
		if p.IsValid() {
			out.Prefixes = append(out.Prefixes, p.String())
		}
	}
	for _, a := range []netip.Addr{n.Gateway4, n.Gateway6} {
		if a.IsValid() {
			out.Gateways = append(out.Gateways, a.String())
		}
	}
	return out
}
