package bridge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"lodge/internal/base/errs"
	"lodge/internal/fabric"
	"lodge/internal/model/network"
)

// A Linux bridge takes 1,023 ports. The root keeps some free for leaves: with
// these numbers it ends at 100 leaves, or 100,900 guests.
const (
	rootPorts = 900
	leafPorts = 1000
	leaves    = 100
)

// Network is one network of this host, open.
type Network struct {
	d     *Driver
	name  string
	names names
	log   *slog.Logger

	mu       sync.Mutex
	spec     network.Spec
	nft      *nft
	index    int // of the root bridge
	ports    map[string]plug
	count    map[string]int // ports by bridge
	forwards []fabric.Forward
	resolver *resolver
	hairpin  *hairpin
	lender   *lender
	who      tenants
}

var _ fabric.Fabric = (*Network)(nil)

// ensure does the work of Driver.Ensure, which see.
func (n *Network) ensure(_ context.Context, spec network.Spec) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := hostForwards(spec.IPv4.IsValid(), spec.IPv6.IsValid()); err != nil {
		return err
	}
	index, err := ensureBridge(n.names.root, n.names.note, n.d.opt.MTU)
	if err != nil {
		return err
	}
	n.index, n.spec = index, spec
	if err := bridgeSysctls(n.names.root, spec.IPv4.IsValid(), spec.IPv6.IsValid()); err != nil {
		return err
	}
	var own []netip.Prefix
	for _, p := range []netip.Prefix{spec.IPv4, spec.IPv6} {
		if p.IsValid() {
			own = append(own, netip.PrefixFrom(network.Gateway(p), p.Bits()))
		}
	}
	if err := ensureAddrs(n.names.root, own); err != nil {
		return err
	}
	if n.nft == nil {
		if n.nft, err = openNFT(); err != nil {
			return err
		}
	}
	if err := n.ensureTables(); err != nil {
		return err
	}
	if err := n.load(); err != nil {
		return err
	}
	if err := n.nft.plant(n.names); err != nil {
		// Others' firewalls are theirs: Obstacles says what is in the way.
		n.log.Warn("cannot ask this host's firewall to let guests through", "err", err)
	}
	return n.serve()
}

func (n *Network) ensureTables() error {
	return n.nft.batch("write tables of "+n.name, func(c *nftables.Conn) error {
		return errors.Join(guard(c, n.names.table), nat(c, n.names, n.spec))
	})
}

// load reads what is plugged from the kernel, and makes the bridges and
// neighbours those ports need.
func (n *Network) load() error {
	n.nft.mu.Lock()
	elems, err := n.nft.conn.GetSetElements(guardSet(guardTable(n.names.table), setPorts))
	n.nft.mu.Unlock()
	if err != nil {
		return fmt.Errorf("nf_tables: list ports of %s: %w", n.name, err)
	}
	n.ports, n.count = map[string]plug{}, map[string]int{}
	for _, e := range elems {
		p, err := parsePlug(e.Comment)
		if err != nil {
			return err
		}
		n.ports[strings.TrimRight(string(e.Key), "\x00")] = p
		n.count[p.master]++
	}
	n.who.set(n.ports)
	for i := 1; i <= leaves; i++ {
		if n.count[n.names.leaf(i)] > 0 {
			if err := n.ensureLeaf(i); err != nil {
				return err
			}
		}
	}
	return n.ensureNeighbours()
}

