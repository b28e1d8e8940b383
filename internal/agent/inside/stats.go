package inside

import (
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"lodge/internal/agent"
)

// procMax bounds what is read of a file that users of the guest can make long.
const procMax = 1 << 20

// stats is what the guest says of itself; what it does not know is 0.
func stats() *agent.Stats {
	s := &agent.Stats{}
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		s.Uptime = float64(info.Uptime)
		for i, l := range info.Loads {
			s.Load[i] = float64(l) / (1 << 16)
		}
		unit := uint64(info.Unit)
		s.MemoryTotal, s.SwapTotal, s.SwapFree = info.Totalram*unit, info.Totalswap*unit, info.Freeswap*unit
	}
	var fs unix.Statfs_t
	if unix.Statfs("/", &fs) == nil {
		s.DiskTotal, s.DiskFree = fs.Blocks*uint64(fs.Bsize), fs.Bavail*uint64(fs.Bsize)
	}
	memory := keyed("/proc/meminfo")
	s.MemoryFree, s.MemoryUsable = memory["MemFree:"]<<10, memory["MemAvailable:"]<<10
	s.MemoryCache = (memory["Cached:"] + memory["Buffers:"] + memory["SReclaimable:"]) << 10
	s.OOMKills = keyed("/proc/vmstat")["oom_kill"]
	s.Processes = processes()
	stat := read("/proc/stat")
	s.CPUSeconds, s.CPUs = cpuSeconds(stat), processors(stat)
	network(s, read("/proc/net/dev"))
	disks(s, read("/proc/diskstats"))
	return s
}

func read(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	b, _ := io.ReadAll(io.LimitReader(f, procMax))
	return string(b)
}

// keyed reads lines of a name and a number.
func keyed(path string) map[string]uint64 {
	out := map[string]uint64{}
	for line := range strings.Lines(read(path)) {
		if f := strings.Fields(line); len(f) >= 2 {
			out[f[0]] = number(f[1])
		}
	}
	return out
}

func number(s string) uint64 {
	n, _ := strconv.ParseUint(s, 10, 64)
	return n
}

// processes counts what /proc/loadavg does not: it has threads.
func processes() int64 {
	d, err := os.Open("/proc")
	if err != nil {
		return 0
	}
	defer d.Close()
	names, _ := d.Readdirnames(-1)
	n := int64(0)
	for _, name := range names {
		if name[0] >= '1' && name[0] <= '9' {
			n++
		}
	}
	return n
}

// ticks is how many of the units of /proc/stat are a second, on every machine.
const ticks = 100

// processors counts those in use, of which each has a line. They change while
// the guest runs.
func processors(stat string) (n int) {
	for line := range strings.Lines(stat) {
		if rest, ok := strings.CutPrefix(line, "cpu"); ok && strings.IndexAny(rest, "0123456789") == 0 {
			n++
		}
	}
	return n
}

// cpuSeconds adds what all processors did but wait. Guest time is user time
// already.
func cpuSeconds(stat string) float64 {
	first, _, _ := strings.Cut(stat, "\n")
	f := strings.Fields(first)
	var sum uint64
	for i, v := range f {
		if i >= 1 && i <= 7 && i != 4 && i != 5 {
			sum += number(v)
		}
	}
	return float64(sum) / ticks
}

// network adds what all cards but the loopback carried.
func network(s *agent.Stats, dev string) {
	for line := range strings.Lines(dev) {
		name, numbers, ok := strings.Cut(line, ":")
		f := strings.Fields(numbers)
		if !ok || len(f) < 10 || strings.TrimSpace(name) == "lo" {
			continue
		}
		s.RxBytes += number(f[0])
		s.RxPackets += number(f[1])
		s.TxBytes += number(f[8])
		s.TxPackets += number(f[9])
	}
}

// sector is the unit of /proc/diskstats.
const sector = 512

// disks adds what whole disks did: those that have a folder in /sys/block.
func disks(s *agent.Stats, text string) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 10 || strings.HasPrefix(f[2], "loop") || strings.HasPrefix(f[2], "ram") {
			continue
		}
		if _, err := os.Stat("/sys/block/" + f[2]); err != nil {
			continue
		}
		s.DiskReadBytes += number(f[5]) * sector
		s.DiskWriteBytes += number(f[9]) * sector
	}
}
