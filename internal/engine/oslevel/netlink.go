package oslevel

import (
	"encoding/binary"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
	"lodge/internal/engine"
	"lodge/internal/launch"
	"lodge/internal/launch/plan"
)

// wire is a guest's conversation with the kernel about its network.
type wire struct {
	launch.Wire
	s script
}

func (s script) newWire() wire { return wire{s.NewWire(), s} }

// plug makes a veth pair whose host end joins the NIC's bridge and whose other
// end is born in the network namespace of process pid. It runs on the host.
func (w wire) plug(n engine.NIC, pid plan.Reg) error {
	mac, err := net.ParseMAC(n.MAC)
	if err != nil {
		return errs.Bad("mac", err.Error(), "")
	}
	w.Remove(n.Device)

	m := launch.NewMessage(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, launch.IfInfo(0, 0))
	m.Text(unix.IFLA_IFNAME, n.Device)
	if n.MTU > 0 {
		m.Number(unix.IFLA_MTU, uint32(n.MTU))
	}
	masterAt, pidAt := 0, 0
	if n.Master != "" {
		masterAt = m.Number(unix.IFLA_MASTER, 0)
	}
	m.Nest(unix.IFLA_LINKINFO, func() {
		m.Attr(unix.IFLA_INFO_KIND, []byte("veth"))
		m.Nest(unix.IFLA_INFO_DATA, func() {
			const peer = 1 // VETH_INFO_PEER of linux/veth.h
			m.Nest(peer, func() {
				m.Raw(launch.IfInfo(0, 0))
				m.Text(unix.IFLA_IFNAME, n.Name)
				m.Attr(unix.IFLA_ADDRESS, mac)
				if n.MTU > 0 {
					m.Number(unix.IFLA_MTU, uint32(n.MTU))
				}
				pidAt = m.Number(unix.IFLA_NET_NS_PID, 0)
			})
		})
	})
	b := m.Bytes()
	at := w.s.Bytes(b)
	if n.Master != "" {
		w.s.Store32(at+plan.At(masterAt), w.Index(n.Master))
	}
	w.s.Store32(at+plan.At(pidAt), pid)
	w.Ask("make network card "+n.Device, at, len(b))
	w.Mute(n.Device)
	w.Up(n.Device)
	return nil
}

// configure gives the guest's end its addresses. It runs inside the guest.
func (w wire) configure(n engine.NIC) plan.Reg {
	conf := "/proc/sys/net/ipv6/conf/" + n.Name + "/"
	w.s.Knob(conf+"accept_ra", "0")
	// Addresses are unique by allocation: nobody waits for duplicates to answer.
	w.s.Knob(conf+"accept_dad", "0")
	index := w.Up(n.Name)
	for _, a := range []netip.Prefix{n.IPv4, n.IPv6} {
		if a.IsValid() {
			w.address(n.Name, index, a)
		}
	}
	return index
}

func (w wire) address(name string, index plan.Reg, a netip.Prefix) {
	family, flags := byte(unix.AF_INET), byte(0)
	if a.Addr().Is6() {
		family, flags = unix.AF_INET6, unix.IFA_F_NODAD
	}
	m := launch.NewMessage(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE,
		[]byte{family, byte(a.Bits()), flags, unix.RT_SCOPE_UNIVERSE, 0, 0, 0, 0})
	m.Attr(unix.IFA_LOCAL, a.Addr().AsSlice())
	m.Attr(unix.IFA_ADDRESS, a.Addr().AsSlice())
	if a.Addr().Is4() && a.Bits() < 31 {
		last := a.Addr().As4()
		host := uint32(1)<<(32-a.Bits()) - 1
		binary.BigEndian.PutUint32(last[:], binary.BigEndian.Uint32(last[:])|host)
		m.Attr(unix.IFA_BROADCAST, last[:])
	}
	b := m.Bytes()
	at := w.s.Bytes(b)
	w.s.Store32(at+launch.LinkIndexAt, index)
	w.Ask("address "+a.String()+" on "+name, at, len(b))
}

// gateway makes a default route through the card with number index.
func (w wire) gateway(index plan.Reg, via netip.Addr) {
	family := byte(unix.AF_INET)
	if via.Is6() {
		family = unix.AF_INET6
	}
	m := launch.NewMessage(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE,
		[]byte{family, 0, 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_STATIC, unix.RT_SCOPE_UNIVERSE, unix.RTN_UNICAST, 0, 0, 0, 0})
	m.Attr(unix.RTA_GATEWAY, via.AsSlice())
	oif := m.Number(unix.RTA_OIF, 0)
	b := m.Bytes()
	at := w.s.Bytes(b)
	w.s.Store32(at+plan.At(oif), index)
	w.Ask("default route by "+via.String(), at, len(b))
}
