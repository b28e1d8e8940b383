// Package fabrictest is the suite that every network driver passes, and the
// small world of network namespaces that it and drivers' own tests run in.
package fabrictest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"lodge/internal/fabric"
)

// inside marks the run of a test binary that has namespaces of its own.
const inside = "LODGE_FABRICTEST_INSIDE"

// patience bounds what must happen; a passing test never waits for it.
const patience = 10 * time.Second

// Main runs the tests of a package in a network and a mount namespace of their
// own, by starting the test binary again: whatever a test leaves behind ends
// with it, and nothing of the host can be touched. Call it from TestMain with
// the result going to os.Exit.
func Main(m *testing.M) int {
	if os.Getenv(inside) != "" {
		lo, err := netlink.LinkByName("lo")
		if err == nil {
			err = netlink.LinkSetUp(lo)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "fabrictest: loopback:", err)
			return 1
		}
		return m.Run()
	}
	if os.Geteuid() != 0 {
		return m.Run() // each test skips itself, see Need
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() > 0 {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "fabrictest:", err)
		return 1
	}
	return 0
}

// Need skips a test that has no namespace of its own to run in.
func Need(t testing.TB) {
	t.Helper()
	if os.Getenv(inside) == "" {
		t.Skip("needs root, to make network namespaces")
	}
}

// Space is a network namespace: a guest, or somebody outside.
type Space struct {
	t  testing.TB
	ns netns.NsHandle
	H  *netlink.Handle
}

// NewSpace makes an empty namespace with loopback up; it goes with the test.
func NewSpace(t testing.TB) *Space {
	t.Helper()
	made := make(chan error)
	s := &Space{t: t}
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		var err error
		s.ns, err = netns.New()
		made <- err
	}()
	if err := <-made; err != nil {
		t.Fatalf("new namespace: %v", err)
	}
	t.Cleanup(func() { s.ns.Close() })
	h, err := netlink.NewHandleAt(s.ns)
	if err != nil {
		t.Fatalf("namespace: %v", err)
	}
	t.Cleanup(h.Close)
	s.H = h
	s.Up("lo")
	return s
}

