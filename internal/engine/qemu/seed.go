package qemu

import (
	"encoding/json"
	"fmt"
	"net/netip"

	"lodge/internal/base/fat"
	"lodge/internal/engine"
	"lodge/internal/launch"
	"lodge/internal/model/guest"
)

// seedLabel is what cloud-init's NoCloud source knows its volume by.
const seedLabel = "cidata"

// seed opens the volume that tells cloud-init in an unmodified guest who it is.
// It is made anew for each start, in memory.
func (b *builder) seed() error {
	volume, err := seedVolume(b.g, b.parts)
	if err != nil {
		return fmt.Errorf("seed of %s: %w", b.g.Name, err)
	}
	b.open(fdDrive(seedSerial), launch.Memory{Name: "seed", Parts: []launch.Part{{Bytes: volume}}})
	return nil
}

// seedVolume is what guests of root-tree images find in their seed folder, but
// that there nobody has configured the network before.
func seedVolume(g guest.Guest, parts engine.Parts) ([]byte, error) {
	network, err := networkConfig(parts)
	if err != nil {
		return nil, err
	}
	return fat.Volume(seedLabel, []fat.File{
		{Name: "meta-data", Content: fmt.Appendf(nil, "instance-id: %s\nlocal-hostname: %s\n", g.ID, g.Name)},
		{Name: "user-data", Content: []byte(g.Spec.UserData)},
		{Name: "network-config", Content: network},
	})
}

// The shapes of a network configuration, version 2. JSON is YAML too.
type (
	netConfig struct {
		Version   int                   `json:"version"`
		Ethernets map[string]*netDevice `json:"ethernets"`
	}
	netDevice struct {
		Match       map[string]string `json:"match"`
		MTU         int               `json:"mtu,omitempty"`
		DHCP4       bool              `json:"dhcp4"`
		DHCP6       bool              `json:"dhcp6"`
		Addresses   []string          `json:"addresses,omitempty"`
		Routes      []netRoute        `json:"routes,omitempty"`
		Nameservers *nameservers      `json:"nameservers,omitempty"`
	}
	netRoute struct {
		To  string `json:"to"`
		Via string `json:"via"`
	}
	nameservers struct {
		Addresses []netip.Addr `json:"addresses"`
		Search    []string     `json:"search,omitempty"`
	}
)

// networkConfig gives the guest's cards, which are known by their MACs, the
// addresses that they have.
func networkConfig(parts engine.Parts) ([]byte, error) {
	c := netConfig{Version: 2, Ethernets: map[string]*netDevice{}}
	for i, n := range parts.NICs {
		d := &netDevice{Match: map[string]string{"macaddress": n.MAC}, MTU: n.MTU}
		for _, p := range []netip.Prefix{n.IPv4, n.IPv6} {
			if p.IsValid() {
				d.Addresses = append(d.Addresses, p.String())
			}
		}
		if n.Gateway4.IsValid() {
			d.Routes = append(d.Routes, netRoute{"0.0.0.0/0", n.Gateway4.String()})
		}
		if n.Gateway6.IsValid() {
			d.Routes = append(d.Routes, netRoute{"::/0", n.Gateway6.String()})
		}
		if i == 0 && len(parts.DNS) > 0 {
			d.Nameservers = &nameservers{Addresses: parts.DNS}
			if parts.Domain != "" {
				d.Nameservers.Search = []string{parts.Domain}
			}
		}
		c.Ethernets[n.Name] = d
	}
	return json.Marshal(c)
}
