package uml

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"lodge/internal/model/guest"
)

// Usage tells what the guest costs the host. Its processes each are one of the
// host's.
func (m *Machine) Usage(context.Context) (guest.Usage, error) {
	c, err := m.e.o.Tree.Usage(m.parts.Cgroup)
	if err != nil {
		return guest.Usage{}, fmt.Errorf("usage of %s: %w", m.g.Name, err)
	}
	u := guest.Usage{
		CPUSeconds: c.CPUSeconds, Throttled: c.Throttled, Memory: c.Memory, MemoryCache: c.Cache, MemoryLimit: min(memoryOf(m.g.Spec), m.line.memory),
		Swap: c.Swap, Processes: c.Processes, ReadBytes: c.ReadBytes, WriteBytes: c.WriteBytes, OOMKills: c.OOMKills,
	}
	text, err := os.ReadFile("/proc/net/dev")
	if err != nil {
		return guest.Usage{}, fmt.Errorf("network counters of %s: %w", m.g.Name, err)
	}
	for _, n := range m.cards() {
		addTraffic(&u, string(text), n.Device)
	}
	return u, nil
}

// addTraffic adds what /proc/net/dev says of the host's end of a card: what the
// host sent there is what the guest received.
func addTraffic(u *guest.Usage, text, device string) {
	for l := range strings.Lines(text) {
		name, numbers, ok := strings.Cut(l, ":")
		f := strings.Fields(numbers)
		if !ok || strings.TrimSpace(name) != device || len(f) < 10 {
			continue
		}
		for i, to := range map[int]*uint64{0: &u.TxBytes, 1: &u.TxPackets, 8: &u.RxBytes, 9: &u.RxPackets} {
			if n, err := strconv.ParseUint(f[i], 10, 64); err == nil {
				*to += n
			}
		}
	}
}
