package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lodge/internal/base/kvmprobe"
	"lodge/internal/base/zram"
)

// TestMain is also the process of its own that the KVM probe needs.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == kvmprobe.Argument {
		kvmprobe.Run(os.Stdout)
		return
	}
	os.Exit(m.Run())
}

// TestRun looks at this host for real, without curing anything.
func TestRun(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	before := mounts(t)
	checks := Run(t.Context(), Options{DataDir: t.TempDir(), KVMProbe: []string{"/proc/self/exe", kvmprobe.Argument}})
	seen := map[string]bool{}
	groups := map[string]bool{}
	for _, c := range checks {
		t.Logf("%-8s %-8s %-28s %s | %s | %s", c.State, c.Group, c.Name, c.Found, c.Cause, c.Fix)
		if seen[c.Name] {
			t.Errorf("%s comes twice", c.Name)
		}
		seen[c.Name], groups[c.Group] = true, true
		if c.Found == "" {
			t.Errorf("%s does not say what was seen", c.Name)
		}
		if c.State != OK && (c.Cause == "" || c.Fix == "") {
			t.Errorf("%s is a %s without cause or cure", c.Name, c.State)
		}
		if c.Fixed {
			t.Errorf("%s was cured unasked", c.Name)
		}
	}
	for _, g := range []string{"kernel", "cgroups", "limits", "firewall", "host", "kvm", "tools"} {
		if !groups[g] {
			t.Errorf("nothing was looked at in group %s", g)
		}
	}
	if after := mounts(t); after != before {
		t.Errorf("the probes left mounts: %s", after)
	}
}

func mounts(t *testing.T) string {
	text, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	var kept []string // other tests mount at the same time, in their own temporary folders
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, "lodge-doctor") || strings.Contains(line, "erofs") {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, "")
}

// TestProbesFail proves that a probe that cannot do its work says so.
func TestProbesFail(t *testing.T) {
	if err := hasFilesystem("no-such-fs"); err == nil {
		t.Error("a file system that does not exist was found")
	}
	if _, err := detached("no-such-fs", nil, 0); !errors.Is(err, unix.ENODEV) {
		t.Errorf("mounting a file system that does not exist: %v", err)
	}
	k := lookKVM(t.Context(), []string{"/bin/sh", "-c", "echo {}; exec sleep 60"})
	if k.openErr != nil {
		t.Skip("no /dev/kvm")
	}
	if v := judgeKVM(k); !k.late || v.state != Warning {
		t.Errorf("a probe that hangs is judged %+v", v)
	}
}

func TestJudgeKVM(t *testing.T) {
	step := func(name string, ns float64, err string) kvmprobe.Step {
		return kvmprobe.Step{Step: name, Ns: ns, Err: err}
	}
	for name, c := range map[string]struct {
		k     kvm
		state State
		words string
	}{
		"works":         {kvm{tried: true, steps: []kvmprobe.Step{step("real mode", 1, ""), step("long mode", 1, "")}}, OK, "runs guests"},
		"absent":        {kvm{openErr: os.ErrNotExist}, Warning, "no /dev/kvm"},
		"module":        {kvm{openErr: os.ErrNotExist, cpu: true}, Warning, "processor could"},
		"forbidden":     {kvm{openErr: os.ErrPermission}, Warning, "permission"},
		"untried":       {kvm{}, OK, "not tried"},
		"hangs":         {kvm{tried: true, late: true, steps: []kvmprobe.Step{step("real mode", 1, "")}}, Warning, "no progress"},
		"hangs at once": {kvm{tried: true, late: true}, Warning, "no progress"},
		"slow":          {kvm{tried: true, steps: []kvmprobe.Step{step("real mode", 900, "")}}, Warning, "900 ns"},
		"fails":         {kvm{tried: true, steps: []kvmprobe.Step{step("long mode", 0, "EINVAL")}}, Warning, "fails in long mode"},
		"died":          {kvm{tried: true, steps: []kvmprobe.Step{step("real mode", 1, "")}}, Warning, "no progress"},
	} {
		v := judgeKVM(c.k)
		if v.state != c.state || !strings.Contains(v.found, c.words) || v.state != OK && (v.cause == "" || v.fix == "") {
			t.Errorf("%s: %+v, want %s with %q", name, v, c.state, c.words)
		}
	}
}

