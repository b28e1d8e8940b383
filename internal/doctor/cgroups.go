package doctor

import (
	"context"
	"os"
	"slices"
	"strings"
)

func cgroupChecks() []check {
	return []check{{"control groups", "cgroups", func(context.Context, Options) verdict { return judgeCgroups(lookCgroups()) }}}
}

// cgroups is how control groups are laid out on the host.
type cgroups struct {
	unified string   // where version 2 is mounted; empty if nowhere
	v2, v1  []string // controllers of each
}

func lookCgroups() cgroups {
	info, _ := os.ReadFile("/proc/self/mountinfo")
	c := parseCgroupMounts(string(info))
	if c.unified != "" {
		text, _ := os.ReadFile(c.unified + "/cgroup.controllers")
		c.v2 = strings.Fields(string(text))
	}
	return c
}

// parseCgroupMounts finds the hierarchies in the text of /proc/self/mountinfo.
func parseCgroupMounts(mountinfo string) cgroups {
	var c cgroups
	for line := range strings.Lines(mountinfo) {
		before, after, ok := strings.Cut(line, " - ")
		where, what := strings.Fields(before), strings.Fields(after)
		if !ok || len(where) < 5 || len(what) < 3 {
			continue
		}
		switch what[0] {
		case "cgroup2":
			c.unified = where[4]
		case "cgroup":
			for _, o := range strings.Split(what[2], ",") {
				if o != "rw" && o != "ro" && !strings.Contains(o, "=") && o != "xattr" && !slices.Contains(c.v1, o) {
					c.v1 = append(c.v1, o)
				}
			}
		}
	}
	return c
}

// judgeCgroups tells which limits of guests cannot be kept.
func judgeCgroups(c cgroups) verdict {
	const boot = "boot with systemd.unified_cgroup_hierarchy=1 and cgroup_enable=memory on the kernel's command line"
	has := func(names ...string) bool {
		return slices.ContainsFunc(names, func(n string) bool { return slices.Contains(c.v1, n) || slices.Contains(c.v2, n) })
	}
	layout := "version 2"
	switch {
	case c.unified == "":
		return verdict{state: Fault, found: "version 2 is not mounted", cause: "guests are given version 2 control groups: none can start", fix: "mount -t cgroup2 none /sys/fs/cgroup/unified"}
	case len(c.v1) > 0:
		layout = "version 1 (" + strings.Join(c.v1, " ") + ") beside version 2 at " + c.unified
	}
	var missing, wanted []string
	for _, n := range []string{"memory", "cpu", "pids"} {
		if !has(n) {
			missing = append(missing, n)
		}
	}
	if len(missing) > 0 {
		return verdict{state: Fault, found: layout + ", without " + strings.Join(missing, ", "),
			cause: "one guest can take what belongs to all: its limits of " + strings.Join(missing, ", ") + " do nothing", fix: boot}
	}
	if !has("cpuset") {
		wanted = append(wanted, "cpuset")
	}
	if !has("io", "blkio") {
		wanted = append(wanted, "io")
	}
	if len(wanted) > 0 {
		return verdict{state: Warning, found: layout + ", without " + strings.Join(wanted, ", "),
			cause: "limits of " + strings.Join(wanted, ", ") + " cannot be kept; everything else works", fix: boot}
	}
	return good(layout)
}
