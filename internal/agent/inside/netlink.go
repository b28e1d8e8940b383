package inside

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"
)

// wire is a conversation with the kernel about the network (rtnetlink(7)).
type wire struct {
	fd  int
	seq uint32
}

func openWire() (*wire, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	return &wire{fd: fd}, err
}

func (w *wire) close() { unix.Close(w.fd) }

var le = binary.LittleEndian

// message is a request under construction.
type message struct{ b []byte }

func newMessage(kind, flags uint16, body []byte) *message {
	m := &message{make([]byte, unix.NLMSG_HDRLEN)}
	le.PutUint16(m.b[4:], kind)
	le.PutUint16(m.b[6:], unix.NLM_F_REQUEST|unix.NLM_F_ACK|flags)
	m.b = append(m.b, body...)
	return m
}

func (m *message) attr(kind uint16, value []byte) {
	m.b = le.AppendUint16(m.b, uint16(unix.SizeofRtAttr+len(value)))
	m.b = append(le.AppendUint16(m.b, kind), value...)
	m.b = append(m.b, make([]byte, -len(m.b)&3)...)
}

func (m *message) number(kind uint16, v uint32) { m.attr(kind, le.AppendUint32(nil, v)) }

func ifinfo(index int, flags, change uint32) []byte {
	b := make([]byte, unix.SizeofIfInfomsg)
	le.PutUint32(b[4:], uint32(index))
	le.PutUint32(b[8:], flags)
	le.PutUint32(b[12:], change)
	return b
}

