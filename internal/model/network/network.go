// Package network says what a network is: a switch of the host's own with
// addresses, names and a way out.
package network

import (
	"net/netip"
	"strings"

	"lodge/internal/model"
)

// Kind is the noun's name in keys and events.
const Kind model.Kind = "network"

// Lease is the kind of the records that hold one address each, so that no two
// guests can ever be given the same.
const Lease model.Kind = "lease"

// Spec is what was asked for.
type Spec struct {
	Driver string       `json:"driver"` // "bridge"
	IPv4   netip.Prefix `json:"ipv4,omitzero"`
	IPv6   netip.Prefix `json:"ipv6,omitzero"` // a ULA prefix (RFC 4193) by default
	NAT    bool         `json:"nat"`
	Domain string       `json:"domain"` // guests are NAME.Domain: "lodge.internal"
}

// Status is what the host found out.
type Status struct {
	Generation int64          `json:"generation"`
	Ready      bool           `json:"ready"`
	Device     string         `json:"device,omitempty"` // the bridge that holds the gateway's addresses
	Problem    *model.Problem `json:"problem,omitempty"`
}

// LeaseSpec says who holds an address.
type LeaseSpec struct {
	Guest string `json:"guest"` // id of the guest
}

// LeaseName returns the name of the record that holds address on network. The
// address may be written with its prefix length.
func LeaseName(network, address string) string {
	address, _, _ = strings.Cut(address, "/")
	return network + "/" + address
}

// Gateway returns the address of the host on p: the first usable one.
func Gateway(p netip.Prefix) netip.Addr { return p.Masked().Addr().Next() }
