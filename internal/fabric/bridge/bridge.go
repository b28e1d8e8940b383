// Package bridge is the network driver for a Linux bridge of the host's own:
// addresses, names, a way out through NAT, and ports that can only speak for
// themselves.
//
// One network is one root bridge, which holds the gateway's addresses. A Linux
// bridge ends at 1,023 ports, so further guests are plugged into leaf bridges,
// each joined to the root by a veth pair. The rules live in two nftables
// tables per network, "inet PREFIX_NAME" and "bridge PREFIX_NAME"; what is
// plugged is remembered in the sets of the latter, so a daemon that starts
// again finds it there.
//
// Port forwards are translated by the kernel alone. Two ways stay closed: [::1]
// as the host's address (Linux takes no answer for ::1 from another device),
// and, where br_netfilter is on, from a guest on a leaf through the host's port
// to a guest on the same leaf.
package bridge

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"

	"lodge/internal/base/errs"
	"lodge/internal/fabric"
	"lodge/internal/model/network"
)

// Options are what a Driver needs from the daemon.
type Options struct {
	Prefix     string       // of device and table names, at most 5 characters; "lodge" if empty
	Names      fabric.Names // may be nil: then no guest has a name
	Log        *slog.Logger // nil: nowhere
	ResolvConf string       // where the host's resolvers are listed; "/etc/resolv.conf" if empty
	MTU        int          // of bridges and ports, in bytes; 1500 if zero
}

// Driver makes networks in the network namespace it runs in.
type Driver struct {
	opt Options

	mu   sync.Mutex
	open map[string]*Network
}

var _ fabric.Driver = (*Driver)(nil)

// New returns the driver; it touches nothing yet.
func New(o Options) *Driver {
	if o.Prefix == "" {
		o.Prefix = fabric.Prefix
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.ResolvConf == "" {
		o.ResolvConf = "/etc/resolv.conf"
	}
	if o.MTU == 0 {
		o.MTU = 1500
	}
	return &Driver{opt: o, open: map[string]*Network{}}
}

// Name is what a network's spec calls this driver.
func (d *Driver) Name() string { return "bridge" }

// names are what the parts of one network are called in the kernel.
type names struct {
	root  string // the bridge with the gateway's addresses
	tag   string // begins the name of everything else: "lodgeab12c"
	table string
	note  string // on rules in other people's tables, and the root's alias
	all   string // begins the device names of every network of this host
}

// namesOf fits a network's name into the kernel's 15 characters. A name that
// is too long for that is told apart by its hash.
func namesOf(prefix, network string) names {
	sum := sha256.Sum256([]byte(network))
	tag := prefix + hex.EncodeToString(sum[:])[:5]
	n := names{
		root:  prefix + "-" + network,
		tag:   tag,
		table: prefix + "_" + network,
		note:  prefix + " network " + network,
		all:   prefix,
	}
	if len(n.root) > 15 {
		n.root = tag + "r"
	}
	return n
}

// leaves begins the names of all leaf bridges.
func (n names) leaves() string         { return n.tag + "b" }
func (n names) leaf(i int) string      { return fmt.Sprintf("%s%d", n.leaves(), i) }
func (n names) rootEnd(i int) string   { return fmt.Sprintf("%su%d", n.tag, i) }
func (n names) leafEnd(i int) string   { return fmt.Sprintf("%sd%d", n.tag, i) }
func (n names) isPart(dev string) bool { return dev == n.root || strings.HasPrefix(dev, n.tag) }

// Ensure makes the host's network match spec and serves its names. The Fabric
// of a network that is open already is brought up to date and returned again.
func (d *Driver) Ensure(ctx context.Context, name string, spec network.Spec) (fabric.Fabric, error) {
	if err := d.check(name, spec); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.open[name]
	fresh := n == nil
	if fresh {
		n = &Network{d: d, name: name, names: namesOf(d.opt.Prefix, name), log: d.opt.Log.With("network", name)}
	}
	if err := n.ensure(ctx, spec); err != nil {
		if fresh {
			err = errors.Join(err, n.stop())
		}
		return nil, wrap("network.ensure", name, err)
	}
	d.open[name] = n
	return n, nil
}

func (d *Driver) check(name string, spec network.Spec) error {
	if len(d.opt.Prefix) > 5 {
		return errs.Bad("prefix", fmt.Sprintf("%q is longer than 5 characters", d.opt.Prefix), "")
	}
	if name == "" || strings.ContainsAny(name, "/ \x00\n") {
		return errs.Bad("name", fmt.Sprintf("%q cannot name a network", name), "")
	}
	if !spec.IPv4.IsValid() && !spec.IPv6.IsValid() {
		return errs.Bad("ipv4", "a network needs an address range", "such as 10.77.0.0/16")
	}
	if p := spec.IPv4; p.IsValid() && (!p.Addr().Is4() || p.Bits() > 29) {
		return errs.Bad("ipv4", fmt.Sprintf("%v is no IPv4 range with room for guests", p), "such as 10.77.0.0/16")
	}
	if p := spec.IPv6; p.IsValid() && (!p.Addr().Is6() || p.Addr().Is4In6() || p.Bits() > 120) {
		return errs.Bad("ipv6", fmt.Sprintf("%v is no IPv6 range with room for guests", p), "such as fd12:3456:789a::/64")
	}
	return nil
}

// Remove takes away every device, table and rule of the network, whether or
// not it is open here, and whoever made it.
func (d *Driver) Remove(_ context.Context, name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var failed []error
	if n := d.open[name]; n != nil {
		delete(d.open, name)
		failed = append(failed, n.stop())
	}
	nm := namesOf(d.opt.Prefix, name)
	c, err := openNFT()
	if err != nil {
		return wrap("network.remove", name, err)
	}
	defer c.close()
	failed = append(failed, c.withdraw(nm.note), c.deleteTables(nm.table), removeLinks(nm))
	return wrap("network.remove", name, errors.Join(failed...))
}

// Routes lists the destinations this host has routes to, for fabric.Pick.
func Routes() ([]netip.Prefix, error) {
	list, err := dump(func() ([]netlink.Route, error) { return netlink.RouteList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	var out []netip.Prefix
	for _, r := range list {
		if r.Dst == nil {
			continue
		}
		a, ok := netip.AddrFromSlice(r.Dst.IP)
		if ones, bits := r.Dst.Mask.Size(); ok && bits > 0 {
			out = append(out, netip.PrefixFrom(a.Unmap(), ones))
		}
	}
	return out, nil
}

// wrap gives err the operation and the network, keeping the kind that an inner
// error chose.
func wrap(op, name string, err error) error {
	if err == nil {
		return nil
	}
	out := &errs.Error{Op: op, Kind: errs.KindOf(err), Ref: "network/" + name, Err: err}
	if inner, ok := errors.AsType[*errs.Error](err); ok {
		out.Msg, out.Field, out.Hint, out.Err = inner.Msg, inner.Field, inner.Hint, inner.Err
	}
	return out
}
