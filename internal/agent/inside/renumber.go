package inside

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"lodge/internal/agent"
)

// renumber makes the cards, which may have been another guest's, those of
// nics: addresses of the other guest go. Those of had that are to go are
// switched off, because some kernels take away none that is in use.
//
// Somebody waits for it, in a guest whose every first step may have to be
// translated: a card that is there and in use keeps what it has.
func renumber(had, nics []agent.NIC) error {
	w, err := openWire()
	if err != nil {
		return err
	}
	defer w.close()
	if err := w.retire(had, nics); err != nil {
		return err
	}
	all, via := true, map[bool]bool{}
	for _, n := range nics {
		l, err := w.find(n.Name)
		if err != nil {
			all = false // it has only just been plugged, and is known by its address
			continue
		}
		if err := w.adopt(n, &l); err != nil {
			return fmt.Errorf("network card %s: %w", n.Name, err)
		}
		if !l.up || !isAmong(had, n.Name) || n.MTU > 0 && n.MTU != l.mtu {
			all = false
		}
		if !all {
			continue
		}
		if err := w.furnish(n, l.index, via); err != nil {
			return fmt.Errorf("network card %s: %w", n.Name, err)
		}
	}
	if all {
		return nil
	}
	return configureNetwork(nics)
}

// retire switches off the cards of had that are not to be any more.
func (w *wire) retire(had, nics []agent.NIC) error {
	for _, n := range had {
		l, err := w.find(n.Name)
		if err != nil || isAmong(nics, n.Name) {
			continue
		}
		if err := w.set(l.index, 0, unix.IFF_UP, ""); err != nil {
			return fmt.Errorf("network card %s: %w", n.Name, err)
		}
	}
	return nil
}

func isAmong(nics []agent.NIC, name string) bool {
	return slices.ContainsFunc(nics, func(n agent.NIC) bool { return n.Name == name })
}

// adopt gives a card its hardware address, which the host may have changed
// already, and takes the addresses from it that are not n's.
func (w *wire) adopt(n agent.NIC, l *link) error {
	mac, err := parseMAC(n.MAC)
	if err != nil {
		return err
	}
	old := l.mac
	if err := w.readdress(l, mac); err != nil {
		return fmt.Errorf("hardware address %s: %w", n.MAC, err)
	}
	all, err := w.addresses()
	if err != nil {
		return err
	}
	for _, a := range all {
		ip := a.prefix.Addr()
		stale := ip == linkLocal(old) && !bytes.Equal(old, l.mac)
		if a.index != l.index || !stale && (ip.IsLinkLocalUnicast() || wanted(n, a.prefix)) {
			continue
		}
		if err := w.drop(l.index, a.prefix); err != nil {
			return fmt.Errorf("address %s: %w", a.prefix, err)
		}
		if !stale || !l.up {
			continue
		}
		own := netip.PrefixFrom(linkLocal(l.mac), a.prefix.Bits())
		if err := w.address(l.index, own); err != nil {
			return fmt.Errorf("address %s: %w", own, err)
		}
	}
	return nil
}

// readdress gives a card another hardware address, if it can be while the card
// is in use: that costs less than to switch it off and on.
func (w *wire) readdress(l *link, mac []byte) error {
	if bytes.Equal(l.mac, mac) {
		return nil
	}
	change := func() error {
		m := newMessage(unix.RTM_NEWLINK, 0, ifinfo(l.index, 0, 0))
		m.attr(unix.IFLA_ADDRESS, mac)
		return w.ask(m)
	}
	err := change()
	if errors.Is(err, unix.EBUSY) && l.up {
		l.up = false
		if err = w.set(l.index, 0, unix.IFF_UP, ""); err == nil {
			err = change()
		}
	}
	if err == nil {
		l.mac = mac
	}
	return err
}

// linkLocal is the address that a card makes itself out of its hardware address
// (RFC 4291, appendix A), or none.
func linkLocal(mac []byte) netip.Addr {
	if len(mac) != 6 {
		return netip.Addr{}
	}
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5]})
}

func wanted(n agent.NIC, p netip.Prefix) bool {
	for _, w := range n.Prefixes {
		if strings.EqualFold(w, p.String()) {
			return true
		}
	}
	return false
}

// link is a network card by its name, as far as netdevice(7) tells.
type link struct {
	index, mtu int
	mac        []byte // nil: it has none of six bytes
	up         bool
}

// find asks for a card without a look at files.
func (w *wire) find(name string) (l link, err error) {
	b, err := w.about(unix.SIOCGIFINDEX, name)
	if err != nil {
		return l, err
	}
	l.index = int(le.Uint32(b))
	if b, err = w.about(unix.SIOCGIFHWADDR, name); err != nil {
		return l, err
	}
	if le.Uint16(b) == unix.ARPHRD_ETHER {
		l.mac = b[2:8]
	}
	if b, err = w.about(unix.SIOCGIFMTU, name); err != nil {
		return l, err
	}
	l.mtu = int(le.Uint32(b))
	if b, err = w.about(unix.SIOCGIFFLAGS, name); err != nil {
		return l, err
	}
	l.up = le.Uint16(b)&unix.IFF_UP != 0
	return l, nil
}

// about asks one thing about a card and returns what struct ifreq has behind the
// name then.
func (w *wire) about(request uintptr, name string) ([]byte, error) {
	if len(name) >= unix.IFNAMSIZ {
		return nil, unix.ENODEV
	}
	var r [40]byte
	copy(r[:], name)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(w.fd), request, uintptr(unsafe.Pointer(&r[0]))); errno != 0 {
		return nil, errno
	}
	return r[unix.IFNAMSIZ:], nil
}