func TestJudgeHost(t *testing.T) {
	now := time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)
	for name, c := range map[string]struct {
		v    verdict
		want State
	}{
		"disk":            {judgeDisk(disk{total: 100 << 30, free: 50 << 30}), OK},
		"disk low":        {judgeDisk(disk{total: 100 << 30, free: 4 << 30}), Warning},
		"big disk low":    {judgeDisk(disk{total: 1 << 40, free: 20 << 30}), Warning},
		"disk full":       {judgeDisk(disk{total: 100 << 30, free: 1 << 29}), Fault},
		"disk read-only":  {judgeDisk(disk{total: 100 << 30, free: 50 << 30, readOnly: true}), Fault},
		"disk no inodes":  {judgeDisk(disk{total: 100 << 30, free: 50 << 30, inodes: 1000, inodesFree: 3}), Warning},
		"disk in memory":  {judgeDisk(disk{total: 100 << 30, free: 50 << 30, inMemory: true}), Warning},
		"disk unknown":    {judgeDisk(disk{bad: true}), Fault},
		"memory":          {judgeMemory(memory{total: 8 << 30, available: 4 << 30}), OK},
		"memory gone":     {judgeMemory(memory{total: 8 << 30, available: 100 << 20}), Fault},
		"memory small":    {judgeMemory(memory{total: 512 << 20, available: 400 << 20}), Warning},
		"memory and swap": {judgeMemory(memory{total: 512 << 20, available: 400 << 20, swap: 1 << 30}), OK},
		"memory unknown":  {judgeMemory(memory{}), Warning},
		"compression off": {judgeCompression(Compression{}), OK},
		"compression new": {judgeCompression(Compression{Wanted: true}), OK},
		"compression":     {judgeCompression(Compression{Wanted: true, Usage: zram.Usage{Device: "/dev/zram1", Size: 6 << 30, Pages: 3 << 20, Memory: 1 << 20}}), OK},
		"no compression":  {judgeCompression(Compression{Wanted: true, Lack: "the kernel cannot", Fix: "modprobe zram"}), Warning},
		"clock":           {judgeClock(now, unix.TIME_OK, 0, nil), OK},
		"clock drifts":    {judgeClock(now, unix.TIME_ERROR, unix.STA_UNSYNC, nil), Warning},
		"clock unset":     {judgeClock(time.Unix(0, 0), unix.TIME_OK, 0, nil), Fault},
		"clock unknown":   {judgeClock(now, 0, 0, unix.EPERM), Warning},
		"files":           {judgeOpenFiles(1<<20, nil), OK},
		"files few":       {judgeOpenFiles(1024, nil), Warning},
		"tool":            {judgeTool(tools()[0], "/usr/sbin/nft", true), OK},
		"tool missing":    {judgeTool(tools()[0], "", false), Fault},
		"kernels there":   {judgeKernels(Kernels{Model: "vm", There: []string{"linux/debian-12 6.1"}, Lack: "no mirror"}), OK},
		"kernels to come": {judgeKernels(Kernels{Model: "vm"}), OK},
		"no kernels":      {judgeKernels(Kernels{Model: "vm", Lack: "no mirror", Fix: "name one"}), Warning},
		"feature":         {judgeFeature(features()[0], nil), OK},
		"feature missing": {judgeFeature(features()[0], unix.ENOSYS), Fault},
		"feature untried": {judgeFeature(features()[0], errUntried), OK},
		"forwarding":      {judgeForwarding("1", "1"), OK},
		"no IPv6 at all":  {judgeForwarding("1", ""), OK},
		"no forwarding":   {judgeForwarding("0", "1"), Warning},
		"no iptables":     {judgeLegacy("", ""), OK},
		"iptables drop":   {judgeLegacy("nat\nfilter\n", "-P FORWARD DROP\n"), Fault},
		"iptables accept": {judgeLegacy("filter\n", "-P FORWARD ACCEPT\n"), OK},
		"iptables hidden": {judgeLegacy("filter\n", ""), Warning},
	} {
		if c.v.state != c.want || c.v.found == "" || c.want != OK && (c.v.cause == "" || c.v.fix == "") {
			t.Errorf("%s: %+v, want %s", name, c.v, c.want)
		}
	}
	if m := parseMeminfo("MemTotal:       1024 kB\nMemAvailable: 512 kB\nSwapTotal: 0 kB\nodd\n"); m != (memory{1 << 20, 512 << 10, 0}) {
		t.Errorf("meminfo was read as %+v", m)
	}
}

