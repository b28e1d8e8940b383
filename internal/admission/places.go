package admission

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"lodge/internal/base/errs"
	"lodge/internal/model"
	"lodge/internal/model/guest"
	"lodge/internal/model/network"
	"lodge/internal/model/operation"
	"lodge/internal/model/pool"
	"lodge/internal/store"
	"lodge/internal/store/tables"
)

// minPool is the smallest file system that btrfs makes without mixing its
// block groups, with some room to work.
const minPool = 256 << 20

// checkDriver says whether a driver may be asked for.
func checkDriver(name string, all []Driver) error {
	var names []string
	for _, dr := range all {
		if dr.Name == name {
			if dr.Missing != "" {
				return &errs.Error{Kind: errs.Unsupported, Field: "driver", Msg: dr.Missing, Hint: dr.Hint}
			}
			return nil
		}
		names = append(names, dr.Name)
	}
	return errs.Bad("driver", fmt.Sprintf("%q is not a driver", name), "use one of: "+strings.Join(names, ", "))
}

// create makes a record of a kind that nobody else creates.
func create[S, T any](ctx context.Context, d *Door, by string, t *store.Table[S, T], kind model.Kind, name string, spec S) (Operation, error) {
	return d.transact(ctx, by, string(kind)+".create", func(tx *store.Tx) ([]operation.Subject, error) {
		if _, err := t.Get(name); err == nil {
			return nil, &errs.Error{Kind: errs.Exists, Ref: string(kind) + "/" + name, Field: "name", Msg: "exists already", Hint: "choose another name"}
		}
		r := t.CreateIn(tx, name, spec)
		return []operation.Subject{subject(kind, r.Meta)}, nil
	})
}

// CreatePool asks for a place for guests' writable layers.
func (d *Door) CreatePool(ctx context.Context, by, name string, s pool.Spec) (Operation, error) {
	if err := d.checkPool(name, s); err != nil {
		return Operation{}, err
	}
	return create(ctx, d, by, d.Tables.Pools, pool.Kind, name, s)
}

func (d *Door) checkPool(name string, s pool.Spec) error {
	if err := model.CheckName("name", name); err != nil {
		return err
	}
	if err := checkDriver(s.Driver, d.PoolDrivers()); err != nil {
		return err
	}
	switch {
	case s.Source != "" && (!filepath.IsAbs(s.Source) || filepath.Clean(s.Source) != s.Source || s.Source == "/"):
		return errs.Bad("source", fmt.Sprintf("%q is not a clean absolute path", s.Source), "give a directory or block device such as /srv/guests")
	case s.Source != "" && s.Size != 0:
		return errs.Bad("size_bytes", "is only for a file that Lodge makes", "leave out the size or the source")
	case s.Size != 0 && (s.Size < minPool || s.Size > maxDisk):
		return errs.Bad("size_bytes", fmt.Sprintf("%d is out of range", s.Size), "give at least 256MiB")
	}
	for _, o := range d.Tables.Pools.List() {
		if s.Source != "" && o.Spec.Source == s.Source && o.Name != name {
			return &errs.Error{Kind: errs.Conflict, Field: "source", Ref: "pool/" + o.Name, Msg: "lies there already", Hint: "give another place"}
		}
	}
	return nil
}

// RemovePool asks that a pool be no more. One with guests on it is refused.
func (d *Door) RemovePool(ctx context.Context, by, name string) (Operation, error) {
	return remove(ctx, d, by, d.Tables.Pools, pool.Kind, name, func(tables.PoolRecord) error {
		return d.unused("pool/"+name, "remove them first: lodge rm", func(g tables.GuestRecord) bool { return g.Spec.Pool == name })
	})
}

// NetworkWish asks for a network. Prefixes are text: empty is "choose one",
// "none" is no such family.
type NetworkWish struct {
	Name, Driver, IPv4, IPv6 string
	NAT                      *bool // nil: true
	Domain                   string
}

// none is how a person says that there shall be no addresses of a family.
const none = "none"

// CreateNetwork asks for a switch of the host's own.
func (d *Door) CreateNetwork(ctx context.Context, by string, w NetworkWish) (Operation, error) {
	s, err := d.networkSpec(w)
	if err != nil {
		return Operation{}, err
	}
	return create(ctx, d, by, d.Tables.Networks, network.Kind, w.Name, s)
}

func (d *Door) networkSpec(w NetworkWish) (network.Spec, error) {
	s := network.Spec{Driver: w.Driver, NAT: w.NAT == nil || *w.NAT, Domain: w.Domain}
	if err := model.CheckName("name", w.Name); err != nil {
		return s, err
	}
	if s.Driver == "" {
		s.Driver = "bridge"
	}
	if err := checkDriver(s.Driver, d.NetworkDrivers()); err != nil {
		return s, err
	}
	if s.Domain == "" {
		s.Domain = "lodge.internal"
	}
	for part := range strings.SplitSeq(s.Domain, ".") {
		if model.CheckName("domain", part) != nil || len(s.Domain) > 200 {
			return s, errs.Bad("domain", fmt.Sprintf("%q is not a domain", s.Domain), "use one such as lodge.internal")
		}
	}
	taken := d.takenPrefixes(w.Name)
	var err error
	if s.IPv4, err = choosePrefix("ipv4", w.IPv4, taken, parseIPv4, freeIPv4); err != nil {
		return s, err
	}
	s.IPv6, err = choosePrefix("ipv6", w.IPv6, taken, parseIPv6, randomULA)
	return s, err
}

