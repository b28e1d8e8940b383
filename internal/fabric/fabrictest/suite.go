package fabrictest

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"testing"

	"lodge/internal/base/errs"
	"lodge/internal/fabric"
	"lodge/internal/model/network"
)

// Port is the nth guest's port on a network of spec, as admission would number
// it; n begins at 2, since 1 is the gateway. Devices are named prefix + n.
func Port(spec network.Spec, prefix string, n int) fabric.Port {
	p := fabric.Port{Device: fmt.Sprintf("%s%d", prefix, n), MAC: fmt.Sprintf("02:00:00:00:%02x:%02x", n>>8, n&0xff)}
	if spec.IPv4.IsValid() {
		b := spec.IPv4.Masked().Addr().As4()
		b[2], b[3] = byte(n>>8), byte(n)
		p.IPv4 = netip.AddrFrom4(b)
	}
	if spec.IPv6.IsValid() {
		b := spec.IPv6.Masked().Addr().As16()
		b[14], b[15] = byte(n>>8), byte(n)
		p.IPv6 = netip.AddrFrom16(b)
	}
	return p
}

// Run checks a driver against its contract. It must be called inside Main's
// namespaces; open makes a driver as a daemon that just started would.
func Run(t *testing.T, open func(t *testing.T) fabric.Driver, spec network.Spec) {
	Need(t)
	const name = "suite"
	before := Devices(t)
	d := open(t)
	t.Cleanup(func() { _ = d.Remove(t.Context(), name) })
	f, err := d.Ensure(t.Context(), name, spec)
	if err != nil {
		t.Fatalf("ensure: %v", err)
	}
	a := NewGuest(t, f, Port(spec, "st", 2), spec.IPv4.Bits(), spec.IPv6.Bits())
	b := NewGuest(t, f, Port(spec, "st", 3), spec.IPv4.Bits(), spec.IPv6.Bits())
	a.Greet(t)
	b.Greet(t)

	talk := func(t *testing.T) {
		t.Helper()
		reach(t, a, b)
	}
	t.Run("guests reach each other", talk)
	t.Run("the host reaches guests", func(t *testing.T) {
		var host *Space
		if _, err := host.Ask("tcp", net.JoinHostPort(a.Port.IPv4.String(), "7")); err != nil {
			t.Error(err)
		}
	})
	t.Run("the same again changes nothing", func(t *testing.T) {
		have := Devices(t)
		if f, err = d.Ensure(t.Context(), name, spec); err != nil {
			t.Fatal(err)
		}
		s, err := f.Plug(t.Context(), a.Port)
		if err != nil || s.Master != a.Socket.Master || s.Gateway4 != a.Socket.Gateway4 {
			t.Errorf("plugged again: %+v, %v; at first %+v", s, err, a.Socket)
		}
		if now := Devices(t); !maps.Equal(have, now) {
			t.Errorf("devices were %v, are %v", have, now)
		}
		talk(t)
	})
	t.Run("a daemon that comes later finds the ports", func(t *testing.T) {
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		talk(t)
		d = open(t)
		if f, err = d.Ensure(t.Context(), name, spec); err != nil {
			t.Fatal(err)
		}
		for device, want := range map[string]int{a.Port.Device: 1, "none": 0} {
			if ports := f.Ports(device); len(ports) != want || want > 0 && ports[0] != device {
				t.Errorf("ports of the name %s: %v", device, ports)
			}
		}
		if s, err := f.Plug(t.Context(), b.Port); err != nil || s.Master != b.Socket.Master {
			t.Errorf("plugged again: %+v, %v; at first %+v", s, err, b.Socket)
		}
		talk(t)
	})
	t.Run("what cannot be is refused", func(t *testing.T) { refused(t, f, spec) })
	t.Run("unplugging removes the device", func(t *testing.T) { unplug(t, f, b.Port.Device) })
	t.Run("removing leaves nothing, open or not", func(t *testing.T) {
		if err := f.Unplug(t.Context(), a.Port.Device); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := open(t).Remove(t.Context(), name); err != nil {
				t.Fatal(err)
			}
		}
		if now := Devices(t); !maps.Equal(before, now) {
			t.Errorf("devices were %v, are %v", before, now)
		}
	})
}

// reach has a ask b by each of b's addresses.
func reach(t *testing.T, a, b *Guest) {
	t.Helper()
	for _, to := range []netip.Addr{b.Port.IPv4, b.Port.IPv6} {
		if !to.IsValid() {
			continue
		}
		seen, err := a.Ask("tcp", net.JoinHostPort(to.String(), "7"))
		if err != nil || seen != a.Port.IPv4 && seen != a.Port.IPv6 {
			t.Errorf("guest to guest at %v: seen as %v, %v", to, seen, err)
		}
	}
}

func unplug(t *testing.T, f fabric.Fabric, device string) {
	for range 2 {
		if err := f.Unplug(t.Context(), device); err != nil {
			t.Fatal(err)
		}
	}
	if Devices(t)[device] {
		t.Errorf("%s is still there", device)
	}
}

func refused(t *testing.T, f fabric.Fabric, spec network.Spec) {
	good := Port(spec, "st", 9)
	for what, change := range map[string]func(*fabric.Port){
		"device of 16 characters": func(p *fabric.Port) { p.Device = "sixteencharacter" },
		"no device":               func(p *fabric.Port) { p.Device = "" },
		"no MAC":                  func(p *fabric.Port) { p.MAC = "" },
		"group MAC":               func(p *fabric.Port) { p.MAC = "01:00:5e:00:00:01" },
		"the gateway's address":   func(p *fabric.Port) { p.IPv4 = network.Gateway(spec.IPv4) },
		"a foreign address":       func(p *fabric.Port) { p.IPv4 = netip.MustParseAddr("192.0.2.77") },
	} {
		p := good
		change(&p)
		if _, err := f.Plug(t.Context(), p); !errs.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
