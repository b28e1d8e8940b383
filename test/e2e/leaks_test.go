package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"lodge/api"
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
	if left, _ := filepath.Glob(s.path("data/pools/*/mnt/trash/*")); len(left) > 0 {
		return fmt.Errorf("volumes wait to be removed: %v", left)
	}
	return nil
}

func (s *server) leakedDevices(guests map[string]api.Guest) error {
	found, want := 0, 0
	for _, line := range strings.Split(run(s.t, nil, "ip", "-o", "link").out, "\n") {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], "lg") {
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
	rules := ""
	for table := range strings.SplitSeq(run(s.t, nil, "nft", "list", "ruleset").out, "\ntable ") {
		if strings.Contains("table "+table, "bridge "+s.flag("--prefix")+"_") { // servers of other tests have tables of their own
			rules += table + "\n"
		}
	}
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
