package daemon

import (
	"net/netip"
	"strings"

	"lodge/internal/model/network"
	"lodge/internal/store/tables"
)

// names answers the networks' name servers from the records in memory.
type names struct{ tables *tables.Tables }

// Lookup returns the addresses on a network of the guest called name.
func (n names) Lookup(net, name string) (found []netip.Addr) {
	g, err := n.tables.Guests.Get(strings.ToLower(name))
	if err != nil || g.Deleting != nil {
		return nil
	}
	for _, nic := range g.Spec.NICs {
		if nic.Network != net {
			continue
		}
		for _, text := range []string{nic.IPv4, nic.IPv6} {
			if p, err := netip.ParsePrefix(text); err == nil {
				found = append(found, p.Addr())
			}
		}
	}
	return found
}

// Reverse returns the name of the guest that holds an address on a network, or
// "".
func (n names) Reverse(net string, a netip.Addr) string {
	lease, err := n.tables.Leases.Get(network.LeaseName(net, a.String()))
	if err != nil {
		return ""
	}
	g, err := n.tables.Guests.ByID(lease.Spec.Guest)
	if err != nil {
		return ""
	}
	return g.Name
}
