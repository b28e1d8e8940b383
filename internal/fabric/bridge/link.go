package bridge

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
)

// dump repeats a listing that the kernel says was disturbed, as happens while
// many guests start. Ten disturbances in a row are reported.
func dump[T any](list func() ([]T, error)) (out []T, err error) {
	for range 10 {
		if out, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return out, err
}

func listLinks() ([]netlink.Link, error) { return dump(netlink.LinkList) }

// ensureBridge makes dev a bridge that forwards from its first moment on, and
// returns its index. alias is set on creation and must be the same later: two
// networks whose names hash alike must not share a bridge.
func ensureBridge(dev, alias string, mtu int) (int, error) {
	link, err := netlink.LinkByName(dev)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		link, err = createBridge(dev, alias, mtu)
	}
	if err != nil {
		return 0, fmt.Errorf("bridge %s: %w", dev, err)
	}
	a := link.Attrs()
	if link.Type() != "bridge" || a.Alias != alias {
		return 0, &errs.Error{Kind: errs.Conflict, Field: "name",
			Msg:  fmt.Sprintf("the host already has a %s named %s that is not this network's", link.Type(), dev),
			Hint: "choose another name for the network, or remove that device"}
	}
	if a.MTU != mtu {
		if err := netlink.LinkSetMTU(link, mtu); err != nil {
			return 0, fmt.Errorf("set MTU of %s: %w", dev, err)
		}
	}
	if a.Flags&net.FlagUp == 0 {
		if err := netlink.LinkSetUp(link); err != nil {
			return 0, fmt.Errorf("bring up %s: %w", dev, err)
		}
	}
	return a.Index, nil
}

func createBridge(dev, alias string, mtu int) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = dev
	attrs.MTU = mtu
	// An address of its own: a bridge without one takes that of its lowest
	// port, and guests lose the gateway when that port goes.
	attrs.HardwareAddr = make(net.HardwareAddr, 6)
	if _, err := rand.Read(attrs.HardwareAddr); err != nil {
		return nil, err
	}
	attrs.HardwareAddr[0] = attrs.HardwareAddr[0]&^1 | 2
	off := false
	b := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &off}
	if err := netlink.LinkAdd(b); err != nil {
		return nil, err
	}
	if err := netlink.LinkSetAlias(b, alias); err != nil {
		return nil, errors.Join(err, netlink.LinkDel(b))
	}
	return netlink.LinkByName(dev)
}

// ensurePair joins a leaf bridge to the root.
func ensurePair(rootEnd, leafEnd string, root, leaf, mtu int) error {
	if _, err := netlink.LinkByName(rootEnd); errors.As(err, &netlink.LinkNotFoundError{}) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = rootEnd
		attrs.MTU = mtu
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: leafEnd}); err != nil {
			return fmt.Errorf("veth pair %s: %w", rootEnd, err)
		}
	} else if err != nil {
		return fmt.Errorf("veth pair %s: %w", rootEnd, err)
	}
	for dev, master := range map[string]int{rootEnd: root, leafEnd: leaf} {
		link, err := netlink.LinkByName(dev)
		if err != nil {
			return fmt.Errorf("veth pair %s: %w", rootEnd, err)
		}
		if link.Attrs().MasterIndex != master {
			if err := netlink.LinkSetMasterByIndex(link, master); err != nil {
				return fmt.Errorf("join %s to its bridge: %w", dev, err)
			}
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("bring up %s: %w", dev, err)
		}
	}
	return nil
}

