// Package cgroup gives each guest a control group with limits, on every layout
// of hierarchies that a host may have.
//
// Each guest gets a directory of the v2 hierarchy, which is what it sees, what
// it may build its own groups in, and what freezes and kills it. Controllers
// that the host has on v2 act there; those it has on v1 act through a second
// group of the same name, which the guest cannot see.
package cgroup

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
)

// The controllers that limits and figures need. On v1 "io" is called blkio and
// processor time is counted by a controller of its own.
const (
	cpu     = "cpu"
	cpuacct = "cpuacct"
	memory  = "memory"
	pids    = "pids"
	blkio   = "blkio"
	ioV2    = "io"
)

// Layout is where a host has its controllers.
type Layout struct {
	unified    string            // mount point of the v2 hierarchy
	v1         map[string]string // controller -> mount point of its v1 hierarchy
	v2         []string          // controllers of the v2 hierarchy
	own        string            // this process' directory below unified: "/"
	isDelegate func(dir string) bool
}

// Detect looks at how this host mounts its hierarchies. It fails with
// errs.Unsupported where there is no v2 hierarchy at all.
func Detect() (*Layout, error) {
	mounts, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer mounts.Close()
	unified, v1, err := parseMounts(mounts)
	if err != nil {
		return nil, err
	}
	if unified == "" {
		return nil, &errs.Error{Op: "cgroup.detect", Kind: errs.Unsupported, Msg: "this host has no cgroup v2 hierarchy mounted",
			Hint: "mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified"}
	}
	self, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	l := &Layout{unified: unified, v1: v1, own: parseOwn(string(self)), isDelegate: delegatedBySystemd}
	return l, l.readControllers()
}

func (l *Layout) readControllers() error {
	b, err := os.ReadFile(filepath.Join(l.unified, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("controllers of %s: %w", l.unified, err)
	}
	l.v2 = strings.Fields(string(b))
	return nil
}

// parseMounts finds the hierarchies in the text of a mountinfo file. Of several
// mounts of one hierarchy the first counts.
func parseMounts(r io.Reader) (unified string, v1 map[string]string, err error) {
	v1 = map[string]string{}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20) // a mount with many overlay layers is one long line
	for lines.Scan() {
		left, right, found := strings.Cut(lines.Text(), " - ")
		place, kind := strings.Fields(left), strings.Fields(right)
		if !found || len(place) < 5 || len(kind) < 3 || place[3] != "/" {
			continue
		}
		switch kind[0] {
		case "cgroup2":
			if unified == "" {
				unified = place[4]
			}
		case "cgroup":
			for _, c := range strings.Split(kind[2], ",") {
				if _, seen := v1[c]; !seen && slices.Contains([]string{cpu, cpuacct, memory, pids, blkio}, c) {
					v1[c] = place[4]
				}
			}
		}
	}
	return unified, v1, lines.Err()
}

// parseOwn returns the v2 group in the text of /proc/self/cgroup.
func parseOwn(text string) string {
	for line := range strings.Lines(text) {
		if path, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::"); ok && strings.HasPrefix(path, "/") {
			return path
		}
	}
	return "/"
}

// delegatedBySystemd reports whether the unit whose group is dir has
// Delegate=yes: systemd says so in an extended attribute.
func delegatedBySystemd(dir string) bool {
	for _, name := range []string{"trusted.delegate", "user.delegate"} {
		var b [8]byte
		if n, err := unix.Getxattr(dir, name, b[:]); err == nil && string(b[:n]) == "1" {
			return true
		}
	}
	return false
}

// Describe says in a few words which layout this is.
func (l *Layout) Describe() string {
	switch {
	case len(l.v1) == 0:
		return "v2"
	case len(l.useful()) == 0:
		return "v1 controllers beside v2"
	}
	return "controllers on both v1 and v2"
}

// useful returns the controllers that act through the v2 hierarchy: those that
// are there and on no v1 hierarchy.
func (l *Layout) useful() []string {
	var out []string
	for _, c := range []string{cpu, memory, pids, ioV2} {
		if slices.Contains(l.v2, c) {
			out = append(out, c)
		}
	}
	return out
}

// onV2 reports whether a controller, named as v2 names it, acts there.
func (l *Layout) onV2(controller string) bool { return slices.Contains(l.v2, controller) }

// Missing names the limits that this host cannot hold, out of "cpu", "memory",
// "swap", "processes" and "io". Setting one of them has no effect.
func (l *Layout) Missing() []string {
	var out []string
	add := func(limit string, there bool) {
		if !there {
			out = append(out, limit)
		}
	}
	exists := func(controller, file string) bool {
		mount, ok := l.v1[controller]
		if !ok {
			return false
		}
		_, err := os.Stat(filepath.Join(mount, file))
		return err == nil
	}
	add("cpu", l.onV2(cpu) || exists(cpu, "cpu.cfs_quota_us"))
	add("memory", l.onV2(memory) || exists(memory, "memory.limit_in_bytes"))
	add("swap", l.onV2(memory) || exists(memory, "memory.memsw.limit_in_bytes"))
	add("processes", l.onV2(pids) || l.v1[pids] != "")
	add("io", l.onV2(ioV2) || exists(blkio, "blkio.throttle.read_bps_device"))
	return out
}

// Open makes Lodge's own subtree called root, or finds it. All guests' groups
// are below it, and nothing outside of it is ever changed, but for one case: in
// a systemd unit with Delegate=yes the subtree is the unit's, and this process
// moves into a leaf of it, because a group with members may not have
// controllers below it.
func (l *Layout) Open(root string) (*Tree, error) {
	if err := checkName(root); err != nil {
		return nil, err
	}
	base, err := l.base()
	if err != nil {
		return nil, err
	}
	t := &Tree{layout: l, unified: filepath.Join(base, root), v1: map[string]string{}}
	if err := os.MkdirAll(t.unified, 0o755); err != nil {
		return nil, err
	}
	if err := l.enable(base); err != nil {
		return nil, err
	}
	if err := l.enable(t.unified); err != nil {
		return nil, err
	}
	for c, mount := range l.v1 {
		t.v1[c] = filepath.Join(mount, root)
		if err := os.MkdirAll(t.v1[c], 0o755); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// leaf is the group that the daemon's own processes sit in inside a delegated
// unit.
const leaf = "daemon"

// base returns the directory that the subtree is made in.
func (l *Layout) base() (string, error) {
	for own := l.own; own != "/" && own != "."; own = filepath.Dir(own) {
		unit := filepath.Join(l.unified, own)
		if !l.isDelegate(unit) {
			continue
		}
		return unit, l.vacate(unit)
	}
	return l.unified, nil
}

// vacate moves the members of a delegated unit into its leaf.
func (l *Layout) vacate(unit string) error {
	if len(l.useful()) == 0 {
		return nil
	}
	if err := os.MkdirAll(filepath.Join(unit, leaf), 0o755); err != nil {
		return err
	}
	members, err := os.ReadFile(filepath.Join(unit, "cgroup.procs"))
	if err != nil {
		return err
	}
	for _, pid := range strings.Fields(string(members)) {
		err := write(filepath.Join(unit, leaf, "cgroup.procs"), pid)
		if err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	return nil
}

// enable turns the controllers we need on for the groups below dir.
func (l *Layout) enable(dir string) error {
	want := l.useful()
	if len(want) == 0 {
		return nil
	}
	if err := write(filepath.Join(dir, "cgroup.subtree_control"), "+"+strings.Join(want, " +")); err != nil {
		return fmt.Errorf("controllers %s below %s: %w", strings.Join(want, ","), dir, err)
	}
	return nil
}