func TestCgroups(t *testing.T) {
	const v1 = "40 30 0:30 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct\n" +
		"41 30 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n" +
		"42 30 0:32 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n"
	const v2 = "43 30 0:33 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n"
	c := parseCgroupMounts(v1 + v2)
	if got := strings.Join(c.v1, " "); got != "cpu cpuacct memory" || c.unified != "/sys/fs/cgroup/unified" {
		t.Errorf("read %q and %q", got, c.unified)
	}
	for name, c := range map[string]struct {
		c    cgroups
		want State
	}{
		"version 2":    {cgroups{unified: "/x", v2: []string{"cpu", "memory", "pids", "cpuset", "io"}}, OK},
		"hybrid":       {cgroups{unified: "/x", v1: []string{"cpu", "memory", "pids", "cpuset", "blkio"}}, OK},
		"no memory":    {cgroups{unified: "/x", v2: []string{"cpu", "pids", "cpuset", "io"}}, Fault},
		"no io":        {cgroups{unified: "/x", v2: []string{"cpu", "memory", "pids", "cpuset"}}, Warning},
		"no version 2": {cgroups{v1: []string{"cpu", "memory", "pids"}}, Fault},
	} {
		if v := judgeCgroups(c.c); v.state != c.want || c.want != OK && (v.cause == "" || v.fix == "") {
			t.Errorf("%s: %+v, want %s", name, v, c.want)
		}
	}
}

