package launch

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"lodge/internal/launch/plan"
)

// Message is a route netlink request under construction. Its numbers are in
// the byte order of every machine that the helper runs on.
type Message struct{ b []byte }

var le = binary.LittleEndian

// NewMessage begins a request that the kernel is to confirm, with the fixed
// part that its kind has.
func NewMessage(kind, flags uint16, body []byte) *Message {
	m := &Message{b: make([]byte, unix.NLMSG_HDRLEN)}
	le.PutUint16(m.b[4:], kind)
	le.PutUint16(m.b[6:], unix.NLM_F_REQUEST|unix.NLM_F_ACK|flags)
	m.b = append(m.b, body...)
	return m
}

// Attr appends an attribute and returns the offset of its value.
func (m *Message) Attr(kind uint16, value []byte) int {
	at := len(m.b) + unix.SizeofRtAttr
	m.b = le.AppendUint16(m.b, uint16(unix.SizeofRtAttr+len(value)))
	m.b = le.AppendUint16(m.b, kind)
	m.b = append(m.b, value...)
	m.b = append(m.b, make([]byte, -len(m.b)&3)...)
	return at
}

// Number appends an attribute of 32 bits and returns the offset of its value.
func (m *Message) Number(kind uint16, v uint32) int { return m.Attr(kind, le.AppendUint32(nil, v)) }

// Text appends an attribute that ends in a zero.
func (m *Message) Text(kind uint16, s string) { m.Attr(kind, append([]byte(s), 0)) }

// Nest appends an attribute that holds what fill appends.
func (m *Message) Nest(kind uint16, fill func()) {
	at := len(m.b)
	m.Attr(kind, nil)
	fill()
	le.PutUint16(m.b[at:], uint16(len(m.b)-at))
}

// Raw appends what is no attribute.
func (m *Message) Raw(b []byte) { m.b = append(m.b, b...) }

// Bytes returns the finished request.
func (m *Message) Bytes() []byte {
	le.PutUint32(m.b, uint32(len(m.b)))
	return m.b
}

// IfInfo is the fixed part of requests about interfaces.
func IfInfo(index int32, flags uint32) []byte {
	b := make([]byte, unix.SizeofIfInfomsg)
	le.PutUint32(b[4:], uint32(index))
	le.PutUint32(b[8:], flags)
	le.PutUint32(b[12:], flags)
	return b
}

// Offsets into requests where the plan stores what is only known when it runs.
const (
	LinkIndexAt  = unix.NLMSG_HDRLEN + 4 // ifinfomsg.ifi_index and ifaddrmsg.ifa_index alike
	ackErrorAt   = unix.NLMSG_HDRLEN     // nlmsgerr.error
	ifreqIndexAt = unix.IFNAMSIZ
	ackSize      = 4096
)

// Wire is one end's conversation with the kernel about its network.
type Wire struct {
	s      Script
	socket plan.Reg
	ack    plan.At
}

// NewWire opens the conversation in the namespace that the process is in then.
func (s Script) NewWire() Wire {
	socket := s.Sys("open the network", unix.SYS_SOCKET, plan.Imm(unix.AF_NETLINK), plan.Imm(unix.SOCK_RAW|unix.SOCK_CLOEXEC), plan.Imm(unix.NETLINK_ROUTE))
	return Wire{s: s, socket: socket, ack: s.Space(ackSize)}
}

// Ask sends the request at at and fails with what unless the kernel agrees.
func (w Wire) Ask(what string, at plan.At, n int) {
	w.s.Do(what, unix.SYS_SENDTO, w.socket, at, plan.Imm(n), plan.Imm(0), plan.Imm(0), plan.Imm(0))
	w.s.Do(what, unix.SYS_RECVFROM, w.socket, w.ack, plan.Imm(ackSize), plan.Imm(0), plan.Imm(0), plan.Imm(0))
	r, good := w.s.Load(w.ack+ackErrorAt), w.s.Mark()
	w.s.JumpIf(r, plan.Imm(0), good)
	w.s.Fail(what, r)
	w.s.Here(good)
}

// index returns the register of an interface's number, or of a negative error.
func (w Wire) index(name string) plan.Reg {
	req := make([]byte, 40)
	copy(req, name)
	at := w.s.Bytes(req)
	r, missing := w.s.Try(unix.SYS_IOCTL, w.socket, plan.Imm(unix.SIOCGIFINDEX), at), w.s.Mark()
	w.s.JumpUnless(r, plan.Imm(0), missing)
	w.s.LoadTo(r, at+ifreqIndexAt)
	w.s.Here(missing)
	return r
}

// Index returns the register of the number of an interface that has to be
// there.
func (w Wire) Index(name string) plan.Reg {
	r, found := w.index(name), w.s.Mark()
	w.s.JumpUnless(r, plan.Imm(-int64(unix.ENODEV)), found)
	w.s.Fail("network interface "+name, r)
	w.s.Here(found)
	return r
}

// Remove takes an interface away, if there is one: what an earlier run left
// goes with its namespace or its descriptor, but not at once.
func (w Wire) Remove(name string) {
	old, fresh := w.index(name), w.s.Mark()
	w.s.JumpIf(old, plan.Imm(-int64(unix.ENODEV)), fresh)
	del := NewMessage(unix.RTM_DELLINK, 0, IfInfo(0, 0)).Bytes()
	at := w.s.Bytes(del)
	w.s.Store32(at+LinkIndexAt, old)
	w.s.Ignore(unix.SYS_SENDTO, w.socket, at, plan.Imm(len(del)), plan.Imm(0), plan.Imm(0), plan.Imm(0))
	w.s.Ignore(unix.SYS_RECVFROM, w.socket, w.ack, plan.Imm(ackSize), plan.Imm(0), plan.Imm(0), plan.Imm(0))
	w.s.Here(fresh)
}

// Up switches an interface on and returns the register of its number.
func (w Wire) Up(name string) plan.Reg {
	b := NewMessage(unix.RTM_NEWLINK, 0, IfInfo(0, unix.IFF_UP)).Bytes()
	at, index := w.s.Bytes(b), w.Index(name)
	w.s.Store32(at+LinkIndexAt, index)
	w.Ask("switch on "+name, at, len(b))
	return index
}

// Mute keeps an interface from speaking IP itself: it is only a port of a
// bridge.
func (w Wire) Mute(name string) {
	w.s.Knob("/proc/sys/net/ipv6/conf/"+name+"/disable_ipv6", "1")
}

// Knob writes a kernel setting if this kernel has it.
func (s Script) Knob(path, value string) {
	fd, none := s.Try(unix.SYS_OPENAT, plan.Imm(unix.AT_FDCWD), s.Text(path), plan.Imm(unix.O_WRONLY|unix.O_CLOEXEC), plan.Imm(0)), s.Mark()
	s.JumpBelow(fd, plan.Imm(0), none)
	s.Ignore(unix.SYS_WRITE, fd, s.Text(value), plan.Imm(len(value)))
	s.Ignore(unix.SYS_CLOSE, fd)
	s.Here(none)
}
