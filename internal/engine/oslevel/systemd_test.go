package oslevel

import (
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lodge/internal/engine"
	"lodge/internal/model/guest"
)

// TestSystemd boots a whole distribution. The tree of one with systemd as its
// init is named by LODGE_TEST_SYSTEMD, because making one takes the network.
func TestSystemd(t *testing.T) {
	tree := os.Getenv("LODGE_TEST_SYSTEMD")
	if tree == "" {
		t.Skip("LODGE_TEST_SYSTEMD names no root tree: make one with mmdebstrap --include=systemd-sysv,dbus,iproute2,procps bookworm DIR")
	}
	r := newRig(t)
	r.lower = tree
	began := time.Now()
	d, m := r.run(func(g *guest.Guest, p *engine.Parts) {
		g.Spec.Memory, g.Spec.Processes = 1<<30, 1000
	})
	d.until(t, "login:")
	state := strings.TrimSpace(shell(t, m, "systemctl is-system-running --wait"))
	t.Logf("%s after %v: %s", state, time.Since(began).Round(time.Millisecond), shell(t, m, "systemd-analyze | head -1"))
	if state != "running" {
		t.Errorf("the system is %s: %s", state, shell(t, m, "systemctl --failed --plain --no-legend"))
	}
	if id := shell(t, m, "cat /etc/machine-id"); strings.TrimSpace(id) != engine.MachineID(m.g) {
		t.Errorf("the machine id is %q", id)
	}
	if err := m.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	e, err := d.Wait(t.Context())
	if err != nil || e.Signal != unix.SIGINT { // what the kernel says of a guest that powers itself off
		t.Errorf("ended as %+v, %v", e, err)
	}
}
