package qemu

import (
	"strings"
	"testing"

	"lodge/internal/engine/enginetest"
	"lodge/internal/model/guest"
)

// TestKindsOfMachine boots the same in either kind of machine. A microvm has
// nothing but virtio: no screen, no firmware to speak of.
func TestKindsOfMachine(t *testing.T) {
	r := newRig(t)
	k, _ := enginetest.Keeper(t)
	bridge(t)
	for _, kind := range []string{"q35", "microvm"} {
		t.Run(kind, func(t *testing.T) {
			g, p := r.guest(t, guest.Spec{Hardware: guest.Hardware{Machine: kind}})
			p.NICs = append(p.NICs, suiteNIC(t, 7))
			x := r.start(t, k, g, p)
			x.ready()
			out := x.shell("cat /proc/uptime; cat /sys/class/dmi/id/product_version; mount | grep ' / '; ip -o -4 addr show dev eth0")
			t.Logf("%s", out)
			if !strings.Contains(out, "overlay") || !strings.Contains(out, "10.68.0.7/24") || kind == "q35" && !strings.Contains(out, kind) {
				t.Errorf("%s: %s", kind, out)
			}
			if err := x.m.Screenshot(t.Context(), &strings.Builder{}); (err == nil) != (kind == "q35") {
				t.Errorf("screen: %v", err)
			}
		})
	}
}
