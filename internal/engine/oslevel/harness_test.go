package oslevel

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"lodge/internal/engine"
	"lodge/internal/engine/enginetest"
	"lodge/internal/model/guest"
	"lodge/test/sandbox"
)

// TestMain gives the tests a network and mounts of their own.
func TestMain(m *testing.M) { sandbox.Main(m) }

// TestEngine holds this engine to the suite of all engines.
func TestEngine(t *testing.T) {
	r := newRig(t)
	r.engine.o.Agent = enginetest.Build(t, "lodge/cmd/lodge-agent")
	k, kill := enginetest.Keeper(t)
	bridge(t)
	enginetest.Run(t, enginetest.Harness{
		Engine: r.engine, Keepers: k, KillKeeper: kill, NIC: suiteNIC,
		Guest: func(t *testing.T, spec guest.Spec) (guest.Guest, engine.Parts) {
			return r.guest(func(g *guest.Guest, p *engine.Parts) {
				if spec.Memory == 0 {
					spec.Memory = 256 << 20
				}
				if spec.Processes == 0 {
					spec.Processes = 200
				}
				if spec.Disk > 0 {
					p.Root.Writable = limited(t, spec.Disk)
				}
				g.Spec = spec
			})
		},
		Processes: func(t *testing.T, parts engine.Parts) int64 {
			for _, tasks := range r.tree.Join(parts.Cgroup).Tasks {
				if b, err := os.ReadFile(filepath.Join(filepath.Dir(tasks), "pids.max")); err == nil {
					n, _ := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
					return n
				}
			}
			b, err := os.ReadFile(filepath.Join(r.tree.Join(parts.Cgroup).Dir, "pids.max"))
			if err != nil {
				t.Fatal(err)
			}
			n, _ := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
			return n
		},
	})
}

// limited is a volume's directory that ends at size.
func limited(t *testing.T, size uint64) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("lodge-test", dir, "tmpfs", 0, fmt.Sprintf("mode=711,size=%d", size)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	for d, mode := range map[string]os.FileMode{"upper": 0o755, "work": 0o700} {
		if err := os.Mkdir(filepath.Join(dir, d), mode); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// bridge makes the network of the suite's guests.
func bridge(t *testing.T) {
	t.Helper()
	for _, c := range []string{"link add suite0 type bridge", "addr add 10.68.0.254/24 dev suite0", "link set suite0 up"} {
		if out, err := exec.Command("ip", strings.Fields(c)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", c, err, out)
		}
	}
	t.Cleanup(func() { exec.Command("ip", "link", "del", "suite0").Run() })
}

func suiteNIC(_ *testing.T, n int) engine.NIC {
	return engine.NIC{
		Name: "eth0", MAC: fmt.Sprintf("02:00:00:00:01:%02x", n), Device: fmt.Sprintf("lgs%dn0", n), Master: "suite0", MTU: 1500,
		IPv4: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 68, 0, byte(n)}), 24), Gateway4: netip.MustParseAddr("10.68.0.254"),
	}
}
