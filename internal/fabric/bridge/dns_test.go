package bridge_test

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"lodge/internal/fabric/bridge"
	"lodge/internal/fabric/fabrictest"
)

// upstream is a resolver of the host on a loopback address that answers all
// A questions with the same address, and counts them.
func upstream(t *testing.T, addr, answer string) *atomic.Int32 {
	t.Helper()
	var asked atomic.Int32
	h := dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
		asked.Add(1)
		m := new(dns.Msg)
		m.SetReply(r)
		rr, err := dns.NewRR(r.Question[0].Name + " 60 IN A " + answer)
		if err == nil {
			m.Answer = []dns.RR{rr}
		}
		_ = w.WriteMsg(m)
	})
	pc, err := net.ListenPacket("udp", addr+":53")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", addr+":53")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*dns.Server{{PacketConn: pc, Handler: h}, {Listener: l, Handler: h}} {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		go func() { _ = s.ActivateAndServe() }()
		<-started
		t.Cleanup(func() { _ = s.Shutdown() })
	}
	return &asked
}

// ask puts one question from the space and returns code and answers.
func ask(s *fabrictest.Space, proto, server, name string, kind uint16) (string, error) {
	var out string
	err := s.Do(func() error {
		m := new(dns.Msg)
		m.SetQuestion(name, kind)
		r, _, err := (&dns.Client{Net: proto, Timeout: 10 * time.Second}).Exchange(m, net.JoinHostPort(server, "53"))
		if err != nil {
			return err
		}
		words := []string{dns.RcodeToString[r.Rcode]}
		for _, rr := range r.Answer {
			words = append(words, strings.TrimPrefix(rr.String(), rr.Header().String()))
		}
		if len(r.Ns) > 0 {
			words = append(words, dns.TypeToString[r.Ns[0].Header().Rrtype])
		}
		out = strings.Join(words, " ")
		return nil
	})
	return out, err
}

func TestNames(t *testing.T) {
	fabrictest.Need(t)
	asked := upstream(t, "127.0.0.9", "203.0.113.1")
	upstream(t, "127.0.0.10", "203.0.113.2")
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	// The first is ourselves: it must be passed over, or questions would go
	// round for ever.
	if err := os.WriteFile(conf, []byte("nameserver 10.77.0.1\nnameserver 127.0.0.9\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	names := book{"web1": {netip.MustParseAddr("10.77.0.2"), netip.MustParseAddr("fd77::2")}, "four": {netip.MustParseAddr("10.77.0.4")}}
	d := bridge.New(bridge.Options{Prefix: "lt", Names: names, ResolvConf: conf})
	f := ensure(t, d, "default", spec())
	g := guest(t, f, spec(), 2)

	check := func(t *testing.T) {
		t.Helper()
		for _, c := range []struct {
			name string
			kind uint16
			want string
		}{
			{"web1.lodge.internal.", dns.TypeA, "NOERROR 10.77.0.2"},
			{"WEB1.Lodge.Internal.", dns.TypeA, "NOERROR 10.77.0.2"},
			{"web1.lodge.internal.", dns.TypeAAAA, "NOERROR fd77::2"},
			{"web1.", dns.TypeA, "NOERROR 10.77.0.2"},
			{"four.lodge.internal.", dns.TypeAAAA, "NOERROR SOA"},
			{"web1.lodge.internal.", dns.TypeMX, "NOERROR SOA"},
			{"nobody.lodge.internal.", dns.TypeA, "NXDOMAIN SOA"},
			{"2.0.77.10.in-addr.arpa.", dns.TypePTR, "NOERROR web1.lodge.internal."},
			{"9.0.77.10.in-addr.arpa.", dns.TypePTR, "NXDOMAIN SOA"},
			{"2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.7.7.d.f.ip6.arpa.", dns.TypePTR, "NOERROR web1.lodge.internal."},
			{"example.com.", dns.TypeA, "NOERROR 203.0.113.1"},
		} {
			for _, server := range []string{"10.77.0.1", "fd77::1"} {
				for _, proto := range []string{"udp", "tcp"} {
					got, err := ask(g.Space, proto, server, c.name, c.kind)
					if err != nil || got != c.want {
						t.Errorf("%s %s by %s at %s: %q, %v; want %q", c.name, dns.TypeToString[c.kind], proto, server, got, err, c.want)
					}
				}
			}
		}
	}
	t.Run("a guest asks", check)
	t.Run("the host asks", func(t *testing.T) {
		if got, err := ask(nil, "udp", "10.77.0.1", "web1.", dns.TypeA); err != nil || got != "NOERROR 10.77.0.2" {
			t.Errorf("%q, %v", got, err)
		}
	})
	t.Run("garbage", func(t *testing.T) {
		err := g.Do(func() error {
			c, err := net.Dial("udp", "10.77.0.1:53")
			if err != nil {
				return err
			}
			defer c.Close()
			for _, b := range []string{"", "x", strings.Repeat("\xff", 600), "\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\xc0\x0c"} {
				if _, err := c.Write([]byte(b)); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		check(t)
	})
	t.Run("no open resolver", func(t *testing.T) {
		s := outside(t)
		s.Default(netip.MustParseAddr("192.0.2.2"))
		before := asked.Load()
		err := s.Do(func() error {
			m := new(dns.Msg)
			m.SetQuestion("example.com.", dns.TypeA)
			_, _, err := (&dns.Client{Timeout: 300 * time.Millisecond}).Exchange(m, "10.77.0.1:53")
			return err
		})
		if err == nil || asked.Load() != before {
			t.Errorf("a stranger was answered (%v), or his question passed on", err)
		}
	})
	t.Run("the host's resolvers change", func(t *testing.T) {
		if err := os.WriteFile(conf, []byte("# changed\nnameserver 127.0.0.10\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := ask(g.Space, "udp", "10.77.0.1", "example.com.", dns.TypeA); err != nil || got != "NOERROR 203.0.113.2" {
			t.Errorf("%q, %v", got, err)
		}
	})
	t.Run("closed and opened again", func(t *testing.T) {
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		if got, err := ask(nil, "tcp", "10.77.0.1", "web1.", dns.TypeA); err == nil {
			t.Errorf("still answered: %q", got)
		}
		if _, err := d.Ensure(t.Context(), "default", spec()); err != nil {
			t.Fatal(err)
		}
		if got, err := ask(g.Space, "udp", "10.77.0.1", "web1.", dns.TypeA); err != nil || got != "NOERROR 10.77.0.2" {
			t.Errorf("%q, %v", got, err)
		}
	})
	t.Run("another domain", func(t *testing.T) {
		s := spec()
		s.Domain = "example.test"
		if _, err := d.Ensure(t.Context(), "default", s); err != nil {
			t.Fatal(err)
		}
		if got, err := ask(g.Space, "udp", "10.77.0.1", "web1.example.test.", dns.TypeA); err != nil || got != "NOERROR 10.77.0.2" {
			t.Errorf("%q, %v", got, err)
		}
	})
}
