package cgroup

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Usage is what a group uses. Counters rise from when the group was made.
type Usage struct {
	CPUSeconds float64 // counter
	Throttled  float64 // counter: seconds that the processor limit held it back
	Memory     uint64  // bytes, file cache included
	Cache      uint64  // bytes of Memory that are file cache, without those of memory file systems
	Swap       uint64  // bytes
	Processes  int64   // threads counted
	ReadBytes  uint64  // counter, of block devices
	WriteBytes uint64  // counter
	OOMKills   uint64  // counter: processes that the memory limit ended
}

// Own is the memory that is not the host's cache of files, in bytes.
func (u Usage) Own() uint64 { return u.Memory - min(u.Memory, u.Cache) }

// Usage reads what the group called name uses. Figures whose controller this
// host lacks are zero.
func (t *Tree) Usage(name string) (Usage, error) {
	if err := checkName(name); err != nil {
		return Usage{}, err
	}
	dir := filepath.Join(t.unified, name)
	if _, err := os.Stat(dir); err != nil {
		return Usage{}, err
	}
	r := reader{}
	var u Usage
	t.cpuUsage(&r, name, &u)
	t.memoryUsage(&r, name, &u)
	if v1, ok := t.v1[pids]; ok {
		u.Processes = int64(r.number(filepath.Join(v1, name, "pids.current")))
	} else {
		u.Processes = int64(r.number(filepath.Join(dir, "pids.current")))
	}
	if v1, ok := t.v1[blkio]; ok {
		u.ReadBytes, u.WriteBytes = parseServiced(r.text(filepath.Join(v1, name, "blkio.throttle.io_service_bytes_recursive")))
	} else {
		u.ReadBytes, u.WriteBytes = parseIOStat(r.text(filepath.Join(dir, "io.stat")))
	}
	return u, r.err
}

func (t *Tree) cpuUsage(r *reader, name string, u *Usage) {
	stat := parseKeyed(r.text(filepath.Join(t.unified, name, "cpu.stat")))
	if dir, ok := t.v1[cpuacct]; ok {
		u.CPUSeconds = float64(r.number(filepath.Join(dir, name, "cpuacct.usage"))) / 1e9
	} else {
		u.CPUSeconds = float64(stat["usage_usec"]) / 1e6
	}
	if dir, ok := t.v1[cpu]; ok {
		u.Throttled = float64(parseKeyed(r.text(filepath.Join(dir, name, "cpu.stat")))["throttled_time"]) / 1e9
	} else {
		u.Throttled = float64(stat["throttled_usec"]) / 1e6
	}
}

func (t *Tree) memoryUsage(r *reader, name string, u *Usage) {
	if base, ok := t.v1[memory]; ok {
		dir := filepath.Join(base, name)
		stat := parseKeyed(r.text(filepath.Join(dir, "memory.stat")))
		u.Memory = r.number(filepath.Join(dir, "memory.usage_in_bytes"))
		u.Cache, u.Swap = stat["total_cache"]-min(stat["total_shmem"], stat["total_cache"]), stat["total_swap"]
		u.OOMKills = parseKeyed(r.text(filepath.Join(dir, "memory.oom_control")))["oom_kill"]
		return
	}
	dir := filepath.Join(t.unified, name)
	u.Memory = r.number(filepath.Join(dir, "memory.current"))
	stat := parseKeyed(r.text(filepath.Join(dir, "memory.stat")))
	u.Cache = stat["file"] - min(stat["shmem"], stat["file"])
	u.Swap = r.number(filepath.Join(dir, "memory.swap.current"))
	u.OOMKills = parseKeyed(r.text(filepath.Join(dir, "memory.events")))["oom_kill"]
}

// reader reads many files and keeps the first error. A file that is not there
// is empty.
type reader struct{ err error }

func (r *reader) text(path string) string {
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && r.err == nil {
		r.err = err
	}
	return string(b)
}

func (r *reader) number(path string) uint64 {
	n, err := readUint(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && r.err == nil {
		r.err = err
	}
	return n
}

// parseKeyed reads lines of a word and a number. Other lines are passed over.
func parseKeyed(text string) map[string]uint64 {
	out := map[string]uint64{}
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if n, err := strconv.ParseUint(value, 10, 64); err == nil {
			out[key] = n
		}
	}
	return out
}

// parseServiced adds up the lines "MAJOR:MINOR Read BYTES" of all devices.
func parseServiced(text string) (read, written uint64) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) != 3 {
			continue
		}
		n, err := strconv.ParseUint(f[2], 10, 64)
		switch {
		case err != nil:
		case f[1] == "Read":
			read += n
		case f[1] == "Write":
			written += n
		}
	}
	return read, written
}

// parseIOStat adds up the lines "MAJOR:MINOR rbytes=N wbytes=N …" of all
// devices.
func parseIOStat(text string) (read, written uint64) {
	for field := range strings.FieldsSeq(text) {
		key, value, _ := strings.Cut(field, "=")
		n, err := strconv.ParseUint(value, 10, 64)
		switch {
		case err != nil:
		case key == "rbytes":
			read += n
		case key == "wbytes":
			written += n
		}
	}
	return read, written
}
