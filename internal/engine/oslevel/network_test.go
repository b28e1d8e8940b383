package oslevel

import (
	"net/netip"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"lodge/internal/engine"
	"lodge/internal/model/guest"
)

// ownNetwork moves the test's thread, and what it starts, into a network
// namespace that ends with it.
func ownNetwork(t *testing.T, commands ...string) {
	t.Helper()
	runtime.LockOSThread() // never unlocked: the thread ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skip("no network namespace of its own: ", err)
	}
	for _, c := range commands {
		if out, err := exec.Command("sh", "-c", c).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", c, err, out)
		}
	}
}

// TestNetwork starts two guests on a bridge and lets them talk.
func TestNetwork(t *testing.T) {
	r := newRig(t)
	ownNetwork(t, "ip link add br0 type bridge", "ip addr add 10.67.0.1/16 dev br0", "ip addr add fd67::1/64 dev br0 nodad", "ip link set br0 up", "ip link set lo up")
	card := func(n int) func(*guest.Guest, *engine.Parts) {
		return func(g *guest.Guest, p *engine.Parts) {
			i := string(rune('0' + n))
			p.NICs = []engine.NIC{{Name: "eth0", MAC: "02:00:00:00:00:0" + i, Device: "lgt" + i + "n0", Master: "br0", MTU: 1400,
				IPv4: netip.MustParsePrefix("10.67.0.1" + i + "/16"), IPv6: netip.MustParsePrefix("fd67::1" + i + "/64"),
				Gateway4: netip.MustParseAddr("10.67.0.1"), Gateway6: netip.MustParseAddr("fd67::1")}}
		}
	}
	d, m := r.run(func(g *guest.Guest, p *engine.Parts) {
		card(1)(g, p)
		g.Spec.Command = []string{"sleep", "1000"}
	})
	out := r.script("ip -o addr show eth0; ip route; ip -6 route; cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu; cat /etc/hosts;"+
		"ping -c1 -w5 10.67.0.1; ping -c1 -w5 10.67.0.11; ping -c1 -w5 fd67::11; ping -c1 -w5 fd67::1", card(2))
	for _, want := range []string{"inet 10.67.0.12/16 brd 10.67.255.255", "inet6 fd67::12/64", "default via 10.67.0.1 dev eth0", "default via fd67::1 dev eth0",
		"02:00:00:00:00:02\r\n1400", "10.67.0.12\tguest2.lodge.internal guest2"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if strings.Contains(out, "tentative") || strings.Count(out, "1 packets received") != 4 {
		t.Errorf("they do not reach each other:\n%s", out)
	}
	u, err := m.Usage(t.Context())
	if err != nil || u.RxPackets == 0 || u.TxPackets == 0 {
		t.Errorf("the first guest counted %+v, %v", u, err)
	}
	if text, err := exec.Command("ip", "-o", "addr", "show", "lgt1n0").CombinedOutput(); err != nil || len(text) > 0 {
		t.Errorf("the host's end has addresses: %s %v", text, err)
	}
	d.end()
	// The old card may still be there when the guest starts anew.
	again := r.script("ip -o addr show eth0", card(1))
	if !strings.Contains(again, "10.67.0.11/16") {
		t.Errorf("started again: %s", again)
	}
}
