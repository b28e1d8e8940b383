package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
)

// Limits is what a group may use at most. A zero is no limit, but for Swap.
type Limits struct {
	CPUs      float64 // processors' worth of time
	CPUWeight int     // share under contention, 1 to 10,000; 0 is 100
	Memory    uint64  // bytes
	Swap      uint64  // bytes beyond Memory; without a Memory limit swap has none
	Processes int64
	IO        IO
	Device    string // "major:minor" of the block device that IO is about; empty: IO is not limited
}

// IO is the limits of disk traffic; 0 is none.
type IO struct {
	ReadBPS   uint64 // bytes a second
	WriteBPS  uint64 // bytes a second
	ReadIOPS  uint64 // operations a second
	WriteIOPS uint64 // operations a second
}

// setting is one value for one file.
type setting struct{ file, value string }

// period is the time in which a processor quota is handed out anew, in
// microseconds: the kernel's default.
const period = 100_000

// quota returns the processor time per period in microseconds, and whether
// there is a limit. The kernel refuses less than a millisecond.
func (l Limits) quota() (int64, bool) {
	if l.CPUs <= 0 {
		return 0, false
	}
	return max(1000, int64(math.Round(l.CPUs*period))), true
}

func (l Limits) weight() int {
	if l.CPUWeight <= 0 {
		return 100
	}
	return min(l.CPUWeight, 10_000)
}

// cpuV1 maps the default weight 100 to the default of 1,024 shares.
func (l Limits) cpuV1() []setting {
	quota := "-1"
	if q, limited := l.quota(); limited {
		quota = strconv.FormatInt(q, 10)
	}
	shares := min(max(l.weight()*1024/100, 2), 262_144)
	return []setting{
		{"cpu.cfs_period_us", strconv.Itoa(period)},
		{"cpu.cfs_quota_us", quota},
		{"cpu.shares", strconv.Itoa(shares)},
	}
}

func (l Limits) cpuV2() []setting {
	quota := "max"
	if q, limited := l.quota(); limited {
		quota = strconv.FormatInt(q, 10)
	}
	return []setting{{"cpu.max", quota + " " + strconv.Itoa(period)}, {"cpu.weight", strconv.Itoa(l.weight())}}
}

func (l Limits) processes() []setting {
	return []setting{{"pids.max", orMax(uint64(max(0, l.Processes)))}}
}

// ioV1 sets all four, because 0 is how v1 spells that there is no limit.
func (l Limits) ioV1() []setting {
	if l.Device == "" {
		return nil
	}
	row := func(file string, n uint64) setting {
		return setting{"blkio.throttle." + file, l.Device + " " + strconv.FormatUint(n, 10)}
	}
	return []setting{
		row("read_bps_device", l.IO.ReadBPS), row("write_bps_device", l.IO.WriteBPS),
		row("read_iops_device", l.IO.ReadIOPS), row("write_iops_device", l.IO.WriteIOPS),
	}
}

func (l Limits) ioV2() []setting {
	if l.Device == "" {
		return nil
	}
	return []setting{{"io.max", fmt.Sprintf("%s rbps=%s wbps=%s riops=%s wiops=%s", l.Device,
		orMax(l.IO.ReadBPS), orMax(l.IO.WriteBPS), orMax(l.IO.ReadIOPS), orMax(l.IO.WriteIOPS))}}
}

func orMax(n uint64) string {
	if n == 0 {
		return "max"
	}
	return strconv.FormatUint(n, 10)
}

// Set changes the limits of the group called name while it runs. A memory
// limit below what the group uses and cannot give back is refused with
// errs.Conflict, and the old one stays.
func (t *Tree) Set(name string, l Limits) error {
	if err := checkName(name); err != nil {
		return err
	}
	set := func(v1name string, v1 []setting, v2name string, v2 []setting) error {
		if dir, ok := t.v1[v1name]; ok {
			return apply(filepath.Join(dir, name), v1)
		}
		if t.layout.onV2(v2name) {
			return apply(filepath.Join(t.unified, name), v2)
		}
		return nil // Layout.Missing says so
	}
	if err := t.setMemory(name, l); err != nil {
		return err
	}
	if err := set(cpu, l.cpuV1(), cpu, l.cpuV2()); err != nil {
		return err
	}
	if err := set(pids, l.processes(), pids, l.processes()); err != nil {
		return err
	}
	return set(blkio, l.ioV1(), ioV2, l.ioV2())
}

