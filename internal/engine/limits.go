package engine

import (
	"math"
	"path/filepath"

	"lodge/internal/base/cgroup"
	"lodge/internal/model/guest"
)

// Limits returns what a guest of spec may use, as its control group takes it.
// disk is the "major:minor" that its writable layer lies on; without one its IO
// cannot be limited.
func Limits(spec guest.Spec, disk string) cgroup.Limits {
	processes := spec.Processes
	if processes == 0 {
		processes = guest.DefaultProcesses
	}
	return cgroup.Limits{
		CPUs: spec.CPUs, CPUWeight: spec.CPUWeight,
		Memory: spec.Memory, Swap: spec.Swap, Processes: processes, Device: disk,
		IO: cgroup.IO{ReadBPS: spec.IO.ReadBPS, WriteBPS: spec.IO.WriteBPS, ReadIOPS: spec.IO.ReadIOPS, WriteIOPS: spec.IO.WriteIOPS},
	}
}

// Overhead is what a guest's monitor uses for itself.
type Overhead struct {
	Memory uint64 // bytes
	// CPUs is how many processors' worth of time the monitor's threads may
	// take that are not the guest's processors. It is granted beside whole
	// processors, of which each is a thread that cannot take more than one; a
	// guest with a share of a processor is held to that with its monitor.
	CPUs float64
	// Swap says that all of it may be swapped out while the guest is idle. What
	// the guest itself may have of swap space is its own matter.
	Swap bool
}

// Limits returns what the group of a guest of spec may use: the guest's own
// limits, and room for its monitor.
func (o Overhead) Limits(spec guest.Spec, disk string) cgroup.Limits {
	l := Limits(spec, disk)
	if l.Memory > 0 {
		l.Memory += o.Memory
		if o.Swap {
			l.Swap = l.Memory
		}
	}
	if l.CPUs > 0 && l.CPUs == math.Trunc(l.CPUs) {
		l.CPUs += o.CPUs
	}
	return l
}

// TPMState is the folder in a guest's writable volume with all that its security
// module knows. Without it the module is a new one, which nobody knows.
func TPMState(volume string) string { return filepath.Join(volume, "tpm") }

// ConsoleLog returns where the console of the guest whose directory is dir is
// kept, for the engine that names it to the keeper and for whoever reads it.
func ConsoleLog(dir string) string { return filepath.Join(dir, "console.log") }
