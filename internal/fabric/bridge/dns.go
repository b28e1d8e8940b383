package bridge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

const (
	// upstreamWait is for one resolver of the host and one try; guests' own
	// resolvers ask again after 5 s.
	upstreamWait = 2 * time.Second
	// upstreamMost bounds the questions under way: more are refused at once
	// rather than held in memory.
	upstreamMost = 256
	// dnsUDPSize is what EDNS answers may fill without fragmenting (DNS flag
	// day 2020).
	dnsUDPSize = 1232
)

// resolver serves a network's names on its gateways' addresses.
type resolver struct {
	zone    zone
	up      *upstreams
	log     *slog.Logger
	slots   chan struct{}
	cancel  context.CancelFunc // ends the questions under way
	servers []*dns.Server
	over    sync.WaitGroup
}

func serveNames(z zone, resolvConf string, log *slog.Logger) (*resolver, error) {
	ctx, cancel := context.WithCancel(context.Background())
	r := &resolver{zone: z, log: log, slots: make(chan struct{}, upstreamMost), cancel: cancel,
		up: &upstreams{path: resolvConf, skip: z.gateways}}
	// An address that a device without carrier has just got is not bindable
	// for a moment.
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var set error
		err := c.Control(func(fd uintptr) {
			set = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1)
		})
		return errors.Join(err, set)
	}}
	for _, g := range z.gateways {
		at := net.JoinHostPort(g.String(), "53")
		pc, err := lc.ListenPacket(ctx, "udp", at)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("serve names: %w", err), r.close())
		}
		r.serve(ctx, &dns.Server{PacketConn: pc, UDPSize: dnsUDPSize})
		l, err := lc.Listen(ctx, "tcp", at)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("serve names: %w", err), r.close())
		}
		r.serve(ctx, &dns.Server{Listener: l, MaxTCPQueries: 128})
	}
	return r, nil
}

// serve returns when s can be shut down.
func (r *resolver) serve(ctx context.Context, s *dns.Server) {
	started := make(chan struct{})
	s.NotifyStartedFunc = func() { close(started) }
	s.Handler = dns.HandlerFunc(func(w dns.ResponseWriter, m *dns.Msg) { r.handle(ctx, w, m) })
	r.servers = append(r.servers, s)
	r.over.Add(1)
	go func() {
		defer r.over.Done()
		if err := s.ActivateAndServe(); err != nil {
			r.log.Error("names are no longer served", "err", err)
		}
	}()
	<-started
}

func (r *resolver) close() error {
	r.cancel()
	var failed []error
	ctx, cancel := context.WithTimeout(context.Background(), 2*upstreamWait)
	defer cancel()
	for _, s := range r.servers {
		failed = append(failed, s.ShutdownContext(ctx))
	}
	r.over.Wait()
	return errors.Join(failed...)
}

func (r *resolver) handle(ctx context.Context, w dns.ResponseWriter, req *dns.Msg) {
	from, err := netip.ParseAddrPort(w.RemoteAddr().String())
	if err != nil || !r.zone.serves(from.Addr()) {
		return // no answer at all: whoever forged the sender gains nothing
	}
	_, tcp := w.RemoteAddr().(*net.TCPAddr)
	var m *dns.Msg
	switch {
	case len(req.Question) != 1:
		m = refuse(req, dns.RcodeFormatError)
	case req.Opcode != dns.OpcodeQuery:
		m = refuse(req, dns.RcodeNotImplemented)
	default:
		if m = r.zone.answer(req); m == nil {
			m = r.ask(ctx, req, tcp)
		}
	}
	if !tcp {
		size := dns.MinMsgSize
		if o := req.IsEdns0(); o != nil {
			size = min(max(int(o.UDPSize()), size), dnsUDPSize)
		}
		m.Truncate(size)
	}
	if err := w.WriteMsg(m); err != nil {
		r.log.Debug("name not answered", "to", from, "err", err)
	}
}

func refuse(req *dns.Msg, code int) *dns.Msg {
	m := new(dns.Msg)
	m.SetRcode(req, code)
	return m
}

// ask hands a question to the host's resolvers, one after the other.
func (r *resolver) ask(ctx context.Context, req *dns.Msg, tcp bool) *dns.Msg {
	select {
	case r.slots <- struct{}{}:
		defer func() { <-r.slots }()
	default:
		return refuse(req, dns.RcodeServerFailure)
	}
	client := &dns.Client{Net: "udp", Timeout: upstreamWait, UDPSize: dnsUDPSize}
	if tcp {
		client.Net = "tcp"
	}
	servers, err := r.up.servers()
	if err != nil {
		r.log.Warn("the host's resolvers are unknown", "err", err)
	}
	for _, s := range servers {
		// A copy with an id of our own: the guest's may be guessed.
		q := req.Copy()
		q.Id = dns.Id()
		m, _, err := client.ExchangeContext(ctx, q, s)
		if err != nil {
			r.log.Debug("resolver of the host did not answer", "server", s, "err", err)
			continue
		}
		m.Id = req.Id
		return m
	}
	return refuse(req, dns.RcodeServerFailure)
}

// upstreams are the host's resolvers, read again when their file changes.
type upstreams struct {
	path string
	skip []netip.Addr // ourselves

	mu   sync.Mutex
	seen time.Time
	size int64
	list []string
}

// servers returns what was last known beside an error.
func (u *upstreams) servers() ([]string, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	st, err := os.Stat(u.path)
	if err != nil {
		return u.list, err
	}
	if st.ModTime().Equal(u.seen) && st.Size() == u.size {
		return u.list, nil
	}
	conf, err := dns.ClientConfigFromFile(u.path)
	if err != nil {
		return u.list, err
	}
	var list []string
	for _, s := range conf.Servers {
		a, err := netip.ParseAddr(s)
		if err != nil || slices.Contains(u.skip, a.Unmap()) {
			continue
		}
		list = append(list, net.JoinHostPort(a.String(), conf.Port))
	}
	u.list, u.seen, u.size = list, st.ModTime(), st.Size()
	return u.list, nil
}
