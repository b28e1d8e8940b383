package cgroup

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"lodge/internal/base/errs"
)

// realTree is a subtree of this host's own hierarchies, with a unique name.
func realTree(t *testing.T) *Tree {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root to make control groups")
	}
	l, err := Detect()
	if err != nil {
		t.Skipf("control groups: %v", err)
	}
	tree, err := l.Open(fmt.Sprintf("lodge-test-%d-%d", os.Getpid(), time.Now().UnixNano()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		names, err := tree.List()
		if err != nil {
			t.Error(err)
		}
		for _, name := range names {
			if err := tree.Kill(name); err != nil {
				t.Error(err)
			}
		}
		if err := tree.Destroy(context.Background()); err != nil {
			t.Error(err)
		}
		for _, dir := range tree.dirs("") {
			if _, err := os.Stat(dir); !os.IsNotExist(err) {
				t.Errorf("%s is left: %v", dir, err)
			}
		}
	})
	return tree
}

// run starts a shell in the group called name, as a launcher would, and returns
// its output.
func run(t *testing.T, tree *Tree, name, script string) (*exec.Cmd, *bufio.Reader) {
	t.Helper()
	j := tree.Join(name)
	dir, err := os.Open(j.Dir)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	var join strings.Builder
	for _, tasks := range j.Tasks {
		fmt.Fprintf(&join, "echo 0 > %s\n", tasks)
	}
	cmd := exec.Command("/bin/sh", "-c", join.String()+script)
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd, bufio.NewReader(out)
}

func line(t *testing.T, r *bufio.Reader) string {
	t.Helper()
	s, err := r.ReadString('\n')
	if err != nil {
		t.Fatalf("no line: %v", err)
	}
	return strings.TrimSpace(s)
}

func has(t *testing.T, tree *Tree, limit string) {
	t.Helper()
	if slices.Contains(tree.layout.Missing(), limit) {
		t.Skipf("this host cannot limit %s", limit)
	}
}

// TestForkLimit: the limit ends a flood of processes, and a greater one lets
// more through.
func TestForkLimit(t *testing.T) {
	tree := realTree(t)
	has(t, tree, "processes")
	count := func() int64 {
		_, out := run(t, tree, "g", `i=0; while [ $i -lt 20 ]; do sleep 1000 >/dev/null 2>&1 & i=$((i+1)); done 2>/dev/null; echo all; wait`)
		_, _ = out.ReadString('\n') // "all", or nothing when the shell itself gave up
		u, err := tree.Usage("g")
		if err != nil {
			t.Fatal(err)
		}
		if err := tree.Kill("g"); err != nil {
			t.Fatal(err)
		}
		return u.Processes
	}
	if err := tree.Create("g", Limits{Processes: 5}); err != nil {
		t.Fatal(err)
	}
	if n := count(); n > 5 {
		t.Errorf("%d processes under a limit of 5", n)
	}
	if err := tree.Remove(t.Context(), "g"); err != nil {
		t.Fatal(err)
	}
	if err := tree.Create("g", Limits{Processes: 5}); err != nil {
		t.Fatal(err)
	}
	if err := tree.Set("g", Limits{}); err != nil {
		t.Fatal(err)
	}
	if n := count(); n != 21 {
		t.Errorf("%d processes without a limit, want 21", n)
	}
}

