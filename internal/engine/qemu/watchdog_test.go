package qemu

import (
	"context"
	"strings"
	"syscall"
	"testing"
	"time"

	"lodge/internal/engine/enginetest"
	"lodge/internal/model/guest"
)

// startWatchdog sets the machine's watchdog going by its registers (Intel's 6300ESB),
// because kernels for clouds have no driver for it, and never feeds it.
const startWatchdog = `set -e
d=$(grep -l 0x25ab /sys/bus/pci/devices/*/device); d=${d%/device}
printf '\2\0' | dd of=$d/config bs=1 seek=4 conv=notrunc
read bar rest <$d/resource
unlock() { devmem $((bar + 12)) 16 0x80; devmem $((bar + 12)) 16 0x86; }
unlock; devmem $bar 32 0x10
unlock; devmem $((bar + 4)) 32 0x10
printf '\2' | dd of=$d/config bs=1 seek=104 conv=notrunc`

// TestWatchdogBites: a guest that does not feed its watchdog ends as by a crash,
// not as one that was switched off.
func TestWatchdogBites(t *testing.T) {
	r := newRig(t)
	k, _ := enginetest.Keeper(t)
	g, p := r.guest(t, guest.Spec{})
	x := r.start(t, k, g, p)
	x.ready()
	x.shell("(sleep 1; " + startWatchdog + ") >/root/said 2>&1 &") // not before whoever asked is answered
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	e, err := x.held.Wait(ctx)
	if err != nil {
		t.Fatalf("%v: %s", err, x.shell("cat /root/said"))
	}
	if is, _ := r.engine.Ended(g, p, e); is.Signal != syscall.SIGKILL {
		t.Errorf("it ended as %+v", is)
	}
	if probe, err := x.m.Probe(t.Context()); err == nil && !strings.Contains(probe.Trouble, "watchdog") && !strings.Contains(probe.Trouble, "does not answer") {
		t.Errorf("it is told to suffer from %q", probe.Trouble)
	}
}
