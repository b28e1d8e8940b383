package admission

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"

	"lodge/internal/base/errs"
	"lodge/internal/base/units"
	"lodge/internal/model"
	"lodge/internal/model/guest"
)

// Bounds of what can be asked for.
const (
	minMemory   = 4 << 20 // a kernel's own bookkeeping of a process tree needs nearly this much
	minDisk     = 1 << 20
	maxDisk     = 1 << 60
	maxWeight   = 10_000 // of cgroup v2's cpu.weight
	maxUserData = 64 << 10
	maxPids     = 4_194_304 // the kernel's PID_MAX_LIMIT
	maxTimeout  = 24 * 3600 // seconds
	maxCount    = 10_000
	maxLabels   = 64
	maxCommand  = 64 << 10 // bytes of a command or environment together; far below ARG_MAX
)

var (
	envName    = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	labelName  = regexp.MustCompile(`^[a-z0-9]([a-z0-9._/-]{0,61}[a-z0-9])?$`)
	imageName  = regexp.MustCompile(`^[a-z0-9][a-z0-9._/-]{0,126}$`)
	whereImage = "use lower-case letters, digits, dots, hyphens and slashes, such as debian/12"
)

// CheckImageName says what is wrong with the name of an image.
func CheckImageName(field, name string) error {
	switch {
	case name == "":
		return errs.Bad(field, "is empty", "give an image such as debian/12")
	case !imageName.MatchString(name), strings.Contains(name, ".."), strings.Contains(name, "//"), strings.HasSuffix(name, "/"):
		return errs.Bad(field, fmt.Sprintf("%q is not the name of an image", name), whereImage)
	}
	return nil
}

// checkSpec says what is wrong with a guest's spec on this host.
func checkSpec(s guest.Spec, h Host) error {
	for _, check := range []func(guest.Spec, Host) error{checkCPU, checkMemory, checkDisk, checkProgram, checkLife} {
		if err := check(s, h); err != nil {
			return err
		}
	}
	return nil
}

func checkCPU(s guest.Spec, h Host) error {
	switch {
	case math.IsNaN(s.CPUs) || s.CPUs < 0:
		return errs.Bad("cpus", "is less than 0", "give processors' worth of time, such as 0.5 or 2; 0 is all of the host's")
	case s.CPUs > 0 && s.CPUs < 0.01:
		return errs.Bad("cpus", "is too little to run with", "give at least 0.01")
	case s.CPUs > float64(h.CPUs):
		return errs.Bad("cpus", fmt.Sprintf("the host has %d", h.CPUs), fmt.Sprintf("give at most %d, or 0 for all", h.CPUs))
	case s.CPUWeight < 1 || s.CPUWeight > maxWeight:
		return errs.Bad("cpu_weight", fmt.Sprintf("%d is out of range", s.CPUWeight), "give 1 to 10000; 100 is the usual share")
	case s.Processes < 1 || s.Processes > maxPids:
		return errs.Bad("processes", fmt.Sprintf("%d is out of range", s.Processes), fmt.Sprintf("give 1 to %d", maxPids))
	}
	return nil
}

func checkMemory(s guest.Spec, h Host) error {
	switch {
	case s.Memory == 0:
		return errs.Bad("memory_bytes", "is 0", "give a size such as 512MiB")
	case s.Memory < minMemory:
		return errs.Bad("memory_bytes", units.Bytes(s.Memory)+" is too little to run with", "give at least "+units.Bytes(minMemory))
	case s.Memory > h.Memory:
		return errs.Bad("memory_bytes", fmt.Sprintf("%s is more than the host has", units.Bytes(s.Memory)), "give at most "+units.Bytes(h.Memory))
	case s.Swap > maxDisk:
		return errs.Bad("swap_bytes", "is out of range", "give a size such as 512MiB, or 0 for none")
	}
	return nil
}

func checkDisk(s guest.Spec, _ Host) error {
	if s.Disk != 0 && (s.Disk < minDisk || s.Disk > maxDisk) {
		return errs.Bad("disk_bytes", units.Bytes(s.Disk)+" is out of range", "give at least "+units.Bytes(minDisk)+", or 0 for no quota")
	}
	return nil
}

