package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"lodge/api"
	"lodge/internal/fabric"
)

// noLeaks waits until the host holds exactly what the records say: a group, a
// volume, a directory, a network device and the guard's entries for each guest
// that should have them, and nothing besides.
func (s *server) noLeaks() {
	s.t.Helper()
	until(s.t, "the host and the records agree", func() error {
		guests := s.guests()
		for _, g := range guests {
			if g.Doing != "" {
				return fmt.Errorf("%s is %s, %s", g.Name, g.Phase, g.Doing)
			}
		}
		for _, check := range []func(map[string]api.Guest) error{s.leakedGroups, s.leakedFiles, s.leakedDevices, s.leakedEntries, s.leakedProcesses} {
			if err := check(guests); err != nil {
				return err
			}
		}
		return nil
	})
}

// ids returns the ids of the guests that keep says to.
func ids(guests map[string]api.Guest, keep func(api.Guest) bool) (all []string) {
	for _, g := range guests {
		if keep(g) {
			all = append(all, g.ID)
		}
	}
	slices.Sort(all)
	return all
}

func isUp(g api.Guest) bool { return g.Phase == "running" || g.Phase == "paused" }

// same compares what there is with what there should be.
func same(what string, found, want []string) error {
	slices.Sort(found)
	slices.Sort(want)
	if slices.Equal(found, want) {
		return nil
	}
	return fmt.Errorf("%s: left over %v, missing %v", what, without(found, want), without(want, found))
}

func without(all, others []string) (rest []string) {
	for _, s := range all {
		if !slices.Contains(others, s) {
			rest = append(rest, s)
		}
	}
	return rest
}

func (s *server) leakedGroups(guests map[string]api.Guest) error {
	group := s.flag("--cgroup")
	tops, err := filepath.Glob("/sys/fs/cgroup/*/" + group)
	if err != nil {
		return err
	}
	if _, err := os.Stat("/sys/fs/cgroup/" + group); err == nil {
		tops = append(tops, "/sys/fs/cgroup/"+group)
	}
	seen := map[string]bool{}
	for _, top := range tops {
		if real, err := filepath.EvalSymlinks(top); err != nil || seen[real] {
			continue // cpu and cpuacct may be one hierarchy
		} else {
			seen[real] = true
		}
		if err := same("groups in "+top, dirs(top), ids(guests, isUp)); err != nil {
			return err
		}
	}
	return nil
}

// dirs returns the names of the directories in dir.
func dirs(dir string) (names []string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names
}

func (s *server) leakedFiles(guests map[string]api.Guest) error {
	all := dirs(s.path("data/guests"))
	// A guest that was never prepared has no directory yet.
	want := ids(guests, func(g api.Guest) bool { return slices.Contains(all, g.ID) || isUp(g) })
	if err := same("guests' directories", all, want); err != nil {
		return err
	}
	volumes, _ := filepath.Glob(s.path("data/pools/*/mnt/volumes/*"))
	plain, _ := filepath.Glob(s.path("data/pools/*/volumes/*"))
	all = nil
	for _, v := range append(volumes, plain...) {
		all = append(all, filepath.Base(v))
	}
	want = ids(guests, func(g api.Guest) bool { return slices.Contains(all, g.ID) || isUp(g) })
	if err := same("volumes", all, want); err != nil {
		return err
	}
	for _, under := range []string{"trash", "incoming"} {
		mounted, _ := filepath.Glob(s.path("data/pools/*/mnt/" + under + "/*"))
		plain, _ := filepath.Glob(s.path("data/pools/*/" + under + "/*"))
		if left := append(mounted, plain...); len(left) > 0 {
			return fmt.Errorf("left in %s: %v", under, left)
		}
	}
	return leakedDisks(append(volumes, plain...), guests)
}

// leakedDisks checks that what lies beside a guest's writable layer is in its
// record, and that nothing there is half made.
func leakedDisks(volumes []string, guests map[string]api.Guest) error {
	var found, want []string
	for _, v := range volumes {
		entries, _ := os.ReadDir(v)
		for _, e := range entries {
			name := e.Name()
			switch {
			case strings.HasSuffix(name, ".new"), strings.HasSuffix(name, ".used"), name == "copied":
				found = append(found, filepath.Join(v, name))
			case strings.HasPrefix(name, "disk-"):
				found = append(found, filepath.Base(v)+"/"+name)
			}
		}
		for _, g := range guests {
			for _, d := range g.Disks {
				if d.ISO == "" && g.ID == filepath.Base(v) {
					want = append(want, g.ID+"/disk-"+d.Name+".raw")
				}
			}
		}
	}
	return same("disks", found, want)
}