// TestMemory: growth, a shrink that fits, one that does not, and the end by
// the limit.
func TestMemory(t *testing.T) {
	tree := realTree(t)
	has(t, tree, "memory")
	if err := tree.Create("g", Limits{Memory: 64 << 20}); err != nil {
		t.Fatal(err)
	}
	// The variable is memory that cannot be given back.
	_, out := run(t, tree, "g", `x=$(head -c 20000000 /dev/zero | tr '\0' x); echo full; sleep 1000`)
	if line(t, out) != "full" {
		t.Fatal("did not fill")
	}
	for _, step := range []struct {
		limit uint64
		ok    bool
	}{{128 << 20, true}, {0, true}, {200 << 20, true}, {96 << 20, true}, {8 << 20, false}} {
		err := tree.Set("g", Limits{Memory: step.limit})
		if step.ok && err != nil {
			t.Errorf("limit %d: %v", step.limit, err)
		}
		if !step.ok && !errs.Is(err, errs.Conflict) {
			t.Errorf("limit %d: %v, want a conflict", step.limit, err)
		}
	}
	u, err := tree.Usage("g")
	if err != nil {
		t.Fatal(err)
	}
	if u.Memory < 20_000_000 || u.Memory > 96<<20 || u.CPUSeconds <= 0 || u.OOMKills != 0 {
		t.Errorf("%+v", u)
	}
	cmd, _ := run(t, tree, "g", `x=$(head -c 300000000 /dev/zero | tr '\0' x)`)
	_ = cmd.Wait()
	if u, err = tree.Usage("g"); err != nil || u.OOMKills == 0 {
		t.Errorf("after it took too much: %+v, %v", u, err)
	}
}

// TestMemoryRefusedStays: after a refusal the old limits are in force.
func TestMemoryRefusedStays(t *testing.T) {
	tree := realTree(t)
	dir, ok := tree.v1[memory]
	if !ok {
		t.Skip("memory is not limited by a v1 controller here")
	}
	if err := tree.Create("g", Limits{Memory: 64 << 20, Swap: 8 << 20}); err != nil {
		t.Fatal(err)
	}
	_, out := run(t, tree, "g", `x=$(head -c 20000000 /dev/zero | tr '\0' x); echo full; sleep 1000`)
	line(t, out)
	if err := tree.Set("g", Limits{Memory: 4 << 20}); !errs.Is(err, errs.Conflict) {
		t.Errorf("%v", err)
	}
	for file, want := range map[string]uint64{"memory.limit_in_bytes": 64 << 20, "memory.memsw.limit_in_bytes": 72 << 20} {
		if n, err := readUint(filepath.Join(dir, "g", file)); err != nil || n != want {
			t.Errorf("%s is %d, want %d (%v)", file, n, want, err)
		}
	}
}

// TestCPU: a busy loop under a quota is throttled.
func TestCPU(t *testing.T) {
	tree := realTree(t)
	has(t, tree, "cpu")
	if err := tree.Create("g", Limits{CPUs: 0.1, CPUWeight: 50}); err != nil {
		t.Fatal(err)
	}
	run(t, tree, "g", `while :; do :; done`)
	for until := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		u, err := tree.Usage("g")
		if err != nil {
			t.Fatal(err)
		}
		if u.Throttled > 0 && u.CPUSeconds > 0 {
			break
		}
		if time.Now().After(until) {
			t.Fatalf("was not throttled: %+v", u)
		}
	}
}

// TestFreeze: a frozen group does not run, says so, can be killed as it is.
func TestFreeze(t *testing.T) {
	tree := realTree(t)
	if err := tree.Create("g", Limits{}); err != nil {
		t.Fatal(err)
	}
	cmd, _ := run(t, tree, "g", `while :; do :; done`)
	spent := func() float64 {
		u, err := tree.Usage("g")
		if err != nil {
			t.Fatal(err)
		}
		return u.CPUSeconds
	}
	state := func(want bool) {
		t.Helper()
		if is, err := tree.Frozen("g"); err != nil || is != want {
			t.Errorf("frozen: %v, %v", is, err)
		}
	}
	state(false)
	if err := tree.Freeze(t.Context(), "g"); err != nil {
		t.Fatal(err)
	}
	state(true)
	before := spent()
	time.Sleep(100 * time.Millisecond)
	if after := spent(); after != before {
		t.Errorf("ran %v s while frozen", after-before)
	}
	if err := tree.Freeze(t.Context(), "g"); err != nil {
		t.Errorf("frozen twice: %v", err)
	}
	if err := tree.Thaw(t.Context(), "g"); err != nil {
		t.Fatal(err)
	}
	state(false)
	if err := tree.Freeze(t.Context(), "g"); err != nil {
		t.Fatal(err)
	}
	if err := tree.Kill("g"); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("ended with %v", err)
	}
}

