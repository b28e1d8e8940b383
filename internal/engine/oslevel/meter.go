package oslevel

import (
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"lodge/internal/model/guest"
)

// readProc reads at most max bytes of a file of a process' directory.
func readProc(pid int, file string, limit int64) (string, error) {
	f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/" + file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit))
	return string(b), err
}

// netDevMax bounds what is read of a guest's list of network devices, which it
// can make as long as it likes.
const netDevMax = 1 << 20

// Usage tells what the guest uses now and has used since it started.
func (m *Machine) Usage(context.Context) (guest.Usage, error) {
	c, err := m.e.o.Tree.Usage(m.parts.Cgroup)
	if err != nil {
		return guest.Usage{}, fmt.Errorf("usage of %s: %w", m.g.Name, err)
	}
	u := guest.Usage{
		CPUSeconds: c.CPUSeconds, Throttled: c.Throttled, Memory: c.Memory, MemoryCache: c.Cache, MemoryLimit: m.g.Spec.Memory,
		Swap: c.Swap, Processes: c.Processes, ReadBytes: c.ReadBytes, WriteBytes: c.WriteBytes, OOMKills: c.OOMKills,
	}
	text, err := readProc(m.held.State().Pid, "net/dev", netDevMax)
	if err != nil {
		return guest.Usage{}, fmt.Errorf("network counters of %s: %w", m.g.Name, err)
	}
	for _, n := range m.parts.NICs {
		t := parseNetDev(text)[n.Name]
		u.RxBytes += t.rxBytes
		u.RxPackets += t.rxPackets
		u.TxBytes += t.txBytes
		u.TxPackets += t.txPackets
	}
	return u, nil
}

type traffic struct{ rxBytes, rxPackets, txBytes, txPackets uint64 }

// parseNetDev reads /proc/net/dev: after two lines of headings, a name, a
// colon, eight numbers of reception and eight of transmission. Device names are
// the guest's choice and may hold anything but a slash, a colon and white
// space; lines that make no sense are passed over.
func parseNetDev(text string) map[string]traffic {
	out := map[string]traffic{}
	for line := range strings.Lines(text) {
		name, numbers, ok := strings.Cut(line, ":")
		f := strings.Fields(numbers)
		if !ok || len(f) < 10 {
			continue
		}
		var t traffic
		bad := false
		for i, to := range map[int]*uint64{0: &t.rxBytes, 1: &t.rxPackets, 8: &t.txBytes, 9: &t.txPackets} {
			n, err := strconv.ParseUint(f[i], 10, 64)
			*to, bad = n, bad || err != nil
		}
		if !bad {
			out[strings.TrimSpace(name)] = t
		}
	}
	return out
}