// ensureAddrs gives the bridge these addresses and no other global ones.
func ensureAddrs(dev string, want []netip.Prefix) error {
	link, err := netlink.LinkByName(dev)
	if err != nil {
		return fmt.Errorf("bridge %s: %w", dev, err)
	}
	have, err := dump(func() ([]netlink.Addr, error) { return netlink.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("addresses of %s: %w", dev, err)
	}
	missing := map[netip.Prefix]bool{}
	for _, p := range want {
		missing[p] = true
	}
	for _, a := range have {
		ip, _ := netip.AddrFromSlice(a.IP)
		ones, _ := a.Mask.Size()
		p := netip.PrefixFrom(ip.Unmap(), ones)
		if missing[p] {
			delete(missing, p)
		} else if a.Scope == int(netlink.SCOPE_UNIVERSE) {
			if err := netlink.AddrDel(link, &a); err != nil {
				return fmt.Errorf("take %v from %s: %w", p, dev, err)
			}
		}
	}
	for p := range missing {
		a := &netlink.Addr{IPNet: ipNet(p)}
		if p.Addr().Is6() {
			// Nobody else can have it, and names are served on it at once.
			a.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrReplace(link, a); err != nil {
			return fmt.Errorf("give %v to %s: %w", p, dev, err)
		}
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// setNeighbours makes the host know the guests' addresses for good: no broadcast
// asks for them, and more than gc_thresh3 (1,024) of them are no overflow.
func setNeighbours(index int, mac net.HardwareAddr, addrs ...netip.Addr) error {
	for _, a := range addrs {
		if !a.IsValid() {
			continue
		}
		if err := netlink.NeighSet(neighbour(index, mac, a)); err != nil {
			return fmt.Errorf("neighbour %v: %w", a, err)
		}
	}
	return nil
}

func dropNeighbours(index int, mac net.HardwareAddr, addrs ...netip.Addr) error {
	for _, a := range addrs {
		if !a.IsValid() {
			continue
		}
		if err := netlink.NeighDel(neighbour(index, mac, a)); err != nil && !errors.Is(err, syscall.ENOENT) {
			return fmt.Errorf("neighbour %v: %w", a, err)
		}
	}
	return nil
}

func neighbour(index int, mac net.HardwareAddr, a netip.Addr) *netlink.Neigh {
	n := &netlink.Neigh{LinkIndex: index, Family: unix.AF_INET, State: netlink.NUD_PERMANENT,
		IP: a.AsSlice(), HardwareAddr: mac}
	if a.Is6() {
		n.Family = unix.AF_INET6
	}
	return n
}

// deleteLink removes a device; that it is gone already is no error.
func deleteLink(dev string) error {
	link, err := netlink.LinkByName(dev)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err != nil && !errors.Is(err, syscall.ENODEV) {
		return fmt.Errorf("remove %s: %w", dev, err)
	}
	return nil
}

// removeLinks takes away every bridge and pair of the network.
func removeLinks(nm names) error {
	list, err := listLinks()
	if err != nil {
		return fmt.Errorf("list devices: %w", err)
	}
	var failed []error
	for _, l := range list {
		a := l.Attrs()
		if nm.isPart(a.Name) && (l.Type() == "veth" || a.Alias == nm.note) {
			failed = append(failed, deleteLink(a.Name))
		}
	}
	return errors.Join(failed...)
}

// sysctl writes a value below /proc/sys unless it is there already.
func sysctl(path, value string) error {
	file := "/proc/sys/" + path
	have, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("sysctl: %w", err)
	}
	if strings.TrimSpace(string(have)) == value {
		return nil
	}
	if err := os.WriteFile(file, []byte(value), 0o644); err != nil {
		return fmt.Errorf("sysctl: %w", err)
	}
	return nil
}

// hostForwards makes the host a router. For IPv6 that would switch off the
// acceptance of router advertisements on every interface, so those that accept
// them now are told to go on (2).
func hostForwards(v4, v6 bool) error {
	if v4 {
		if err := sysctl("net/ipv4/ip_forward", "1"); err != nil {
			return err
		}
	}
	if !v6 {
		return nil
	}
	const conf = "/proc/sys/net/ipv6/conf/"
	devs, err := os.ReadDir(conf)
	if err != nil {
		return &errs.Error{Kind: errs.Unsupported, Field: "ipv6", Err: err,
			Msg: "this host has no IPv6", Hint: "make the network without an IPv6 range"}
	}
	for _, e := range devs {
		dev := conf + e.Name() + "/"
		ra, err1 := os.ReadFile(dev + "accept_ra")
		fw, err2 := os.ReadFile(dev + "forwarding")
		if err1 != nil || err2 != nil || e.Name() == "lo" {
			continue
		}
		if strings.TrimSpace(string(ra)) == "1" && strings.TrimSpace(string(fw)) == "0" {
			if err := os.WriteFile(dev+"accept_ra", []byte("2"), 0o644); err != nil {
				return fmt.Errorf("sysctl: %w", err)
			}
		}
	}
	return sysctl("net/ipv6/conf/all/forwarding", "1")
}

// bridgeSysctls sets what concerns the root bridge alone. route_localnet lets
// the host's own 127.0.0.1:PORT lead to a guest; the "raw" chain keeps guests
// from using it the other way round (CVE-2020-8558).
func bridgeSysctls(dev string, v4, v6 bool) error {
	if v4 {
		if err := sysctl("net/ipv4/conf/"+dev+"/route_localnet", "1"); err != nil {
			return err
		}
	}
	if !v6 {
		return nil
	}
	// Nobody else can have the bridge's addresses, and a router must not be
	// advertised from one that is still being probed.
	for _, kv := range [][2]string{{"disable_ipv6", "0"}, {"accept_ra", "0"}, {"autoconf", "0"}, {"dad_transmits", "0"}} {
		if err := sysctl("net/ipv6/conf/"+dev+"/"+kv[0], kv[1]); err != nil {
			return err
		}
	}
	return nil
}