// ensureNeighbours adds those that are missing: a bridge that was down forgot
// them all.
func (n *Network) ensureNeighbours() error {
	have, err := dump(func() ([]netlink.Neigh, error) { return netlink.NeighList(n.index, 0) })
	if err != nil {
		return fmt.Errorf("list neighbours: %w", err)
	}
	known := map[string]bool{}
	for _, h := range have {
		if h.State == netlink.NUD_PERMANENT {
			known[h.IP.String()+h.HardwareAddr.String()] = true
		}
	}
	for _, p := range n.ports {
		for _, a := range []netip.Addr{p.v4, p.v6} {
			if a.IsValid() && !known[a.String()+p.mac.String()] {
				if err := setNeighbours(n.index, p.mac, a); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (n *Network) ensureLeaf(i int) error {
	leaf, err := ensureBridge(n.names.leaf(i), n.names.note, n.d.opt.MTU)
	if err != nil {
		return err
	}
	// A leaf only switches: the host has no address there, and must not claim
	// on it those that it has elsewhere (8: answer no ARP request).
	if err := sysctl("net/ipv4/conf/"+n.names.leaf(i)+"/arp_ignore", "8"); err != nil {
		return err
	}
	if err := sysctl("net/ipv6/conf/"+n.names.leaf(i)+"/disable_ipv6", "1"); err != nil && n.spec.IPv6.IsValid() {
		return err
	}
	return ensurePair(n.names.rootEnd(i), n.names.leafEnd(i), n.index, leaf, n.d.opt.MTU)
}

// place chooses the bridge of a new port: the first with room.
func (n *Network) place() (string, error) {
	if n.count[n.names.root] < rootPorts {
		return n.names.root, nil
	}
	for i := 1; i <= leaves; i++ {
		leaf := n.names.leaf(i)
		if n.count[leaf] == 0 {
			if err := n.ensureLeaf(i); err != nil {
				return "", err
			}
		}
		if n.count[leaf] < leafPorts {
			return leaf, nil
		}
	}
	return "", &errs.Error{Kind: errs.NoSpace, Msg: "the network has no port left", Hint: "make another network"}
}

// Plug lets the port's addresses pass and says which bridge its device belongs
// to. A port that is plugged already keeps its bridge, so that a device that
// exists is not torn from it; if its addresses changed, the old ones end.
func (n *Network) Plug(_ context.Context, p fabric.Port) (fabric.Socket, error) {
	want, err := plugOf(p)
	if err != nil {
		return fabric.Socket{}, wrap("network.plug", n.name, err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.nft == nil {
		return fabric.Socket{}, n.closed("network.plug")
	}
	old, plugged := n.ports[p.Device]
	if plugged && old.same(want) {
		return n.socket(old.master), nil
	}
	if err := n.fits(want); err != nil {
		return fabric.Socket{}, wrap("network.plug", n.name, err)
	}
	want.master = old.master
	if !plugged {
		if want.master, err = n.place(); err != nil {
			return fabric.Socket{}, wrap("network.plug", n.name, err)
		}
	} else if err := dropNeighbours(n.index, old.mac, old.v4, old.v6); err != nil {
		return fabric.Socket{}, wrap("network.plug", n.name, err)
	}
	err = n.nft.batch("plug "+p.Device, func(c *nftables.Conn) error {
		if plugged {
			if err := n.queue(c.SetDeleteElements, old.elements(p.Device)); err != nil {
				return err
			}
		}
		return n.queue(c.SetAddElements, want.elements(p.Device))
	})
	if err == nil {
		if !plugged {
			n.count[want.master]++
		}
		n.ports[p.Device] = want
		if plugged {
			n.who.drop(old)
		}
		n.who.add(want)
		err = setNeighbours(n.index, want.mac, want.v4, want.v6)
		if n.isTarget(want) {
			n.hairpin.want(n.targets())
		}
	}
	if err != nil {
		return fabric.Socket{}, wrap("network.plug", n.name, err)
	}
	return n.socket(want.master), nil
}

// fits refuses addresses that are the gateway's or outside the network. Whose
// they are among guests is the caller's to know.
func (n *Network) fits(p plug) error {
	for _, c := range []struct {
		field  string
		addr   netip.Addr
		prefix netip.Prefix
	}{{"ipv4", p.v4, n.spec.IPv4}, {"ipv6", p.v6, n.spec.IPv6}} {
		switch {
		case !c.addr.IsValid():
		case !c.prefix.IsValid() || !c.prefix.Contains(c.addr):
			return errs.Bad(c.field, fmt.Sprintf("%v is outside the network's range %v", c.addr, c.prefix), "")
		case c.addr == network.Gateway(c.prefix):
			return errs.Bad(c.field, fmt.Sprintf("%v is the gateway's address", c.addr), "")
		}
	}
	return nil
}

func (n *Network) queue(op func(*nftables.Set, []nftables.SetElement) error, elems map[string][]nftables.SetElement) error {
	for _, set := range slices.Sorted(maps.Keys(elems)) {
		if err := op(guardSet(guardTable(n.names.table), set), elems[set]); err != nil {
			return err
		}
	}
	return nil
}

func (n *Network) socket(master string) fabric.Socket {
	s := fabric.Socket{Master: master, MTU: n.d.opt.MTU}
	if n.spec.IPv4.IsValid() {
		s.Gateway4 = network.Gateway(n.spec.IPv4)
		s.DNS = append(s.DNS, s.Gateway4)
	}
	if n.spec.IPv6.IsValid() {
		s.Gateway6 = network.Gateway(n.spec.IPv6)
		s.DNS = append(s.DNS, s.Gateway6)
	}
	return s
}

// Unplug forgets the port and removes its device, the device first: while it
// is there its sender must be checked.
func (n *Network) Unplug(_ context.Context, device string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.nft == nil {
		return n.closed("network.unplug")
	}
	old, ok := n.ports[device]
	if !ok {
		return nil
	}
	if err := deleteLink(device); err != nil {
		return wrap("network.unplug", n.name, err)
	}
	if err := dropNeighbours(n.index, old.mac, old.v4, old.v6); err != nil {
		return wrap("network.unplug", n.name, err)
	}
	err := n.nft.batch("unplug "+device, func(c *nftables.Conn) error {
		return n.queue(c.SetDeleteElements, old.elements(device))
	})
	if err != nil {
		return wrap("network.unplug", n.name, err)
	}
	delete(n.ports, device)
	n.who.drop(old)
	n.count[old.master]--
	return nil
}

// Ports are the devices of ports whose names begin so.
func (n *Network) Ports(prefix string) (all []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for device := range n.ports {
		if strings.HasPrefix(device, prefix) {
			all = append(all, device)
		}
	}
	return all
}

// Forward replaces the network's port forwards in one transaction. One whose
// port another program has is left out; the others are set, and the error is
// the Conflict that names it.
func (n *Network) Forward(_ context.Context, all []fabric.Forward) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.nft == nil {
		return n.closed("network.forward")
	}
	var set []fabric.Forward
	var refused error
	for _, f := range all {
		err := n.admit(set, f)
		if err == nil {
			set = append(set, f)
		} else if refused == nil {
			refused = err
		}
	}
	elems := forwardElements(set)
	err := n.nft.batch("forward ports of "+n.name, func(c *nftables.Conn) error {
		for _, name := range []string{mapAny4, mapAny6, mapOne4, mapOne6} {
			m := natMap(natTable(n.names.table), name)
			c.FlushSet(m)
			if len(elems[name]) == 0 {
				continue
			}
			if err := c.SetAddElements(m, elems[name]); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return wrap("network.forward", n.name, err)
	}
	n.forwards = set
	n.hairpin.want(n.targets())
	return wrap("network.forward", n.name, refused)
}

// admit checks a forward against those chosen before it and against the
// programs of the host. One that is in force was checked when it was made.
func (n *Network) admit(set []fabric.Forward, f fabric.Forward) error {
	if f.Target == 0 {
		return errs.Bad("target", "port 0 cannot be forwarded to", "choose one from 1 to 65535")
	}
	if f.Listen == netip.IPv6Loopback() {
		return &errs.Error{Kind: errs.Unsupported, Field: "listen", Msg: "a port of ::1 cannot be forwarded",
			Hint: "listen on 127.0.0.1, or on every address"}
	}
	for _, o := range set {
		if o.Protocol == f.Protocol && o.Listen == f.Listen && o.Port == f.Port {
			return &errs.Error{Kind: errs.Conflict, Field: "port",
				Msg: fmt.Sprintf("port %d/%s is forwarded twice", f.Port, f.Protocol)}
		}
	}
	if slices.Contains(n.forwards, f) {
		return nil
	}
	return PortFree(f.Protocol, f.Listen, f.Port)
}

// targets are the devices that forwards lead to.
func (n *Network) targets() map[string]bool {
	out := map[string]bool{}
	for dev, p := range n.ports {
		if n.isTarget(p) {
			out[dev] = true
		}
	}
	return out
}

func (n *Network) isTarget(p plug) bool {
	return slices.ContainsFunc(n.forwards, func(f fabric.Forward) bool {
		return p.v4.IsValid() && p.v4 == f.To4 || p.v6.IsValid() && p.v6 == f.To6
	})
}

// Device is the root bridge.
func (n *Network) Device() string { return n.names.root }

// Close stops serving names; packets go on flowing, and the next Ensure opens
// the network again.
func (n *Network) Close() error {
	n.d.mu.Lock()
	if n.d.open[n.name] == n {
		delete(n.d.open, n.name)
	}
	n.d.mu.Unlock()
	return n.stop()
}

func (n *Network) stop() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	var failed []error
	if n.hairpin != nil {
		n.hairpin.close()
		n.hairpin = nil
	}
	if n.resolver != nil {
		failed = append(failed, n.resolver.close())
		n.resolver = nil
	}
	if n.lender != nil {
		failed = append(failed, n.lender.close())
		n.lender = nil
	}
	if n.nft != nil {
		failed = append(failed, n.nft.close())
		n.nft = nil
	}
	return errors.Join(failed...)
}

func (n *Network) closed(op string) error {
	return &errs.Error{Op: op, Kind: errs.Unavailable, Ref: "network/" + n.name, Msg: "the network is closed"}
}

// serve starts what the daemon itself does on the network.
func (n *Network) serve() error {
	if n.hairpin == nil {
		h, err := watchHairpin(n.log)
		if err != nil {
			return err
		}
		n.hairpin = h
	}
	if err := n.serveAddresses(); err != nil {
		// Guests that are given their addresses by Lodge need none of it.
		n.log.Warn("guests that ask for their addresses get none", "err", err)
	}
	if n.resolver != nil && n.resolver.zone.matches(n.spec) {
		return nil
	}
	if n.resolver != nil {
		if err := n.resolver.close(); err != nil {
			return err
		}
		n.resolver = nil
	}
	r, err := serveNames(newZone(n.name, n.spec, n.d.opt.Names), n.d.opt.ResolvConf, n.log)
	if err != nil {
		return err
	}
	n.resolver = r
	return nil
}

// serveAddresses answers DHCP and advertises the router, in the terms of the
// present spec.
func (n *Network) serveAddresses() error {
	dev, err := net.InterfaceByIndex(n.index)
	if err != nil {
		return err
	}
	t := newTerms(n.name, n.spec, n.d.opt.MTU, dev.HardwareAddr, n.d.opt.Names)
	if n.lender != nil {
		if n.lender.matches(n.index, t) {
			return nil
		}
		err, n.lender = n.lender.close(), nil
		if err != nil {
			return err
		}
	}
	n.lender, err = lend(n.names.root, n.index, t, &n.who, n.log)
	return err
}
