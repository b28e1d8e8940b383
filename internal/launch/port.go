package launch

import (
	"fmt"

	"github.com/vishvananda/netlink"
)

// Join makes a card's host end, which is there already, a port of the bridge
// master ("" is none) and switches it on; an mtu of 0 leaves the kernel's own. It
// is for cards that a running program is given: those it starts with are Taps.
func Join(device, master string, mtu int) error {
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