// ask sends a request and returns what the kernel says to it.
func (w *wire) ask(m *message) error {
	w.seq++
	le.PutUint32(m.b, uint32(len(m.b)))
	le.PutUint32(m.b[8:], w.seq)
	if err := unix.Sendto(w.fd, m.b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	b := make([]byte, 8<<10)
	for {
		n, err := w.receive(b)
		if err != nil {
			return err
		}
		if n < unix.NLMSG_HDRLEN+4 || le.Uint16(b[4:]) != unix.NLMSG_ERROR || le.Uint32(b[8:]) != w.seq {
			continue
		}
		if code := int32(le.Uint32(b[unix.NLMSG_HDRLEN:])); code != 0 {
			return unix.Errno(-code)
		}
		return nil
	}
}

func (w *wire) receive(b []byte) (int, error) {
	for {
		n, _, err := unix.Recvfrom(w.fd, b, 0)
		if err != unix.EINTR {
			return n, err
		}
	}
}

// numbered is an address and the card that has it.
type numbered struct {
	index  int
	prefix netip.Prefix
}

// addresses are all that the guest has.
func (w *wire) addresses() ([]numbered, error) {
	m := newMessage(unix.RTM_GETADDR, unix.NLM_F_DUMP, make([]byte, unix.SizeofIfAddrmsg))
	w.seq++
	le.PutUint32(m.b, uint32(len(m.b)))
	le.PutUint32(m.b[8:], w.seq)
	if err := unix.Sendto(w.fd, m.b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, err
	}
	var out []numbered
	b := make([]byte, 32<<10)
	for {
		n, err := w.receive(b)
		if err != nil {
			return nil, err
		}
		for rest := b[:n]; len(rest) >= unix.NLMSG_HDRLEN; {
			size := int(le.Uint32(rest))
			if size < unix.NLMSG_HDRLEN || size > len(rest) {
				return nil, errors.New("the kernel's answer makes no sense")
			}
			switch le.Uint16(rest[4:]) {
			case unix.NLMSG_DONE, unix.NLMSG_ERROR:
				return out, nil
			case unix.RTM_NEWADDR:
				if a, ok := parseAddress(rest[unix.NLMSG_HDRLEN:size]); ok {
					out = append(out, a)
				}
			}
			rest = rest[min((size+3)&^3, len(rest)):]
		}
	}
}

// parseAddress reads the body of RTM_NEWADDR.
func parseAddress(b []byte) (a numbered, ok bool) {
	if len(b) < unix.SizeofIfAddrmsg {
		return a, false
	}
	bits := int(b[1])
	a.index = int(le.Uint32(b[4:]))
	for b = b[unix.SizeofIfAddrmsg:]; len(b) >= unix.SizeofRtAttr; {
		size := int(le.Uint16(b))
		if size < unix.SizeofRtAttr || size > len(b) {
			break
		}
		// What is local differs from the address of a link with one other end.
		if kind := le.Uint16(b[2:]); kind == unix.IFA_LOCAL || kind == unix.IFA_ADDRESS && !ok {
			if ip, good := netip.AddrFromSlice(b[unix.SizeofRtAttr:size]); good {
				a.prefix, ok = netip.PrefixFrom(ip, bits), true
			}
		}
		b = b[min((size+3)&^3, len(b)):]
	}
	return a, ok
}

// reachable are the addresses that others can reach the guest at, with their
// prefix lengths.
func reachable() []string {
	w, err := openWire()
	if err != nil {
		return nil
	}
	defer w.close()
	all, _ := w.addresses()
	var out []string
	for _, a := range all {
		if ip := a.prefix.Addr(); !ip.IsLoopback() && !ip.IsLinkLocalUnicast() && len(out) < addressesMax {
			out = append(out, a.prefix.String())
		}
	}
	return out
}

// set changes flags of a card, those in change, and its name unless that is "".
func (w *wire) set(index int, flags, change uint32, name string) error {
	m := newMessage(unix.RTM_NEWLINK, 0, ifinfo(index, flags, change))
	if name != "" {
		m.attr(unix.IFLA_IFNAME, append([]byte(name), 0))
	}
	return w.ask(m)
}

func (w *wire) up(name string) error {
	card, err := cardNamed(name)
	if err != nil {
		return err
	}
	return w.set(card.index, unix.IFF_UP, unix.IFF_UP, "")
}

func (w *wire) address(index int, a netip.Prefix) error {
	family, flags := byte(unix.AF_INET), byte(0)
	if a.Addr().Is6() {
		family, flags = unix.AF_INET6, unix.IFA_F_NODAD
	}
	body := le.AppendUint32([]byte{family, byte(a.Bits()), flags, unix.RT_SCOPE_UNIVERSE}, uint32(index))
	m := newMessage(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, body)
	m.attr(unix.IFA_LOCAL, a.Addr().AsSlice())
	m.attr(unix.IFA_ADDRESS, a.Addr().AsSlice())
	if a.Addr().Is4() && a.Bits() < 31 {
		last := a.Addr().As4()
		host := uint32(1)<<(32-a.Bits()) - 1
		binary.BigEndian.PutUint32(last[:], binary.BigEndian.Uint32(last[:])|host)
		m.attr(unix.IFA_BROADCAST, last[:])
	}
	return w.ask(m)
}

func (w *wire) gateway(index int, via netip.Addr) error {
	family := byte(unix.AF_INET)
	if via.Is6() {
		family = unix.AF_INET6
	}
	m := newMessage(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE,
		[]byte{family, 0, 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_STATIC, unix.RT_SCOPE_UNIVERSE, unix.RTN_UNICAST, 0, 0, 0, 0})
	m.attr(unix.RTA_GATEWAY, via.AsSlice())
	m.number(unix.RTA_OIF, uint32(index))
	return w.ask(m)
}

func (w *wire) drop(index int, a netip.Prefix) error {
	family := byte(unix.AF_INET)
	if a.Addr().Is6() {
		family = unix.AF_INET6
	}
	m := newMessage(unix.RTM_DELADDR, 0, le.AppendUint32([]byte{family, byte(a.Bits()), 0, 0}, uint32(index)))
	m.attr(unix.IFA_LOCAL, a.Addr().AsSlice())
	m.attr(unix.IFA_ADDRESS, a.Addr().AsSlice())
	return w.ask(m)
}