func checkProgram(s guest.Spec, _ Host) error {
	size := 0
	for i, a := range s.Command {
		size += len(a) + 1
		if strings.ContainsRune(a, 0) || i == 0 && a == "" {
			return errs.Bad("command", "has an empty program or a NUL byte in it", "give a program and its arguments")
		}
	}
	for k, v := range s.Env {
		size += len(k) + len(v) + 2
		if !envName.MatchString(k) {
			return errs.Bad("env", fmt.Sprintf("%q is not the name of a variable", k), "use letters, digits and underscores, not starting with a digit")
		}
		if strings.ContainsRune(v, 0) {
			return errs.Bad("env", fmt.Sprintf("the value of %s has a NUL byte in it", k), "")
		}
	}
	if size > maxCommand {
		return errs.Bad("command", "command and environment together are larger than "+units.Bytes(maxCommand), "put long values into a file")
	}
	if len(s.UserData) > maxUserData {
		return errs.Bad("user_data", fmt.Sprintf("is %s", units.Bytes(uint64(len(s.UserData)))), "cloud-init user-data may have at most "+units.Bytes(maxUserData)+"; let it fetch the rest")
	}
	return nil
}

func checkLife(s guest.Spec, _ Host) error {
	switch {
	case !slices.Contains([]guest.Restart{guest.Never, guest.OnFailure, guest.Always}, s.Restart):
		return errs.Bad("restart", fmt.Sprintf("%q is not a restart policy", s.Restart), "use never, on-failure or always")
	case s.Ephemeral && s.Restart == guest.Always:
		return errs.Bad("restart", "an ephemeral guest is removed when it stops", "leave out one of the two")
	case s.Autostart.Delay < 0 || s.Autostart.Delay > maxTimeout:
		return errs.Bad("autostart.delay", fmt.Sprintf("%d is out of range", s.Autostart.Delay), "give seconds")
	}
	return checkPatience("stop_timeout", s.StopTimeout)
}

// checkPatience says whether a guest may be left seconds to stop by itself.
func checkPatience(field string, seconds int) error {
	if seconds < 1 || seconds > maxTimeout {
		return errs.Bad(field, fmt.Sprintf("%d is out of range", seconds), fmt.Sprintf("give 1 to %d seconds", maxTimeout))
	}
	return nil
}

func checkLabels(labels map[string]string) error {
	if len(labels) > maxLabels {
		return errs.Bad("labels", fmt.Sprintf("%d are too many", len(labels)), fmt.Sprintf("give at most %d", maxLabels))
	}
	for k, v := range labels {
		if !labelName.MatchString(k) {
			return errs.Bad("labels", fmt.Sprintf("%q is not the name of a label", k), "use lower-case letters, digits, dots, hyphens and slashes")
		}
		if len(v) > 255 || strings.ContainsFunc(v, func(r rune) bool { return r < ' ' }) {
			return errs.Bad("labels", fmt.Sprintf("the value of %s is too long or has control characters in it", k), "")
		}
	}
	return nil
}

// guestNames lists the names that a wish asks for.
func guestNames(w GuestWish) ([]string, error) {
	if err := model.CheckName("name", w.Name); err != nil {
		return nil, err
	}
	if w.Count == 0 {
		return []string{w.Name}, nil
	}
	if w.Count < 0 || w.Count > maxCount {
		return nil, errs.Bad("count", fmt.Sprintf("%d is out of range", w.Count), fmt.Sprintf("give 1 to %d", maxCount))
	}
	if w.Publish != nil && len(*w.Publish) > 0 && w.Count > 1 {
		return nil, errs.Bad("publish", "many guests cannot share a port of the host", "add forwards one by one: lodge forward add")
	}
	names := make([]string, w.Count)
	for i := range names {
		names[i] = fmt.Sprintf("%s-%d", w.Name, i+1)
	}
	return names, model.CheckName("name", names[w.Count-1])
}

// engine returns what runs guests of s, or says why they cannot run here.
func (d *Door) engine(s guest.Spec) (Engine, error) {
	if !slices.Contains([]guest.Model{guest.VM, guest.Paravirt, guest.OS}, s.Model) {
		return Engine{}, errs.Bad("model", fmt.Sprintf("%q is not a model", s.Model), "use vm, paravirt or os")
	}
	return d.Engine(s.Model, s.Engine)
}
