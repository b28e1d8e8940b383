package oslevel

import (
	"encoding/binary"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
	"lodge/internal/engine"
	"lodge/internal/engine/oslevel/plan"
)

// message is a route netlink request under construction. Its numbers are in
// the byte order of every machine that the helper runs on.
type message struct{ b []byte }

var le = binary.LittleEndian

func newMessage(kind, flags uint16, body []byte) *message {
	m := &message{b: make([]byte, unix.NLMSG_HDRLEN)}
	le.PutUint16(m.b[4:], kind)
	le.PutUint16(m.b[6:], unix.NLM_F_REQUEST|unix.NLM_F_ACK|flags)
	m.b = append(m.b, body...)
	return m
}

// attr appends an attribute and returns the offset of its value.
func (m *message) attr(kind uint16, value []byte) int {
	at := len(m.b) + unix.SizeofRtAttr
	m.b = le.AppendUint16(m.b, uint16(unix.SizeofRtAttr+len(value)))
	m.b = le.AppendUint16(m.b, kind)
	m.b = append(m.b, value...)
	m.b = append(m.b, make([]byte, -len(m.b)&3)...)
	return at
}

func (m *message) number(kind uint16, v uint32) int { return m.attr(kind, le.AppendUint32(nil, v)) }

func (m *message) text(kind uint16, s string) { m.attr(kind, append([]byte(s), 0)) }

// nest appends an attribute that holds what fill appends.
func (m *message) nest(kind uint16, fill func()) {
	at := len(m.b)
	m.attr(kind, nil)
	fill()
	le.PutUint16(m.b[at:], uint16(len(m.b)-at))
}

func (m *message) bytes() []byte {
	le.PutUint32(m.b, uint32(len(m.b)))
	return m.b
}

func ifinfo(index int32, flags uint32) []byte {
	b := make([]byte, unix.SizeofIfInfomsg)
	le.PutUint32(b[4:], uint32(index))
	le.PutUint32(b[8:], flags)
	le.PutUint32(b[12:], flags)
	return b
}

// Offsets into requests where the plan stores what is only known when it runs.
const (
	linkIndexAt  = unix.NLMSG_HDRLEN + 4 // ifinfomsg.ifi_index and ifaddrmsg.ifa_index alike
	ackErrorAt   = unix.NLMSG_HDRLEN     // nlmsgerr.error
	ifreqIndexAt = unix.IFNAMSIZ
	ackSize      = 4096
)

// wire is one end's conversation with the kernel.
type wire struct {
	p      *plan.Plan
	socket plan.Reg
	ack    plan.At
}

func newWire(p *plan.Plan) wire {
	s := p.Sys("open the network", unix.SYS_SOCKET, plan.Imm(unix.AF_NETLINK), plan.Imm(unix.SOCK_RAW|unix.SOCK_CLOEXEC), plan.Imm(unix.NETLINK_ROUTE))
	return wire{p: p, socket: s, ack: p.Space(ackSize)}
}

// ask sends the request at at and fails with what unless the kernel agrees.
func (w wire) ask(what string, at plan.At, n int) {
	w.p.Do(what, unix.SYS_SENDTO, w.socket, at, plan.Imm(n), plan.Imm(0), plan.Imm(0), plan.Imm(0))
	w.p.Do(what, unix.SYS_RECVFROM, w.socket, w.ack, plan.Imm(ackSize), plan.Imm(0), plan.Imm(0), plan.Imm(0))
	r, good := w.p.Load(w.ack+ackErrorAt), w.p.Mark()
	w.p.JumpIf(r, plan.Imm(0), good)
	w.p.Fail(what, r)
	w.p.Here(good)
}

// index returns the register of an interface's number, or of a negative error.
func (w wire) index(name string) plan.Reg {
	req := make([]byte, 40)
	copy(req, name)
	at := w.p.Bytes(req)
	r, missing := w.p.Try(unix.SYS_IOCTL, w.socket, plan.Imm(unix.SIOCGIFINDEX), at), w.p.Mark()
	w.p.JumpUnless(r, plan.Imm(0), missing)
	w.p.LoadTo(r, at+ifreqIndexAt)
	w.p.Here(missing)
	return r
}

// mustIndex is index for an interface that has to be there.
func (w wire) mustIndex(name string) plan.Reg {
	r, found := w.index(name), w.p.Mark()
	w.p.JumpUnless(r, plan.Imm(-int64(unix.ENODEV)), found)
	w.p.Fail("network interface "+name, r)
	w.p.Here(found)
	return r
}