// TestRemove: groups that the guest made go too; processes keep a group.
func TestRemove(t *testing.T) {
	tree := realTree(t)
	if err := tree.Create("g", Limits{}); err != nil {
		t.Fatal(err)
	}
	if err := tree.Create("g", Limits{CPUWeight: 10}); err != nil {
		t.Errorf("made twice: %v", err)
	}
	if err := tree.Delegate("g", 1_000_000_000, 1_000_000_000); err != nil {
		t.Fatal(err)
	}
	dir := tree.Join("g").Dir
	own := func(path string) uint32 {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info.Sys().(*syscall.Stat_t).Uid
	}
	if own(dir) != 1_000_000_000 || own(filepath.Join(dir, "cgroup.procs")) != 1_000_000_000 || own(filepath.Join(dir, "cgroup.freeze")) != 0 {
		t.Error("what is delegated is wrong")
	}
	if err := os.MkdirAll(filepath.Join(dir, "init.scope", "deeper"), 0o755); err != nil {
		t.Fatal(err)
	}
	_, out := run(t, tree, "g", "echo up; sleep 1000")
	line(t, out)
	if err := tree.Remove(t.Context(), "g"); !errs.Is(err, errs.Busy) {
		t.Errorf("removed with a process in it: %v", err)
	}
	if err := tree.Kill("g"); err != nil {
		t.Fatal(err)
	}
	if err := tree.Remove(t.Context(), "g"); err != nil {
		t.Error(err)
	}
	if err := tree.Remove(t.Context(), "g"); err != nil {
		t.Errorf("removed twice: %v", err)
	}
	if err := tree.Kill("g"); err != nil {
		t.Errorf("killed what is gone: %v", err)
	}
	if names, err := tree.List(); err != nil || len(names) != 0 {
		t.Errorf("left: %v, %v", names, err)
	}
	if err := tree.Create("../x", Limits{}); !errs.Is(err, errs.Invalid) {
		t.Errorf("a name that leads out: %v", err)
	}
}

// TestIO: the values reach the kernel's files, and are taken back.
func TestIO(t *testing.T) {
	tree := realTree(t)
	has(t, tree, "io")
	dir, ok := tree.v1[blkio]
	if !ok {
		t.Skip("io is not limited by a v1 controller here")
	}
	devices, err := filepath.Glob("/sys/block/*/dev")
	if err != nil || len(devices) == 0 {
		t.Skip("no block device")
	}
	b, err := os.ReadFile(devices[0])
	if err != nil {
		t.Fatal(err)
	}
	dev := strings.TrimSpace(string(b))
	if err := tree.Create("g", Limits{Device: dev, IO: IO{WriteBPS: 1 << 20, ReadIOPS: 55}}); err != nil {
		t.Fatal(err)
	}
	read := func(file string) string {
		b, err := os.ReadFile(filepath.Join(dir, "g", "blkio.throttle."+file))
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(b))
	}
	if got := read("write_bps_device"); got != dev+" 1048576" {
		t.Errorf("write limit is %q", got)
	}
	if got := read("read_iops_device"); got != dev+" 55" {
		t.Errorf("read limit is %q", got)
	}
	if err := tree.Set("g", Limits{Device: dev}); err != nil {
		t.Fatal(err)
	}
	if got := read("write_bps_device") + read("read_iops_device"); got != "" {
		t.Errorf("limits are left: %q", got)
	}
}