// takenPrefixes are those that the network called name must stay clear of. Its
// own are not: the host has routes to them when it is there already.
func (d *Door) takenPrefixes(name string) []netip.Prefix {
	var all, own []netip.Prefix
	for _, n := range d.Tables.Networks.List() {
		if n.Name == name {
			own = []netip.Prefix{n.Spec.IPv4, n.Spec.IPv6}
		} else {
			all = append(all, n.Spec.IPv4, n.Spec.IPv6)
		}
	}
	if d.HostPrefixes == nil {
		return all
	}
	for _, p := range d.HostPrefixes() {
		if !slices.Contains(own, p) {
			all = append(all, p)
		}
	}
	return all
}

func choosePrefix(field, text string, taken []netip.Prefix, parse func(string) (netip.Prefix, error), fresh func([]netip.Prefix) (netip.Prefix, error)) (netip.Prefix, error) {
	switch text {
	case none:
		return netip.Prefix{}, nil
	case "":
		return fresh(taken)
	}
	p, err := parse(text)
	if err != nil {
		return p, err
	}
	if i := slices.IndexFunc(taken, p.Overlaps); i >= 0 {
		return p, &errs.Error{Kind: errs.Conflict, Field: field, Msg: fmt.Sprintf("%s overlaps %s, which the host has already", p, taken[i]), Hint: "give another prefix, or leave it out to have one chosen"}
	}
	return p, nil
}

func parseIPv4(text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	switch {
	case err != nil || !p.Addr().Is4() || p.Masked() != p:
		return p, errs.Bad("ipv4", fmt.Sprintf("%q is not an IPv4 prefix", text), "write it as 10.68.0.0/16, host bits zero")
	case p.Bits() < 8 || p.Bits() > 29:
		return p, errs.Bad("ipv4", fmt.Sprintf("/%d is not a size for a network of guests", p.Bits()), "use /8 to /29")
	case !p.Addr().IsPrivate() && !sharedSpace(p.Addr()):
		return p, errs.Bad("ipv4", fmt.Sprintf("%s is not private", p), "use a part of 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 or 100.64.0.0/10")
	}
	return p, nil
}

// sharedSpace reports whether a is in the shared address space of RFC 6598.
func sharedSpace(a netip.Addr) bool {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64}), 10).Contains(a)
}

func parseIPv6(text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	switch {
	case err != nil || !p.Addr().Is6() || p.Addr().Is4In6() || p.Masked() != p:
		return p, errs.Bad("ipv6", fmt.Sprintf("%q is not an IPv6 prefix", text), "write it as fd12:3456:789a:1::/64, host bits zero")
	case p.Bits() < 48 || p.Bits() > 120:
		return p, errs.Bad("ipv6", fmt.Sprintf("/%d is not a size for a network of guests", p.Bits()), "use /64")
	case !p.Addr().IsPrivate() && !p.Addr().IsGlobalUnicast():
		return p, errs.Bad("ipv6", fmt.Sprintf("%s is not for hosts", p), "use a part of fd00::/8")
	}
	return p, nil
}

// freeIPv4 chooses a /16 of 10.0.0.0/8, from 10.67.0.0/16 on: far from what
// routers and container engines choose first.
func freeIPv4(taken []netip.Prefix) (netip.Prefix, error) {
	for i := range 256 {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(67 + i)}), 16)
		if !slices.ContainsFunc(taken, p.Overlaps) {
			return p, nil
		}
	}
	return netip.Prefix{}, &errs.Error{Kind: errs.NoSpace, Field: "ipv4", Msg: "no /16 of 10.0.0.0/8 is free", Hint: "give a prefix yourself"}
}

// randomULA chooses a /64 of a random 40-bit global id (RFC 4193, 3.2).
func randomULA([]netip.Prefix) (netip.Prefix, error) {
	b := [16]byte{0xfd}
	rand.Read(b[1:6])
	return netip.PrefixFrom(netip.AddrFrom16(b), 64), nil
}

// RemoveNetwork asks that a network be no more. One with guests on it is
// refused.
func (d *Door) RemoveNetwork(ctx context.Context, by, name string) (Operation, error) {
	return remove(ctx, d, by, d.Tables.Networks, network.Kind, name, func(tables.NetworkRecord) error {
		return d.unused("network/"+name, "remove them first: lodge rm", func(g tables.GuestRecord) bool {
			return slices.ContainsFunc(g.Spec.NICs, func(n guest.NIC) bool { return n.Network == name })
		})
	})
}