// plug makes a veth pair whose host end joins the NIC's bridge and whose other
// end is born in the network namespace of process pid. It runs on the host.
func (w wire) plug(n engine.NIC, pid plan.Reg) error {
	mac, err := net.ParseMAC(n.MAC)
	if err != nil {
		return errs.Bad("mac", err.Error(), "")
	}
	// What an earlier run left goes with its namespace, but not at once.
	old, fresh := w.index(n.Device), w.p.Mark()
	w.p.JumpIf(old, plan.Imm(-int64(unix.ENODEV)), fresh)
	del := newMessage(unix.RTM_DELLINK, 0, ifinfo(0, 0)).bytes()
	at := w.p.Bytes(del)
	w.p.Store32(at+linkIndexAt, old)
	w.p.Ignore(unix.SYS_SENDTO, w.socket, at, plan.Imm(len(del)), plan.Imm(0), plan.Imm(0), plan.Imm(0))
	w.p.Ignore(unix.SYS_RECVFROM, w.socket, w.ack, plan.Imm(ackSize), plan.Imm(0), plan.Imm(0), plan.Imm(0))
	w.p.Here(fresh)

	m := newMessage(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, ifinfo(0, 0))
	m.text(unix.IFLA_IFNAME, n.Device)
	if n.MTU > 0 {
		m.number(unix.IFLA_MTU, uint32(n.MTU))
	}
	masterAt, pidAt := 0, 0
	if n.Master != "" {
		masterAt = m.number(unix.IFLA_MASTER, 0)
	}
	m.nest(unix.IFLA_LINKINFO, func() {
		m.attr(unix.IFLA_INFO_KIND, []byte("veth"))
		m.nest(unix.IFLA_INFO_DATA, func() {
			const peer = 1 // VETH_INFO_PEER of linux/veth.h
			m.nest(peer, func() {
				m.b = append(m.b, ifinfo(0, 0)...)
				m.text(unix.IFLA_IFNAME, n.Name)
				m.attr(unix.IFLA_ADDRESS, mac)
				if n.MTU > 0 {
					m.number(unix.IFLA_MTU, uint32(n.MTU))
				}
				pidAt = m.number(unix.IFLA_NET_NS_PID, 0)
			})
		})
	})
	b := m.bytes()
	at = w.p.Bytes(b)
	if n.Master != "" {
		w.p.Store32(at+plan.At(masterAt), w.mustIndex(n.Master))
	}
	w.p.Store32(at+plan.At(pidAt), pid)
	w.ask("make network card "+n.Device, at, len(b))
	// The host's end is only a port of the bridge: it speaks no IP itself.
	knob(w.p, "/proc/sys/net/ipv6/conf/"+n.Device+"/disable_ipv6", "1")
	w.up(n.Device)
	return nil
}

// up switches an interface on.
func (w wire) up(name string) plan.Reg {
	b := newMessage(unix.RTM_NEWLINK, 0, ifinfo(0, unix.IFF_UP)).bytes()
	at, index := w.p.Bytes(b), w.mustIndex(name)
	w.p.Store32(at+linkIndexAt, index)
	w.ask("switch on "+name, at, len(b))
	return index
}

// configure gives the guest's end its addresses. It runs inside the guest.
func (w wire) configure(n engine.NIC) plan.Reg {
	conf := "/proc/sys/net/ipv6/conf/" + n.Name + "/"
	knob(w.p, conf+"accept_ra", "0")
	// Addresses are unique by allocation: nobody waits for duplicates to answer.
	knob(w.p, conf+"accept_dad", "0")
	index := w.up(n.Name)
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
	m := newMessage(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE,
		[]byte{family, byte(a.Bits()), flags, unix.RT_SCOPE_UNIVERSE, 0, 0, 0, 0})
	m.attr(unix.IFA_LOCAL, a.Addr().AsSlice())
	m.attr(unix.IFA_ADDRESS, a.Addr().AsSlice())
	if a.Addr().Is4() && a.Bits() < 31 {
		last := a.Addr().As4()
		host := uint32(1)<<(32-a.Bits()) - 1
		binary.BigEndian.PutUint32(last[:], binary.BigEndian.Uint32(last[:])|host)
		m.attr(unix.IFA_BROADCAST, last[:])
	}
	b := m.bytes()
	at := w.p.Bytes(b)
	w.p.Store32(at+linkIndexAt, index)
	w.ask("address "+a.String()+" on "+name, at, len(b))
}

// gateway makes a default route through the card with number index.
func (w wire) gateway(index plan.Reg, via netip.Addr) {
	family := byte(unix.AF_INET)
	if via.Is6() {
		family = unix.AF_INET6
	}
	m := newMessage(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE,
		[]byte{family, 0, 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_STATIC, unix.RT_SCOPE_UNIVERSE, unix.RTN_UNICAST, 0, 0, 0, 0})
	m.attr(unix.RTA_GATEWAY, via.AsSlice())
	oif := m.number(unix.RTA_OIF, 0)
	b := m.bytes()
	at := w.p.Bytes(b)
	w.p.Store32(at+plan.At(oif), index)
	w.ask("default route by "+via.String(), at, len(b))
}

// knob writes a kernel setting if this kernel has it.
func knob(p *plan.Plan, path, value string) {
	fd, none := p.Try(unix.SYS_OPENAT, plan.Imm(unix.AT_FDCWD), p.Text(path), plan.Imm(unix.O_WRONLY|unix.O_CLOEXEC), plan.Imm(0)), p.Mark()
	p.JumpBelow(fd, plan.Imm(0), none)
	p.Ignore(unix.SYS_WRITE, fd, p.Text(value), plan.Imm(len(value)))
	p.Ignore(unix.SYS_CLOSE, fd)
	p.Here(none)
}
