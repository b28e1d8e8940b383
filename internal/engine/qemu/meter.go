package qemu

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"lodge/internal/model/guest"
)

// Usage tells what the guest uses now and has used since it started.
// What only the guest itself can say, it is asked, if it answers soon.
func (m *Machine) Usage(ctx context.Context) (guest.Usage, error) {
	c, err := m.e.o.Tree.Usage(m.parts.Cgroup)
	if err != nil {
		return guest.Usage{}, fmt.Errorf("usage of %s: %w", m.g.Name, err)
	}
	u := guest.Usage{
		CPUSeconds: c.CPUSeconds, Throttled: c.Throttled, Memory: c.Memory, MemoryCache: c.Cache, MemoryLimit: m.g.Spec.Memory,
		Swap: c.Swap, Processes: c.Processes, ReadBytes: c.ReadBytes, WriteBytes: c.WriteBytes, OOMKills: c.OOMKills,
	}
	for _, n := range m.parts.NICs {
		// What the host's end receives, the guest has sent.
		u.RxBytes += counter(n.Device, "tx_bytes")
		u.RxPackets += counter(n.Device, "tx_packets")
		u.TxBytes += counter(n.Device, "rx_bytes")
		u.TxPackets += counter(n.Device, "rx_packets")
	}
	ctx, cancel := context.WithTimeout(ctx, statsTime)
	defer cancel()
	m.askUsage(ctx, &u)
	return u, nil
}

// askUsage adds what only the guest itself knows: what it does with its memory,
// of which the host sees that it was touched.
func (m *Machine) askUsage(ctx context.Context, u *guest.Usage) {
	a := m.link.agent
	if a == nil {
		s, err := m.link.memoryStats(ctx)
		if used, caches, ok := s.used(); ok && err == nil {
			u.Memory, u.MemoryCache = used, caches
		}
		return
	}
	if m.awake() != nil || !a.State().Connected {
		return
	}
	s, err := a.Stats(ctx)
	if err != nil {
		return
	}
	u.Processes, u.OOMKills = s.Processes, u.OOMKills+s.OOMKills
	if s.MemoryTotal >= s.MemoryFree {
		u.Memory, u.MemoryCache = s.MemoryTotal-s.MemoryFree, s.MemoryCache
	}
}

// statsTime is how long the agent may take to say what its guest uses.
const statsTime = 2 * time.Second

// counter reads a network card's counter; one that has just gone has counted
// nothing.
func counter(device, name string) uint64 {
	text, err := os.ReadFile(filepath.Join("/sys/class/net", device, "statistics", name))
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	return n
}
