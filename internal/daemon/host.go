package daemon

import (
	"bufio"
	"context"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"lodge/api"
	"lodge/internal/base/version"
	"lodge/internal/fabric/bridge"
	"lodge/internal/model/guest"
)

// facts of the machine that do not change while it runs.
type facts struct {
	cpus   int
	memory uint64 // bytes
}

func hostFacts() (facts, error) {
	var si unix.Sysinfo_t
	if err := unix.Sysinfo(&si); err != nil {
		return facts{}, err
	}
	return facts{cpus: runtime.NumCPU(), memory: uint64(si.Totalram) * uint64(si.Unit)}, nil
}

// processors lists those that the daemon, and so its guests, may run on.
func processors() []int {
	var set unix.CPUSet
	if unix.SchedGetaffinity(0, &set) != nil {
		return nil
	}
	var all []int
	for cpu := range len(set) * strconv.IntSize {
		if set.IsSet(cpu) {
			all = append(all, cpu)
		}
	}
	return all
}

// host describes the machine for GET /v1/host.
func (d *daemon) host(ctx context.Context) (api.Host, error) {
	var si unix.Sysinfo_t
	if err := unix.Sysinfo(&si); err != nil {
		return api.Host{}, err
	}
	var un unix.Utsname
	if err := unix.Uname(&un); err != nil {
		return api.Host{}, err
	}
	f, err := hostFacts()
	if err != nil {
		return api.Host{}, err
	}
	h := api.Host{
		Name: d.opt.Host, Version: version.Version, Kernel: unix.ByteSliceToString(un.Release[:]), OS: prettyName(),
		Architecture: runtime.GOARCH, CPUs: f.cpus, MemoryBytes: f.memory, MemoryFree: available(),
		Load: float64(si.Loads[0]) / (1 << 16), Uptime: int64(si.Uptime), // SI_LOAD_SHIFT of linux/sysinfo.h is 16
		Cgroups: d.layout.Describe(), Guests: d.tables.Guests.Len(), DataDir: d.opt.DataDir,
	}
	for _, g := range d.tables.Guests.List() {
		if g.Status.Phase == guest.Running || g.Status.Phase == guest.Paused {
			h.Running++
		}
	}
	for _, info := range d.drivers.engines.Infos(ctx) {
		h.Engines = append(h.Engines, d.engineAPI(info))
	}
	h.Templates, h.TemplateBytes = d.templates.Size()
	h.Standbys = d.guests.Standbys()
	return h, nil
}

// prettyName returns the distribution's name for people (os-release(5)).
func prettyName() string {
	return keyed("/etc/os-release", "PRETTY_NAME=", runtime.GOOS, func(s string) string { return strings.Trim(s, `"`) })
}

// available returns the bytes of memory that can be had without swapping
// (MemAvailable of proc_meminfo(5)).
func available() uint64 {
	kib := keyed("/proc/meminfo", "MemAvailable:", "0", func(s string) string { return strings.TrimSuffix(strings.TrimSpace(s), " kB") })
	n, err := strconv.ParseUint(kib, 10, 64)
	if err != nil {
		return 0
	}
	return n << 10
}

// keyed returns the cleaned rest of the first line of a file that begins with
// key, or otherwise.
func keyed(path, key, otherwise string, clean func(string) string) string {
	f, err := os.Open(path)
	if err != nil {
		return otherwise
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), key); ok {
			return clean(rest)
		}
	}
	return otherwise
}

// hostPrefixes is what the host can reach by itself. A network that overlaps it
// would take its traffic.
func (d *daemon) hostPrefixes() []netip.Prefix {
	routes, err := bridge.Routes()
	if err != nil {
		d.log.Warn("the host's routes cannot be read", "error", err)
	}
	return routes
}
