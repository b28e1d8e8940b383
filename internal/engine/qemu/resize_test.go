package qemu

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lodge/internal/base/errs"
	"lodge/internal/engine"
	"lodge/internal/engine/enginetest"
	"lodge/internal/model/guest"
	"lodge/internal/model/image"
)

// until waits for the output of a command in the guest.
func (x *kept) until(command, want string) {
	x.t.Helper()
	is := ""
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if is = x.shell(command); is == want {
			return
		}
	}
	x.t.Errorf("%s says %q, not %q", command, is, want)
}

// TestLessWhileItRuns takes processors and memory away from a guest and gives
// them back.
func TestLessWhileItRuns(t *testing.T) {
	r := newRig(t)
	if r.engine.o.cpus() < 2 {
		t.Skip("needs a host with two processors")
	}
	k, _ := enginetest.Keeper(t)
	g, p := r.guest(t, guest.Spec{CPUs: 2, Memory: 192 << 20})
	x := r.start(t, k, g, p)
	x.ready()
	const processors = "grep -c ^processor /proc/cpuinfo"
	x.until(processors, "2")
	for _, n := range []string{"1", "2"} {
		spec := g.Spec
		if spec.CPUs = 2; n == "1" {
			spec.CPUs = 1
		}
		if err := x.m.Resize(t.Context(), spec); err != nil {
			t.Fatal(err)
		}
		x.until(processors, n)
	}
	var said bytes.Buffer
	if err := x.m.Debug(t.Context(), "memory", &said); err != nil {
		t.Fatal(err)
	}
	for _, what := range []string{"given", "total memory", "free memory", "available memory", "major faults", "swap in"} {
		if !strings.Contains(said.String(), what) {
			t.Errorf("no %q in what the guest says of its memory:\n%s", what, said.String())
		}
	}
	const free = "awk '/^MemFree/ {print ($2 < 65536)}' /proc/meminfo"
	x.until(free, "0")
	for _, memory := range []uint64{100 << 20, g.Spec.Memory} {
		spec := g.Spec
		spec.Memory = memory
		if err := x.m.Resize(t.Context(), spec); err != nil {
			t.Fatal(err)
		}
		x.until(free, map[bool]string{true: "1", false: "0"}[memory < g.Spec.Memory])
	}
	// Where KVM runs guests, processors are taken away for real.
	w, err := x.m.link.machine(t.Context())
	if err == nil {
		err = x.m.takeProcessors(t.Context(), w, 1)
	}
	if err != nil {
		t.Fatal(err)
	}
	x.until("ls -d /sys/devices/system/cpu/cpu[0-9]*", "/sys/devices/system/cpu/cpu0")
	if w, err := x.m.link.machine(t.Context()); err != nil || len(w.Plugged) != 0 {
		t.Errorf("%+v, %v", w.Plugged, err)
	}
}

// TestNoDrivers: a guest without virtio's drivers is refused plainly and soon
// what takes them.
func TestNoDrivers(t *testing.T) {
	r := newRig(t)
	k, _ := enginetest.Keeper(t)
	for name, os := range map[string]image.Info{"what PCs had": {Disk: "raw"}, "virtio": {Disk: "raw", OS: "debian"}} {
		t.Run(name, func(t *testing.T) {
			g, p := r.ownDisk(t, bootSector("the disk boots"), guest.Spec{Memory: 64 << 20}, os)
			x := r.start(t, k, g, p)
			x.says("the disk boots")
			less := g.Spec
			less.Memory = 48 << 20
			if err := x.m.Resize(t.Context(), less); !errs.Is(err, errs.Unsupported) || !strings.Contains(err.Error(), "no driver") {
				t.Errorf("less memory: %v", err)
			}
			if os.OS == "" {
				err := x.m.PlugDisk(t.Context(), engine.Disk{Name: "data", Path: filepath.Join(t.TempDir(), "data"), Format: "raw"})
				if !errs.Is(err, errs.Unsupported) || !strings.Contains(err.Error(), "no ports") {
					t.Errorf("one more disk: %v", err)
				}
			}
			var said bytes.Buffer
			if err := x.m.Debug(t.Context(), "memory", &said); err != nil || !strings.Contains(said.String(), "says nothing") {
				t.Errorf("%q, %v", said.String(), err)
			}
		})
	}
}

func TestMemoryStats(t *testing.T) {
	for name, c := range map[string]struct {
		s            memoryStats
		used, caches uint64
		ok           bool
	}{
		"nothing said": {memoryStats{All: map[string]uint64{"stat-total-memory": 10, "stat-free-memory": 4}}, 0, 0, false},
		"all":          {memoryStats{1, map[string]uint64{"stat-total-memory": 10, "stat-free-memory": 4, "stat-disk-caches": 2}}, 6, 2, true},
		"a lie":        {memoryStats{1, map[string]uint64{"stat-total-memory": 10, "stat-free-memory": 11}}, 0, 0, false},
		"half":         {memoryStats{1, map[string]uint64{"stat-total-memory": 10, "stat-free-memory": unknown}}, 0, 0, false},
		"many caches":  {memoryStats{1, map[string]uint64{"stat-total-memory": 10, "stat-free-memory": 4, "stat-disk-caches": 20}}, 6, 6, true},
		"no caches":    {memoryStats{1, map[string]uint64{"stat-total-memory": 10, "stat-free-memory": 4, "stat-disk-caches": unknown}}, 6, 0, true},
	} {
		if used, caches, ok := c.s.used(); used != c.used || caches != c.caches || ok != c.ok {
			t.Errorf("%s: %d, %d, %v", name, used, caches, ok)
		}
	}
}
