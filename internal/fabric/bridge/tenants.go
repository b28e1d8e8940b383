package bridge

import (
	"net"
	"net/netip"
	"sync"
)

// tenants tells whose port a question came from. What is served on a network
// asks it while the network itself may be busy with the kernel.
type tenants struct {
	mu sync.RWMutex
	by map[netip.Addr]plug // by the link-local address of the port's MAC
}

// set makes these, and no others, the ports that are known.
func (t *tenants) set(ports map[string]plug) {
	by := make(map[netip.Addr]plug, len(ports))
	for _, p := range ports {
		by[linkLocal(p.mac)] = p
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.by = by
}

func (t *tenants) add(p plug) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.by == nil {
		t.by = map[netip.Addr]plug{}
	}
	t.by[linkLocal(p.mac)] = p
}

func (t *tenants) drop(p plug) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.by, linkLocal(p.mac))
}

// withMAC finds a port by what a DHCPv4 client calls itself. The guard lets a
// port name no other.
func (t *tenants) withMAC(mac net.HardwareAddr) (plug, bool) {
	if len(mac) != 6 {
		return plug{}, false
	}
	return t.at(linkLocal(mac))
}

// at finds a port by the link-local address that it sent from, which the guard
// holds it to.
func (t *tenants) at(from netip.Addr) (plug, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	p, ok := t.by[from.WithZone("")]
	return p, ok
}