// Do runs f on a thread inside the namespace; sockets that f makes belong to
// it for good. A nil Space is the host.
func (s *Space) Do(f func() error) error {
	if s == nil {
		return f()
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := netns.Set(s.ns); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// Up brings a device of the namespace up and returns it.
func (s *Space) Up(dev string) netlink.Link {
	s.t.Helper()
	l, err := s.H.LinkByName(dev)
	if err == nil {
		err = s.H.LinkSetUp(l)
	}
	if err != nil {
		s.t.Fatalf("bring up %s: %v", dev, err)
	}
	return l
}

// Addr gives a device of the namespace an address.
func (s *Space) Addr(dev, cidr string) {
	s.t.Helper()
	l := s.Up(dev)
	a, err := netlink.ParseAddr(cidr)
	if err == nil {
		if a.IP.To4() == nil {
			a.Flags = unix.IFA_F_NODAD
		}
		err = s.H.AddrReplace(l, a)
	}
	if err != nil {
		s.t.Fatalf("give %s to %s: %v", cidr, dev, err)
	}
}

// Default sends everything else to gateway.
func (s *Space) Default(gateway netip.Addr) {
	s.t.Helper()
	if err := s.H.RouteReplace(&netlink.Route{Gw: gateway.AsSlice()}); err != nil {
		s.t.Fatalf("route to %v: %v", gateway, err)
	}
}

// Join makes a veth pair from the host's device to dev of the namespace, as an
// engine does; master is a bridge of the host or "".
func (s *Space) Join(device, master, dev, mac string, mtu int) {
	s.t.Helper()
	a := netlink.NewLinkAttrs()
	a.Name = device
	a.MTU = mtu
	if master != "" {
		m, err := netlink.LinkByName(master)
		if err != nil {
			s.t.Fatalf("bridge %s: %v", master, err)
		}
		a.MasterIndex = m.Attrs().Index
	}
	v := &netlink.Veth{LinkAttrs: a, PeerName: dev, PeerNamespace: netlink.NsFd(s.ns)}
	if mac != "" {
		v.PeerHardwareAddr, _ = net.ParseMAC(mac)
	}
	if err := netlink.LinkAdd(v); err != nil {
		s.t.Fatalf("veth pair %s: %v", device, err)
	}
	s.t.Cleanup(func() {
		if l, err := netlink.LinkByName(device); err == nil {
			_ = netlink.LinkDel(l)
		}
	})
	if err := netlink.LinkSetUp(v); err != nil {
		s.t.Fatalf("bring up %s: %v", device, err)
	}
	s.Up(dev)
}

// Guest is a port that is plugged, with a namespace at its other end.
type Guest struct {
	*Space
	Port   fabric.Port
	Socket fabric.Socket
}

// NewGuest plugs p into f and connects a new namespace there, whose eth0 has
// the port's addresses in networks of the given prefix lengths.
func NewGuest(t testing.TB, f fabric.Fabric, p fabric.Port, bits4, bits6 int) *Guest {
	t.Helper()
	g := NewBlank(t, f, p)
	s := g.Socket
	if p.IPv4.IsValid() {
		g.Addr("eth0", netip.PrefixFrom(p.IPv4, bits4).String())
		g.Default(s.Gateway4)
	}
	if p.IPv6.IsValid() {
		g.Addr("eth0", netip.PrefixFrom(p.IPv6, bits6).String())
		g.Default(s.Gateway6)
	}
	return g
}

// NewBlank is NewGuest for a guest that has to ask for its addresses.
func NewBlank(t testing.TB, f fabric.Fabric, p fabric.Port) *Guest {
	t.Helper()
	s, err := f.Plug(t.Context(), p)
	if err != nil {
		t.Fatalf("plug %s: %v", p.Device, err)
	}
	g := &Guest{Space: NewSpace(t), Port: p, Socket: s}
	g.Join(p.Device, s.Master, "eth0", p.MAC, s.MTU)
	return g
}

// Greet answers each TCP connection and each UDP packet to port 7 of these
// addresses, or of all, with who it sees asking, until the test ends.
func (s *Space) Greet(t testing.TB, addrs ...string) {
	t.Helper()
	if len(addrs) == 0 {
		addrs = []string{""}
	}
	for _, a := range addrs {
		s.greet(t, net.JoinHostPort(a, "7"))
	}
}

func (s *Space) greet(t testing.TB, at string) {
	t.Helper()
	err := s.Do(func() error {
		l, err := net.Listen("tcp", at)
		if err != nil {
			return err
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				fmt.Fprint(c, c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap())
				c.Close()
			}
		}()
		u, err := net.ListenPacket("udp", at)
		if err != nil {
			return err
		}
		t.Cleanup(func() { u.Close() })
		go func() {
			buf := make([]byte, 64)
			for {
				_, from, err := u.ReadFrom(buf)
				if err != nil {
					return
				}
				_, _ = u.WriteTo([]byte(from.(*net.UDPAddr).AddrPort().Addr().Unmap().String()), from)
			}
		}()
		return nil
	})
	if err != nil {
		t.Fatalf("listen on %s: %v", at, err)
	}
}

// Ask connects from the namespace and returns the address that the greeter at
// the other end sees.
func (s *Space) Ask(proto, address string) (seen netip.Addr, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	err = s.Do(func() error {
		c, err := (&net.Dialer{}).DialContext(ctx, proto, address)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(patience))
		if proto == "udp" {
			if _, err := c.Write([]byte("?")); err != nil {
				return err
			}
		}
		b := make([]byte, 64)
		n, err := c.Read(b)
		if err != nil && !(errors.Is(err, io.EOF) && n > 0) {
			return err
		}
		seen, err = netip.ParseAddr(string(b[:n]))
		return err
	})
	return seen, err
}

// Silent reports an error unless connecting fails within moments: for what
// must not pass.
func (s *Space) Silent(address string) error {
	return s.Do(func() error {
		c, err := net.DialTimeout("tcp", address, 300*time.Millisecond)
		if err != nil {
			return nil
		}
		c.Close()
		return fmt.Errorf("reached %s", address)
	})
}

// Devices lists the names of the host's devices.
func Devices(t testing.TB) map[string]bool {
	t.Helper()
	list, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]bool{}
	for _, l := range list {
		out[l.Attrs().Name] = true
	}
	return out
}