// fakeSysctls is a tree like /proc/sys with a few low limits.
func fakeSysctls(t *testing.T, values map[string]uint64) sysctls {
	s := sysctls(t.TempDir())
	for k, v := range values {
		if err := os.MkdirAll(filepath.Dir(s.path(k)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(s.path(k), []byte(strconv.FormatUint(v, 10)+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func want(t *testing.T, s sysctls, key string, v uint64) {
	t.Helper()
	if got, ok, err := s.get(key); err != nil || !ok || got != v {
		t.Errorf("%s is %d (%v), want %d", key, got, err, v)
	}
}

func TestRaiseAndRestore(t *testing.T) {
	all := []limit{{"a.low", 100, "c"}, {"a.high", 100, "c"}, {"a.absent", 100, "c"}, {"b.low", 100, "c"}}
	s, data := fakeSysctls(t, map[string]uint64{"a.low": 1, "a.high": 1000, "b.low": 2}), t.TempDir()
	checks := s.checks(Options{DataDir: data}, all)
	if len(checks) != 3 || checks[1].State != Warning || checks[1].Fixed {
		t.Fatalf("looking gave %+v", checks)
	}
	want(t, s, "a.low", 1)
	checks = s.checks(Options{DataDir: data, Fix: true}, all)
	if c := checks[1]; c.Name != "a.low" || c.State != OK || !c.Fixed || c.Before != "1" {
		t.Errorf("curing gave %+v", c)
	}
	if c := checks[0]; c.Name != "a.high" || c.Fixed {
		t.Errorf("what was high enough is %+v", c)
	}
	want(t, s, "a.low", 100)
	want(t, s, "a.high", 1000)

	// After a boot the limits are low again; the first values are still known.
	s.set("a.low", 5)
	if _, err := s.raise(data, all); err != nil {
		t.Fatal(err)
	}
	want(t, s, "a.low", 100)
	s.set("b.low", 7777) // somebody changed it after us: it is theirs
	for range 2 {
		if err := s.restore(data); err != nil {
			t.Fatal(err)
		}
	}
	want(t, s, "a.low", 1)
	want(t, s, "b.low", 7777)
	want(t, s, "a.high", 1000)
	if left, _ := os.ReadDir(data); len(left) != 0 {
		t.Errorf("restoring left %v", left)
	}
	if err := s.restore(filepath.Join(data, "never")); err != nil {
		t.Errorf("restoring what was never raised: %v", err)
	}
}

func TestRaiseWritesTheOldValuesFirst(t *testing.T) {
	all := []limit{{"a.low", 100, "c"}}
	s := fakeSysctls(t, map[string]uint64{"a.low": 1})
	if _, err := s.raise(filepath.Join(t.TempDir(), "missing"), all); err == nil {
		t.Error("limits were raised with nowhere to write the old ones")
	}
	want(t, s, "a.low", 1)
	data := t.TempDir()
	if err := os.WriteFile(beforeFile(data), []byte("{half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.raise(data, all); err == nil {
		t.Error("a damaged file of old values was overwritten")
	}
	want(t, s, "a.low", 1)
}

// TestRealSetting raises and restores one harmless value of this host.
func TestRealSetting(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	const key = "fs.inotify.max_queued_events"
	now, ok, err := procSys.get(key)
	if err != nil || !ok {
		t.Skip("this kernel has no ", key)
	}
	t.Cleanup(func() { procSys.set(key, now) })
	data := t.TempDir()
	if _, err := procSys.raise(data, []limit{{key, now + 1, "c"}}); errors.Is(err, syscall.EROFS) || errors.Is(err, syscall.EACCES) {
		t.Skip("settings of this host are read-only")
	} else if err != nil {
		t.Fatal(err)
	}
	want(t, procSys, key, now+1)
	if err := Restore(context.Background(), data); err != nil {
		t.Fatal(err)
	}
	want(t, procSys, key, now)
}

// TestLimitsAreSane also calls the real entry with a data directory that is not
// there, which must change nothing silently.
func TestLimitsAreSane(t *testing.T) {
	seen := map[string]bool{}
	for _, l := range limits() {
		if seen[l.key] || l.least == 0 || l.cause == "" {
			t.Errorf("bad limit %+v", l)
		}
		seen[l.key] = true
		if v := judgeLimit(l, l.least); v.state != OK {
			t.Errorf("%s: its own least value is judged %+v", l.key, v)
		}
		if v := judgeLimit(l, l.least-1); v.state != Warning || !strings.Contains(v.fix, l.key) {
			t.Errorf("%s: one less is judged %+v", l.key, v)
		}
		if v := judgeLimit(l, 0); v.state != Fault {
			t.Errorf("%s: nothing is judged %+v", l.key, v)
		}
	}
	if err := EnsureLimits(t.Context(), filepath.Join(t.TempDir(), "missing"), slog.New(slog.DiscardHandler)); err == nil {
		for _, l := range limits() {
			if n, ok, _ := procSys.get(l.key); ok && n < l.least {
				t.Errorf("%s is low, and nothing was said", l.key)
			}
		}
	}
}

func rules(t testing.TB, objects ...string) ruleset {
	r, err := parseRuleset([]byte(`{"nftables":[{"metainfo":{"version":"1.0.6"}},` + strings.Join(objects, ",") + `]}`))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

const (
	dockerForward = `{"chain":{"family":"ip","table":"filter","name":"FORWARD","type":"filter","hook":"forward","prio":0,"policy":"drop"}}`
	dockerUser    = `{"chain":{"family":"ip","table":"filter","name":"DOCKER-USER"}}`
	dockerAccept  = `{"rule":{"family":"ip","table":"filter","chain":"DOCKER-USER","expr":[{"match":{"op":"==","left":{"meta":{"key":"iifname"}},"right":"lg*"}},{"accept":null}]}}`
	ufwForward    = `{"chain":{"family":"ip6","table":"filter","name":"FORWARD","type":"filter","hook":"forward","prio":0,"policy":"drop"}},{"chain":{"family":"ip6","table":"filter","name":"ufw6-before-forward"}}`
	firewalld     = `{"chain":{"family":"inet","table":"firewalld","name":"filter_FORWARD","type":"filter","hook":"forward","prio":10,"policy":"accept"}},{"rule":{"family":"inet","table":"firewalld","chain":"filter_FORWARD","expr":[{"reject":{"type":"icmpx","expr":"admin-prohibited"}}]}}`
	harmless      = `{"chain":{"family":"inet","table":"filter","name":"forward","type":"filter","hook":"forward","prio":0,"policy":"accept"}},{"rule":{"family":"inet","table":"filter","chain":"forward","expr":[{"match":{"op":"==","left":{"meta":{"key":"iifname"}},"right":"eth9"}},{"drop":null}]}}`
	ours          = `{"chain":{"family":"inet","table":"lodge","name":"forward","type":"filter","hook":"forward","prio":0,"policy":"drop"}}`
	inputOnly     = `{"chain":{"family":"ip","table":"filter","name":"INPUT","type":"filter","hook":"input","prio":0,"policy":"drop"}}`
)

func TestFirewall(t *testing.T) {
	for name, c := range map[string]struct {
		objects []string
		bridges []string
		state   State
		words   string
	}{
		"nothing":           {[]string{inputOnly}, nil, OK, ""},
		"harmless":          {[]string{harmless, ours}, nil, OK, ""},
		"docker":            {[]string{dockerForward, dockerUser}, nil, Fault, "docker"},
		"docker let":        {[]string{dockerForward, dockerUser, dockerAccept}, nil, OK, ""},
		"docker let bridge": {[]string{dockerForward, dockerUser, dockerAccept}, []string{"lgbr0"}, OK, ""},
		"docker let other":  {[]string{dockerForward, dockerUser, dockerAccept}, []string{"mybr0"}, Fault, "docker"},
		"ufw":               {[]string{ufwForward}, nil, Fault, "ufw"},
		"firewalld":         {[]string{firewalld}, nil, Fault, "firewalld"},
		"own":               {[]string{dockerForward}, nil, Fault, "table ip filter"},
	} {
		v := judgeFirewall(rules(t, c.objects...), c.bridges)
		if v.state != c.state || !strings.Contains(v.found, c.words) || v.state != OK && (v.cause == "" || v.fix == "") {
			t.Errorf("%s: %+v, want %s with %q", name, v, c.state, c.words)
		}
	}
	if _, err := parseRuleset([]byte("Operation not permitted")); err == nil {
		t.Error("an error message was taken for rules")
	}
}

// TestRealRuleset reads back from nft what another firewall would have made,
// follows the doctor's own advice, and looks again.
func TestRealRuleset(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	err := inOwnNetwork(func() error { return adviceHelps(t) })
	if err != nil {
		t.Skip(err)
	}
}

func FuzzParseRuleset(f *testing.F) {
	for _, s := range []string{dockerForward + "," + dockerUser + "," + dockerAccept, ufwForward, firewalld, harmless, ours} {
		f.Add([]byte(`{"nftables":[` + s + `]}`))
	}
	f.Add([]byte(`{"nftables":[{"rule":{"expr":[null,1,{"match":{"left":[],"right":{}}}]}}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := parseRuleset(text)
		if err != nil {
			return
		}
		if v := judgeFirewall(r, nil); v.state != OK && v.fix == "" {
			t.Errorf("a fault without a cure: %+v", v)
		}
	})
}

func FuzzParseKVMSteps(f *testing.F) {
	line, _ := json.Marshal(kvmprobe.Step{Step: "real mode", Ns: 1})
	f.Add(append(line, '\n'))
	f.Fuzz(func(t *testing.T, out []byte) {
		if steps := parseKVMSteps(out); len(steps) > 16 {
			t.Errorf("%d steps", len(steps))
		}
	})
}
