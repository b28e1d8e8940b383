package bridge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

const (
	// largestAsk is more than any question fits on an Ethernet.
	largestAsk = 2048
	// advertEvery is the longest pause that RFC 4861 leaves a router.
	advertEvery = 30 * time.Minute
	// advertPause is the least between two that all guests hear (RFC 4861).
	advertPause = 3 * time.Second
	// retryAfter is the pause after an error of a socket, such as a bridge that
	// is down.
	retryAfter = time.Second
)

// lender gives the guests that ask what is theirs: addresses by DHCP, the way
// out by router advertisements. It remembers nothing; how often one port may
// ask is the guard's to bound.
type lender struct {
	terms terms
	index int // of the bridge
	who   *tenants
	log   *slog.Logger
	ctx   context.Context // ends with close
	end   context.CancelFunc
	socks []io.Closer
	over  sync.WaitGroup
}

// lend serves the bridge dev until close.
func lend(dev string, index int, t terms, who *tenants, log *slog.Logger) (*lender, error) {
	l := &lender{terms: t, index: index, who: who, log: log}
	l.ctx, l.end = context.WithCancel(context.Background())
	var err error
	if t.v4.IsValid() {
		err = l.open4(dev)
	}
	if err == nil && t.v6.IsValid() {
		err = l.open6(dev)
	}
	if err != nil {
		return nil, errors.Join(err, l.close())
	}
	return l, nil
}

// matches reports whether a lender made with these would be this one.
func (l *lender) matches(index int, t terms) bool {
	a := l.terms
	a.names, t.names = nil, nil // one and the same for all of a driver's networks
	return l.index == index && a == t
}

func (l *lender) close() error {
	l.end()
	var failed []error
	for _, s := range l.socks {
		failed = append(failed, s.Close())
	}
	l.over.Wait()
	return errors.Join(failed...)
}

// listen opens a socket that sees dev alone. Another server of the same kind
// may serve other devices of the host.
func (l *lender) listen(kind, address, dev string) (net.PacketConn, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var set error
		err := c.Control(func(fd uintptr) {
			set = errors.Join(unix.BindToDevice(int(fd), dev),
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
			if kind == "udp4" {
				set = errors.Join(set, unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 1))
			}
		})
		return errors.Join(err, set)
	}}
	c, err := lc.ListenPacket(l.ctx, kind, address)
	if err != nil {
		return nil, fmt.Errorf("listen on %s of %s: %w", address, dev, err)
	}
	l.socks = append(l.socks, c)
	return c, nil
}

func (l *lender) open4(dev string) error {
	c, err := l.listen("udp4", "0.0.0.0:67", dev)
	if err != nil {
		return err
	}
	l.run(func(b []byte) error {
		n, _, err := c.ReadFrom(b)
		if err != nil {
			return err
		}
		if re, to := l.reply4(b[:n]); re != nil {
			_, err := c.WriteTo(re, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, 68)))
			l.sent(err)
		}
		return nil
	})
	return nil
}

// reply4 decides on one packet: what to send, and where to.
func (l *lender) reply4(b []byte) ([]byte, netip.Addr) {
	req, err := dhcpv4.FromBytes(b)
	if err != nil {
		return nil, netip.Addr{}
	}
	p, known := l.who.withMAC(req.ClientHWAddr)
	if !known {
		return nil, netip.Addr{}
	}
	re := l.terms.answer4(req, p)
	if re == nil {
		return nil, netip.Addr{}
	}
	return re.ToBytes(), to4(re, p)
}