// apply writes values to the files of a group. A file that this kernel was not
// built with is passed over: Layout.Missing says so.
func apply(dir string, values []setting) error {
	for _, s := range values {
		err := write(filepath.Join(dir, s.file), s.value)
		if errors.Is(err, fs.ErrNotExist) {
			if _, gone := os.Stat(dir); gone != nil {
				return err
			}
			continue
		}
		if err != nil {
			return fmt.Errorf("%s to %s of %s: %w", s.value, s.file, dir, err)
		}
	}
	return nil
}

func (t *Tree) setMemory(name string, l Limits) error {
	if dir, ok := t.v1[memory]; ok {
		return setMemoryV1(filepath.Join(dir, name), l)
	}
	if t.layout.onV2(memory) {
		return setMemoryV2(filepath.Join(t.unified, name), l)
	}
	return nil
}

// unlimited is what v1 calls no limit.
const unlimited = "-1"

// setMemoryV1 keeps the kernel's rule at every moment that the limit of memory
// and swap together is not below that of memory: what grows is set from the
// outside in, what shrinks from the inside out.
func setMemoryV1(dir string, l Limits) error {
	mem, both := setting{"memory.limit_in_bytes", unlimited}, setting{"memory.memsw.limit_in_bytes", unlimited}
	if l.Memory > 0 {
		mem.value = strconv.FormatUint(l.Memory, 10)
		both.value = strconv.FormatUint(l.Memory+l.Swap, 10)
	}
	old, err := readUint(filepath.Join(dir, mem.file))
	if err != nil {
		return err
	}
	order := []setting{mem, both}
	if l.Memory == 0 || l.Memory > old {
		order = []setting{both, mem}
	}
	for i, s := range order {
		err := apply(dir, []setting{s})
		if err == nil {
			continue
		}
		if i == 1 && order[0] == mem { // the first half worked: back to what it was
			err = errors.Join(err, apply(dir, []setting{{mem.file, strconv.FormatUint(old, 10)}}))
		}
		if errors.Is(err, unix.EBUSY) {
			used, _ := readUint(filepath.Join(dir, "memory.usage_in_bytes"))
			return inUse(l.Memory, used, err)
		}
		return err
	}
	return nil
}

// setMemoryV2 asks for memory back before it lowers the limit: the kernel
// would otherwise kill processes of the group until it fits.
func setMemoryV2(dir string, l Limits) error {
	swap := strconv.FormatUint(l.Swap, 10)
	if l.Memory == 0 {
		swap = "max"
	}
	current := filepath.Join(dir, "memory.current")
	used, err := readUint(current)
	if err != nil {
		return err
	}
	if l.Memory > 0 && used > l.Memory {
		// What cannot be reclaimed is seen below; older kernels lack the file.
		_ = write(filepath.Join(dir, "memory.reclaim"), strconv.FormatUint(used-l.Memory, 10))
		if used, err = readUint(current); err != nil {
			return err
		}
		if used > l.Memory {
			return inUse(l.Memory, used, nil)
		}
	}
	return apply(dir, []setting{{"memory.swap.max", swap}, {"memory.max", orMax(l.Memory)}})
}

func inUse(limit, used uint64, err error) error {
	return &errs.Error{Op: "cgroup.set", Kind: errs.Conflict, Field: "memory",
		Msg:  fmt.Sprintf("the guest uses %d MiB, more than the new limit of %d MiB", used>>20, limit>>20),
		Hint: "end some of its programs first, or restart it with the new limit", Err: err}
}

// readUint reads a file that holds one number; "max" is the highest there is.
func readUint(path string) (uint64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	s := strings.TrimSpace(string(b))
	if s == "max" {
		return math.MaxUint64, nil
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	return n, nil
}
