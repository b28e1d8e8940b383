package launch

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Plug makes the tap device of a card behind fd, an open /dev/net/tun that has
// none yet, and makes it a port of the bridge master ("" is none); flags are
// those of TUNSETIFF beside the usual, an mtu of 0 leaves the kernel's own. It is
// for cards that a running program is given: those it starts with are Taps. A
// device of the name, which an earlier attempt left, goes first; this one goes
// with the last that has it open.
func Plug(fd int, device, master string, flags uint16, mtu int) error {
	if err := Drop(device); err != nil {
		return err
	}
	r, err := unix.NewIfreq(device)
	if err != nil {
		return err
	}
	r.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | flags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, r); err != nil {
		return err
	}
	return join(device, master, mtu)
}

// Drop removes a card's host end, if it is there.
func Drop(device string) error {
	l, err := netlink.LinkByName(device)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return err
	}
	return netlink.LinkDel(l)
}

// join makes a card's host end a port of a bridge and switches it on.
func join(device, master string, mtu int) error {
	l, err := netlink.LinkByName(device)
	if err != nil {
		return err
	}
	if master != "" {
		bridge, err := netlink.LinkByName(master)
		if err != nil {
			return fmt.Errorf("network interface %s: %w", master, err)
		}
		if err := netlink.LinkSetMaster(l, bridge); err != nil {
			return err
		}
	}
	if mtu > 0 {
		if err := netlink.LinkSetMTU(l, mtu); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(l)
}