// fake is a pure v2 hierarchy made of plain files, for what this host cannot
// show: it tells what would be written where.
func fake(t *testing.T, own string, delegated ...string) (*Layout, string) {
	t.Helper()
	root := t.TempDir()
	l := &Layout{unified: root, v1: map[string]string{}, own: own,
		isDelegate: func(dir string) bool { return slices.Contains(delegated, strings.TrimPrefix(dir, root)) }}
	put(t, root, map[string]string{"cgroup.controllers": "cpuset cpu io memory hugetlb pids\n", "cgroup.subtree_control": ""})
	if err := l.readControllers(); err != nil {
		t.Fatal(err)
	}
	return l, root
}

func put(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func get(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// kernelFiles are those of a new v2 group.
func kernelFiles() map[string]string {
	return map[string]string{"cgroup.subtree_control": "", "cpu.max": "", "cpu.weight": "", "memory.max": "", "memory.swap.max": "",
		"memory.reclaim": "", "memory.current": "1000\n", "pids.max": "", "io.max": ""}
}

func TestPureV2(t *testing.T) {
	l, root := fake(t, "/user.slice/session-1.scope")
	if l.Describe() != "v2" || len(l.Missing()) != 0 {
		t.Errorf("%s, lacks %v", l.Describe(), l.Missing())
	}
	put(t, filepath.Join(root, "lodge"), map[string]string{"cgroup.subtree_control": ""})
	tree, err := l.Open("lodge")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{root, tree.unified} {
		if got := get(t, filepath.Join(dir, "cgroup.subtree_control")); got != "+cpu +memory +pids +io" {
			t.Errorf("%s: %q", dir, got)
		}
	}
	dir := filepath.Join(tree.unified, "g")
	put(t, dir, kernelFiles())
	limits := Limits{CPUs: 1.5, CPUWeight: 300, Memory: 1 << 30, Processes: 77, IO: IO{ReadBPS: 5, WriteIOPS: 6}, Device: "8:0"}
	if err := tree.Create("g", limits); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"cpu.max": "150000 100000", "cpu.weight": "300", "memory.max": "1073741824", "memory.swap.max": "0",
		"pids.max": "77", "io.max": "8:0 rbps=5 wbps=max riops=max wiops=6", "memory.reclaim": ""}
	for file, value := range want {
		if got := get(t, filepath.Join(dir, file)); got != value {
			t.Errorf("%s is %q, want %q", file, got, value)
		}
	}
	if err := tree.Set("g", Limits{}); err != nil {
		t.Fatal(err)
	}
	for file, value := range map[string]string{"cpu.max": "max 100000", "cpu.weight": "100", "memory.max": "max", "memory.swap.max": "max", "pids.max": "max"} {
		if got := get(t, filepath.Join(dir, file)); got != value {
			t.Errorf("%s is %q, want %q", file, got, value)
		}
	}
	put(t, dir, map[string]string{"memory.current": "5000000\n"})
	if err := tree.Set("g", Limits{Memory: 1_000_000}); !errs.Is(err, errs.Conflict) {
		t.Errorf("a limit below use: %v", err)
	}
	if get(t, filepath.Join(dir, "memory.reclaim")) != "4000000" || get(t, filepath.Join(dir, "memory.max")) != "max" {
		t.Error("memory was not asked back, or the limit set though it would kill")
	}
	if j := tree.Join("g"); j.Dir != dir || len(j.Tasks) != 0 || len(j.Delegate) != 4 {
		t.Errorf("%+v", j)
	}
	put(t, dir, map[string]string{"cpu.stat": "usage_usec 2500000\nthrottled_usec 500000\n", "memory.current": "4096\n",
		"memory.stat": "anon 1\nfile 1024\n", "memory.swap.current": "3\n", "memory.events": "oom 1\noom_kill 2\n", "pids.current": "9\n",
		"io.stat": "8:0 rbytes=10 wbytes=20 rios=1\n8:16 rbytes=1 wbytes=2\n"})
	got, err := tree.Usage("g")
	if want := (Usage{2.5, 0.5, 4096, 1024, 3, 9, 11, 22, 2}); err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestDelegated: in a systemd unit with Delegate=yes the subtree is the unit's,
// and the unit itself is left empty.
func TestDelegated(t *testing.T) {
	for _, own := range []string{"/system.slice/lodge.service", "/system.slice/lodge.service/daemon"} {
		l, root := fake(t, own, "/system.slice/lodge.service")
		unit := filepath.Join(root, "system.slice/lodge.service")
		put(t, unit, map[string]string{"cgroup.procs": "4711\n", "cgroup.subtree_control": ""})
		put(t, filepath.Join(unit, leaf), map[string]string{"cgroup.procs": ""})
		put(t, filepath.Join(unit, "lodge"), map[string]string{"cgroup.subtree_control": ""})
		tree, err := l.Open("lodge")
		if err != nil {
			t.Fatal(err)
		}
		if tree.unified != filepath.Join(unit, "lodge") {
			t.Errorf("subtree is %s", tree.unified)
		}
		if got := get(t, filepath.Join(unit, leaf, "cgroup.procs")); got != "4711" {
			t.Errorf("moved %q", got)
		}
		if get(t, filepath.Join(root, "cgroup.subtree_control")) != "" || get(t, filepath.Join(unit, "cgroup.subtree_control")) == "" {
			t.Error("controllers were turned on in the wrong place")
		}
	}
}

func TestParseMounts(t *testing.T) {
	const hybrid = `25 1 0:22 / /sys/fs/cgroup ro - tmpfs tmpfs ro
26 25 0:23 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
27 25 0:24 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct
28 25 0:25 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
29 25 0:25 /docker/x /mnt/part rw - cgroup cgroup rw,memory
30 25 0:26 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd
31 25 0:27 / /sys/fs/cgroup/blkio rw - cgroup cgroup rw,blkio
32 25 0:23 / /again rw - cgroup2 cgroup2 rw
broken line
`
	unified, v1, err := parseMounts(strings.NewReader(hybrid))
	want := map[string]string{"cpu": "/sys/fs/cgroup/cpu,cpuacct", "cpuacct": "/sys/fs/cgroup/cpu,cpuacct", "memory": "/sys/fs/cgroup/memory", "blkio": "/sys/fs/cgroup/blkio"}
	if err != nil || unified != "/sys/fs/cgroup/unified" || !reflect.DeepEqual(v1, want) {
		t.Errorf("%s, %v, %v", unified, v1, err)
	}
	tree := &Tree{unified: unified, v1: v1}
	if n := len(tree.v1dirs("g")); n != 3 {
		t.Errorf("%d groups for 3 hierarchies", n)
	}
	l := &Layout{v1: v1, v2: []string{"hugetlb"}}
	if l.Describe() != "v1 controllers beside v2" || !slices.Contains(l.Missing(), "processes") {
		t.Errorf("%s, lacks %v", l.Describe(), l.Missing())
	}
	l.v2 = []string{"pids"}
	if l.Describe() != "controllers on both v1 and v2" || slices.Contains(l.Missing(), "processes") {
		t.Errorf("%s, lacks %v", l.Describe(), l.Missing())
	}
	if parseOwn("4:memory:/x\n0::/a/b\n") != "/a/b" || parseOwn("") != "/" {
		t.Error("own group is read wrong")
	}
}

func TestParseFigures(t *testing.T) {
	if r, w := parseServiced("254:0 Read 10\n254:0 Write 20\n254:0 Sync 5\n8:0 Read 1\nTotal 31\nx y z\n"); r != 11 || w != 20 {
		t.Errorf("%d, %d", r, w)
	}
	if m := parseKeyed("oom_kill_disable 0\nunder_oom 0\noom_kill 4\nbad\nworse x\n"); m["oom_kill"] != 4 || len(m) != 3 {
		t.Errorf("%v", m)
	}
	if q, limited := (Limits{CPUs: 0.001}).quota(); q != 1000 || !limited {
		t.Errorf("smallest quota is %d", q)
	}
}
