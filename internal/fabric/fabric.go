// Package fabric is the contract of a network driver: one folder below this
// one for each, one line in daemon/drivers.go.
package fabric

import (
	"context"
	"net/netip"

	"lodge/internal/model/network"
)

// Driver makes networks of one kind.
type Driver interface {
	Name() string
	// Ensure makes the host's network match spec. Calling it again changes
	// nothing; a daemon that just started calls it and finds the ports that
	// an earlier one plugged.
	Ensure(ctx context.Context, name string, spec network.Spec) (Fabric, error)
	// Remove takes away everything Ensure and Plug made, whether or not a
	// Fabric is open.
	Remove(ctx context.Context, name string) error
}

// Fabric is one network of this host. Its methods are idempotent and safe for
// concurrent use.
type Fabric interface {
	// Plug reserves a place for the port and lets its addresses, and no
	// others, pass. The device itself is made by the engine when the guest
	// starts, and goes with the guest.
	Plug(ctx context.Context, p Port) (Socket, error)
	// Unplug forgets the port named device and removes the device if it is
	// still there.
	Unplug(ctx context.Context, device string) error
	// Ports are the devices that are plugged, also by an earlier daemon, whose
	// names begin so. It is a look in memory.
	Ports(prefix string) []string
	// Forward makes the port forwards of this network be exactly these.
	Forward(ctx context.Context, all []Forward) error
	// Device is the host's own interface on the network.
	Device() string
	// Close stops what the daemon serves on the network (names); packets go
	// on flowing.
	Close() error
}

// Port is one guest's plug.
type Port struct {
	Device string // the host's end, at most 15 characters, unique on the host
	MAC    string
	IPv4   netip.Addr
	IPv6   netip.Addr
}

// Socket is where an engine connects the port.
type Socket struct {
	Master   string // the bridge that the device is to belong to
	MTU      int
	Gateway4 netip.Addr
	Gateway6 netip.Addr
	DNS      []netip.Addr
}

// Forward leads a port of the host to a port of a guest.
type Forward struct {
	Protocol string     // "tcp", "udp"
	Listen   netip.Addr // the zero Addr: every address of the host
	Port     uint16
	To4      netip.Addr
	To6      netip.Addr
	Target   uint16
}

// Names finds the addresses of a name on a network; the daemon provides it.
type Names interface {
	Lookup(network, name string) []netip.Addr
	// Reverse finds the name of an address on a network, or "".
	Reverse(network string, a netip.Addr) string
}
