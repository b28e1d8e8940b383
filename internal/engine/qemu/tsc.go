package qemu

import (
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A microvm has no clock but the processor's time stamp counter that is fit to
// tell time by, and an old timer that a kernel measures the counter with. On a
// host that does other things too that fails where the processor is imitated,
// and the kernel waits for ever (seen with Linux 6.1 and QEMU 7.2). The
// imitation counts as the host's counter does, so the kernel is told how fast that
// is.

// tscWords are for the kernel of a guest on a host whose counter counts so many
// thousands a second; 0: it is not known.
func tscWords(khz uint64) string {
	if khz == 0 {
		return ""
	}
	return fmt.Sprintf(" tsc_early_khz=%d", khz)
}

// tscKHz finds out how fast the host's counter counts: as the kernel tells
// programs that measure themselves, or, where it does not and is a guest itself,
// from the frequency that it shows, which does not change there.
func tscKHz() uint64 {
	if khz := tscPerf(); khz != 0 {
		return khz
	}
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return 0
	}
	return tscShown(string(text))
}

const (
	canUserTime = 1 << 3 // perf_event_open(2): the page's times can be used
	pageBytes   = 4096
)

func tscPerf() uint64 {
	attr := unix.PerfEventAttr{Type: unix.PERF_TYPE_SOFTWARE, Size: uint32(unsafe.Sizeof(unix.PerfEventAttr{})), Config: unix.PERF_COUNT_SW_DUMMY}
	fd, err := unix.PerfEventOpen(&attr, 0, -1, -1, unix.PERF_FLAG_FD_CLOEXEC)
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	b, err := unix.Mmap(fd, 0, pageBytes, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return 0
	}
	defer unix.Munmap(b)
	p := (*unix.PerfEventMmapPage)(unsafe.Pointer(&b[0]))
	if p.Capabilities&canUserTime == 0 || p.Time_mult == 0 {
		return 0
	}
	return uint64(math.Round(math.Ldexp(1e6, int(p.Time_shift)) / float64(p.Time_mult)))
}

// tscShown reads the frequency out of what the kernel shows of the processors of
// a guest.
func tscShown(cpuinfo string) uint64 {
	one, _, _ := strings.Cut(cpuinfo, "\n\n")
	guest, khz := false, uint64(0)
	for line := range strings.Lines(one) {
		key, value, _ := strings.Cut(line, ":")
		switch strings.TrimSpace(key) {
		case "flags":
			flags := strings.Fields(value)
			guest = slices.Contains(flags, "hypervisor") && slices.Contains(flags, "constant_tsc")
		case "cpu MHz":
			if mhz, err := strconv.ParseFloat(strings.TrimSpace(value), 64); err == nil && mhz > 0 && mhz < 1e6 {
				khz = uint64(math.Round(mhz * 1000))
			}
		}
	}
	if !guest {
		return 0
	}
	return khz
}