func (l *lender) open6(dev string) error {
	bridge := &net.Interface{Index: l.index, Name: dev}
	c, err := l.listen("udp6", "[::]:547", dev)
	if err != nil {
		return err
	}
	if err := ipv6.NewPacketConn(c).JoinGroup(bridge, &net.IPAddr{IP: net.ParseIP("ff02::1:2")}); err != nil {
		return fmt.Errorf("DHCPv6 on %s: %w", dev, err)
	}
	raw, err := l.listen("ip6:ipv6-icmp", "::", dev)
	if err != nil {
		return err
	}
	router := ipv6.NewPacketConn(raw)
	var only ipv6.ICMPFilter
	only.SetAll(true)
	only.Accept(ipv6.ICMPTypeRouterSolicitation)
	err = errors.Join(router.SetICMPFilter(&only), router.SetHopLimit(255), router.SetMulticastHopLimit(255),
		router.SetMulticastLoopback(false), router.SetControlMessage(ipv6.FlagHopLimit, true),
		router.SetMulticastInterface(bridge), router.JoinGroup(bridge, &net.IPAddr{IP: net.IPv6linklocalallrouters}))
	if err != nil {
		return fmt.Errorf("router advertisements on %s: %w", dev, err)
	}
	l.run(func(b []byte) error {
		n, from, err := c.ReadFrom(b)
		if err != nil {
			return err
		}
		if re := l.reply6(b[:n], from.(*net.UDPAddr).AddrPort().Addr()); re != nil {
			_, err := c.WriteTo(re, from)
			l.sent(err)
		}
		return nil
	})
	var last time.Time
	l.run(func(b []byte) error { return l.solicited(router, b, &last) })
	l.over.Go(func() { l.advertise(router) })
	return nil
}

// reply6 decides on one packet of a guest.
func (l *lender) reply6(b []byte, from netip.Addr) []byte {
	p, known := l.who.at(from)
	if !known {
		return nil
	}
	req, err := dhcpv6.MessageFromBytes(b)
	if err != nil {
		return nil
	}
	re := l.terms.answer6(req, p)
	if re == nil {
		return nil
	}
	return re.ToBytes()
}

// solicited answers the guest that looks for a router, and nobody else unless
// the guest has no address yet to be answered at. last is when that last was.
func (l *lender) solicited(c *ipv6.PacketConn, b []byte, last *time.Time) error {
	_, cm, from, err := c.ReadFrom(b)
	if err != nil {
		return err
	}
	ip, ok := from.(*net.IPAddr)
	if !ok || cm == nil || cm.HopLimit != 255 {
		return nil
	}
	to, ok := netip.AddrFromSlice(ip.IP)
	if !ok {
		return nil
	}
	if to.IsUnspecified() {
		if time.Since(*last) < advertPause {
			return nil
		}
		to, *last = netip.IPv6LinkLocalAllNodes(), time.Now()
	} else if _, known := l.who.at(to); !known {
		return nil
	}
	l.send(c, to)
	return nil
}

// advertise tells all guests again before they forget, and of what has changed.
func (l *lender) advertise(c *ipv6.PacketConn) {
	tick := time.NewTicker(advertEvery)
	defer tick.Stop()
	for {
		l.send(c, netip.IPv6LinkLocalAllNodes())
		select {
		case <-tick.C:
		case <-l.ctx.Done():
			return
		}
	}
}

func (l *lender) send(c *ipv6.PacketConn, to netip.Addr) {
	_, err := c.WriteTo(l.terms.advert(), &ipv6.ControlMessage{IfIndex: l.index}, &net.IPAddr{IP: to.AsSlice(), Zone: fmt.Sprint(l.index)})
	l.sent(err)
}

// sent remarks what could not be sent, as on a bridge without a port; who asked
// asks again.
func (l *lender) sent(err error) {
	if err != nil {
		l.log.Debug("an answer about addresses was not sent", "err", err)
	}
}

// run calls step with the same buffer until the lender is closed. An error of
// the socket need not be the end: a bridge may have been down.
func (l *lender) run(step func(b []byte) error) {
	l.over.Go(func() {
		b := make([]byte, largestAsk)
		for l.ctx.Err() == nil {
			err := step(b)
			if err == nil || l.ctx.Err() != nil {
				continue
			}
			l.log.Warn("questions for addresses cannot be read", "err", err)
			select {
			case <-time.After(retryAfter):
			case <-l.ctx.Done():
			}
		}
	})
}