func (s *server) leakedDevices(guests map[string]api.Guest) error {
	found, want := 0, 0
	for _, line := range strings.Split(run(s.t, nil, "ip", "-o", "link").out, "\n") {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], fabric.Cards(s.flag("--prefix"))) {
			found++
		}
	}
	for _, g := range guests {
		if isUp(g) {
			want += len(g.NICs)
		}
	}
	if found != want {
		return fmt.Errorf("there are %d network devices of guests, there should be %d", found, want)
	}
	return nil
}

// leakedEntries checks that the guard knows the hardware addresses of the
// guests that are up and no others.
func (s *server) leakedEntries(guests map[string]api.Guest) error {
	rules := run(s.t, nil, "nft", "list", "ruleset").out
	var want, found []string
	for _, g := range guests {
		for _, n := range g.NICs {
			if isUp(g) {
				want = append(want, n.MAC)
			}
		}
	}
	_, set, ok := strings.Cut(rules, "set macs {")
	for ok {
		body, rest, _ := strings.Cut(set, "}\n\t}")
		for _, word := range strings.FieldsFunc(body, func(r rune) bool { return r == ' ' || r == ',' || r == '\n' || r == '\t' }) {
			if strings.Count(word, ":") == 5 {
				found = append(found, word)
			}
		}
		_, set, ok = strings.Cut(rest, "set macs {")
	}
	return same("hardware addresses the guard lets pass", found, want)
}

// leakedProcesses checks that each guest that is up has its first process, and
// that the keeper has no others.
func (s *server) leakedProcesses(guests map[string]api.Guest) error {
	for _, g := range guests {
		_, err := os.Stat(fmt.Sprintf("/proc/%d", g.Pid))
		if isUp(g) && (g.Pid == 0 || err != nil) {
			return fmt.Errorf("%s is %s but its process %d is not there", g.Name, g.Phase, g.Pid)
		}
	}
	procs, _ := filepath.Glob("/proc/[0-9]*/comm")
	launchers := 0
	for _, p := range procs {
		if comm, _ := os.ReadFile(p); strings.TrimSpace(string(comm)) == "lodge-launch" {
			launchers++
		}
	}
	if launchers > 0 {
		return fmt.Errorf("%d launch helpers are left", launchers)
	}
	return nil
}

// flag returns the value of one of the daemon's flags.
func (s *server) flag(name string) string {
	if i := slices.Index(s.flags, name); i >= 0 {
		return s.flags[i+1]
	}
	return ""
}

// nothingLeft checks, when a server is down, that nothing of it is left on the
// host: no mount, loop device, network device, table, group or process. All
// tables and orphans in the sandbox are some server's, and none other is up.
func nothingLeft(t testing.TB, dir, group, prefix string) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.SplitSeq(string(mounts), "\n") {
		if strings.Contains(line, dir) {
			t.Errorf("a mount is left: %s", line)
		}
	}
	loops, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, l := range loops {
		if file, _ := os.ReadFile(l); strings.HasPrefix(string(file), dir+"/") {
			t.Errorf("%s is left: %s", l, file)
		}
	}
	for _, pattern := range []string{"/sys/fs/cgroup/*/" + group, "/sys/fs/cgroup/" + group} {
		if left, _ := filepath.Glob(pattern); len(left) > 0 {
			t.Errorf("control groups are left: %v", left)
		}
	}
	if out := run(t, nil, "nft", "list", "tables").out; out != "" {
		t.Errorf("nftables tables are left: %s", out)
	}
	if out := run(t, nil, "ip", "-o", "link").out; strings.Contains(out, " "+prefix) {
		t.Errorf("network devices are left: %s", out)
	}
	until(t, "no process is left", func() error {
		if left := orphans(dir); len(left) > 0 {
			return fmt.Errorf("%q", left)
		}
		return nil
	})
}

// orphans are the processes of which nobody but the sandbox's init is the
// parent, this one apart, and those that were given a name of a server's.
func orphans(dir string) (left []string) {
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range procs {
		stat, _ := os.ReadFile(p + "/stat")
		argv, _ := os.ReadFile(p + "/cmdline")
		_, rest, _ := strings.Cut(string(stat), ") ")
		if f := strings.Fields(rest); len(f) < 2 || f[0] == "Z" || len(argv) == 0 || p == fmt.Sprintf("/proc/%d", os.Getpid()) {
			continue // it ended meanwhile, or is the kernel's, or this one
		} else if f[1] == "1" || strings.Contains(string(argv), dir) {
			left = append(left, p+": "+strings.ReplaceAll(string(argv), "\x00", " "))
		}
	}
	return left
}
