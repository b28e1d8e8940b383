package launch

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lodge/internal/base/cgroup"
	"lodge/internal/base/ids"
	"lodge/internal/keeper"
	"lodge/internal/launch/plan/render"
	"lodge/test/sandbox"
)

func TestMain(m *testing.M) { sandbox.Main(m) }

var update = flag.Bool("update", false, "write the golden files anew")

// TestGolden shows every system call of a start, so that a change of one is
// seen by whoever reviews it.
func TestGolden(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("the golden file is of amd64")
	}
	j := Jail{Launch: "/launch", Join: cgroup.JoinPaths{Dir: "/v2/web1", Tasks: []string{"/v1/memory/web1/tasks"}}, UID: 1_000_065_536,
		CPUs: []int{1, 8}, Argv: []string{"/bin/monitor", "-x"}, Env: []string{"A=1"}, Tmp: 1 << 20, Proc: true, Devices: []string{"null", "kvm"},
		Binds: []Bind{{Host: "/usr/bin/monitor", Inside: "/bin/monitor"}, {Host: "/pool/disk", Inside: "/disks/a", Writable: true}},
		Files: []File{Open{"/pool/base", unix.O_RDONLY}, Pair{}, Memory{Name: "initrd", Parts: []Part{{Bytes: []byte("070701")}, {Path: "/initrd"}}, Size: 4096, Seal: unix.F_SEAL_WRITE},
			Memory{Name: "ram", Size: 1 << 30, Huge: true},
			Tap{Device: "lg1n0", Master: "lodge0", MTU: 1400, Header: true, Offload: 1}},
		Limits: Limits{Descriptors: 4096, Locked: 1 << 20}, Filter: make([]byte, 8), Console: true}
	for i, want := range []int{3, 4, 6, 7, 8} {
		if is := j.Descriptor(i); is != want {
			t.Errorf("file %d is descriptor %d, not %d", i, is, want)
		}
	}
	p, err := j.Program()
	if err != nil {
		t.Fatal(err)
	}
	is, err := render.Plan(p.Input)
	if err != nil {
		t.Fatal(err)
	}
	const path = "testdata/jail.golden"
	if *update {
		if err := os.WriteFile(path, []byte(is), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if is != string(want) {
		t.Errorf("%s is not what it was; if that is meant: go test -run TestGolden -update\n%s", path, is)
	}
	if again, err := j.Program(); err != nil || !bytes.Equal(again.Input, p.Input) {
		t.Errorf("the same jail gave another program (%v)", err)
	}
}

func TestRefused(t *testing.T) {
	good := Jail{UID: 1, Argv: []string{"/x"}}
	for want, j := range map[string]Jail{
		"may not be root":            {Argv: good.Argv},
		"full path":                  {UID: 1, Argv: []string{"x"}},
		"cannot be a place in a":     {UID: 1, Argv: good.Argv, Binds: []Bind{{Host: "/a", Inside: "/a/../b"}}},
		"nothing was given for /a":   {UID: 1, Argv: good.Argv, Binds: []Bind{{Inside: "/a"}}},
		`"tun" is no device of`:      {UID: 1, Argv: good.Argv, Devices: []string{"tun"}},
		"there is no processor 9999": {UID: 1, Argv: good.Argv, CPUs: []int{9999}},
	} {
		if _, err := j.Program(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	if _, err := good.Program(); err != nil {
		t.Error(err)
	}
}

// rig is a keeper, the launch helper and a control group.
type rig struct {
	t      *testing.T
	keeper *keeper.Client
	helper string
	tree   *cgroup.Tree
	dir    string
}

const group = "jailed"

func newRig(t *testing.T) *rig {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes namespaces, mounts and control groups")
	}
	dir, err := os.MkdirTemp("", "lodge-jail-") // a socket's path must be short
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	must(t, os.Chmod(dir, 0o755))
	r := &rig{t: t, dir: dir, helper: filepath.Join(dir, "launch")}
	if out, err := exec.Command("helper/build.sh", r.helper).CombinedOutput(); err != nil {
		sandbox.Missing(t, fmt.Sprintf("the launch helper cannot be built here: %v: %s", err, out))
	}
	binary := filepath.Join(dir, "keeper")
	build := exec.Command("go", "build", "-o", binary, "lodge/cmd/lodge-keeper")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	r.keeper, err = keeper.Open(t.Context(), keeper.Options{Dir: filepath.Join(dir, "k"), Binary: binary})
	must(t, err)
	t.Cleanup(func() {
		must(t, r.keeper.Shutdown(context.Background()))
		r.keeper.Close()
	})
	layout, err := cgroup.Detect()
	if err != nil {
		t.Skip(err)
	}
	r.tree, err = layout.Open("lodge-jail-" + ids.New())
	must(t, err)
	t.Cleanup(func() { must(t, r.tree.Destroy(context.Background())) })
	must(t, r.tree.Create(group, cgroup.Limits{Memory: 64 << 20, Processes: 50}))
	return r
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

const user = 1_700_000_000

// run starts a shell script in a jail with busybox in it.
func (r *rig) run(script string, change func(j *Jail)) keeper.Held {
	r.t.Helper()
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		sandbox.Missing(r.t, "busybox is not installed: scripts/deps.sh test")
	}
	j := Jail{Launch: r.helper, Join: r.tree.Join(group), UID: user, Argv: []string{"/bin/busybox", "sh", "-c", script}, Env: []string{"PATH=/bin"},
		Binds: []Bind{{Host: busybox, Inside: "/bin/busybox"}}, Console: true, Log: filepath.Join(r.dir, "log"), LogMax: 1 << 20}
	for _, applet := range strings.Fields("sh ls cat id grep stat hostname ip touch sleep ps head wc mount kill dd") {
		j.Binds = append(j.Binds, Bind{Host: busybox, Inside: "/bin/" + applet})
	}
	if change != nil {
		change(&j)
	}
	p, err := j.Program()
	must(r.t, err)
	held, err := r.keeper.Start(r.t.Context(), "jail", p)
	must(r.t, err)
	r.t.Cleanup(func() {
		ctx := context.Background()
		_ = held.Signal(ctx, syscall.SIGKILL)
		_, _ = held.Wait(ctx)
		_ = r.keeper.Forget(ctx, "jail")
	})
	return held
}

// said waits for a text in what the program wrote, and returns all of it.
func (r *rig) said(text string) string {
	r.t.Helper()
	var all []byte
	for end := time.Now().Add(60 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		all, _ = os.ReadFile(filepath.Join(r.dir, "log")) // it is made with the first output
		if all = bytes.ReplaceAll(all, []byte("\r\n"), []byte("\n")); bytes.Contains(all, []byte(text)) {
			return string(all)
		}
	}
	r.t.Fatalf("it never said %q but %q", text, all)
	return ""
}

// TestInside looks at a jail from within.
func TestInside(t *testing.T) {
	r := newRig(t)
	shared, own := filepath.Join(r.dir, "shared"), filepath.Join(r.dir, "own")
	must(t, os.Mkdir(shared, 0o755))
	must(t, os.WriteFile(filepath.Join(shared, "text"), []byte("read me\n"), 0o644))
	must(t, os.WriteFile(own, []byte("mine\n"), 0o600))
	r.run(`echo root: $(ls -a /) dev: $(ls /dev) fds: $(ls /proc/self/fd)
id; grep -e Cap -e NoNew -e Groups /proc/self/status; hostname; ip -o link; echo pids: $(ls /proc | grep '^[0-9]')
cat /shared/text /deep/er/own; echo more >>/deep/er/own && cat /deep/er/own
touch /x /bin/x /shared/x; echo >/shared/text; touch /tmp/x && echo tmp is writable; echo null >/dev/null && echo null is writable
stat -c '%n %u %a' /tmp /deep/er/own; ls /proc/sys; echo cpus $(grep Cpus_allowed_list /proc/self/status); cat /proc/1/cgroup; cat /proc/1/limits; echo END`,
		func(j *Jail) {
			j.Binds = append(j.Binds, Bind{Host: shared, Inside: "/shared"}, Bind{Host: own, Inside: "/deep/er/own", Writable: true})
			j.Proc, j.Tmp, j.Devices, j.CPUs = true, 1<<20, []string{"null", "zero"}, []int{0}
			j.Limits.Descriptors = 777
		})
	out := r.said("END\n")
	for _, want := range []string{
		"root: . .. bin deep dev proc shared tmp dev: null zero fds: 0 1 2 3\n", // 3 is the folder that ls reads
		"uid=1700000000 gid=1700000000\n", "CapInh:\t0000000000000000\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapBnd:\t0000000000000000\nCapAmb:\t0000000000000000\nNoNewPrivs:\t1",
		"\njail\n", "read me\nmine\nmine\nmore\n", "/x: Read-only file system", "/bin/x: Read-only file system", "/shared/x: Read-only file system",
		"can't create /shared/text: Read-only file system", "tmp is writable", "null is writable", "/tmp 1700000000 700", "/deep/er/own 1700000000 600",
		"/proc/sys: No such file or directory", "cpus Cpus_allowed_list: 0\n", "0::/\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if strings.Contains(out, "eth") || strings.Count(out, "link/") != 1 {
		t.Errorf("it sees network cards: %s", out)
	}
	for _, limit := range []string{"Max open files            777 ", "Max core file size        0 "} {
		if !strings.Contains(out, limit) {
			t.Errorf("no %q in %s", limit, out)
		}
	}
}

// TestMoved gives the program a folder that was another user's, with the files
// that it is said to keep there and no others.
func TestMoved(t *testing.T) {
	r := newRig(t)
	state := filepath.Join(r.dir, "state")
	must(t, os.Mkdir(state, 0o700))
	for _, name := range []string{"kept", "other"} {
		must(t, os.WriteFile(filepath.Join(state, name), []byte(name+"\n"), 0o600))
		must(t, os.Chown(filepath.Join(state, name), 1_600_000_000, 1_600_000_000))
	}
	outside := filepath.Join(r.dir, "outside")
	must(t, os.WriteFile(outside, nil, 0o600))
	must(t, os.Symlink(outside, filepath.Join(state, "link")))
	r.run(`cat /state/kept; cat /state/other; echo END`, func(j *Jail) {
		j.Binds = append(j.Binds, Bind{Host: state, Inside: "/state", Writable: true, Files: []string{"kept", "none", "link"}})
	})
	if out := r.said("END\n"); !strings.Contains(out, "kept\n") || !strings.Contains(out, "can't open '/state/other': Permission denied") {
		t.Errorf("it reads\n%s", out)
	}
	if st, err := os.Stat(outside); err != nil || st.Sys().(*syscall.Stat_t).Uid != 0 {
		t.Errorf("what a link leads to was given away: %v", err)
	}
}

// TestFaults: a program that serves page faults keeps the one capability for it,
// whatever it executes, and can get no other.
func TestFaults(t *testing.T) {
	r := newRig(t)
	r.run("grep -e Cap -e NoNew /proc/self/status; echo END", func(j *Jail) { j.Proc, j.Faults = true, true })
	out := r.said("END\n")
	const ptrace = "0000000000080000\n"
	for _, want := range []string{"CapInh:\t" + ptrace, "CapPrm:\t" + ptrace, "CapEff:\t" + ptrace, "CapBnd:\t" + ptrace, "CapAmb:\t" + ptrace, "NoNewPrivs:\t1"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}

// TestFiles talks to a program through what it was handed.
func TestFiles(t *testing.T) {
	r := newRig(t)
	secret, part := filepath.Join(r.dir, "secret"), filepath.Join(r.dir, "part")
	must(t, os.WriteFile(secret, []byte("for you\n"), 0o600))
	must(t, os.WriteFile(part, bytes.Repeat([]byte("p"), 100_000), 0o600))
	j := Jail{Files: []File{
		Open{secret, unix.O_RDONLY}, Pair{},
		Memory{Name: "parts", Parts: []Part{{Bytes: []byte("head")}, {Path: part}, {Bytes: []byte("tail")}}, Seal: unix.F_SEAL_WRITE | unix.F_SEAL_GROW | unix.F_SEAL_SHRINK},
		Memory{Name: "room", Size: 1 << 20}, Memory{Name: "hall", Size: 4 << 20, Huge: HugeFiles()}}}
	held := r.run(`cat <&3; wc -c </proc/self/fd/6; head -c 4 </proc/self/fd/6; echo; wc -c </proc/self/fd/7
echo no >>/proc/self/fd/6; echo left >/proc/self/fd/7; wc -c </proc/self/fd/8
echo hello >&4; read x <&4; echo host says $x; read x <&4; echo then $x; echo END`, func(q *Jail) { q.Files, q.Proc = j.Files, true })
	room, err := Take(held, j.Descriptor(3))
	must(t, err)
	defer room.Close()
	if HugeFiles() {
		hall, err := Take(held, j.Descriptor(4))
		must(t, err)
		defer hall.Close()
		hasHugePages(t, hall)
	}
	for _, text := range []string{"one\n", "two\n"} { // whoever comes later finds the same channel
		line, err := Take(held, j.Descriptor(1)+1)
		must(t, err)
		if text == "one\n" {
			b := make([]byte, 6)
			if _, err := io.ReadFull(line, b); err != nil || string(b) != "hello\n" {
				t.Errorf("it said %q, %v", b, err)
			}
		}
		_, err = line.WriteString(text)
		must(t, err)
		must(t, line.Close())
	}
	out := r.said("END\n")
	for _, want := range []string{"for you\n100008\nhead\n1048576\n", "\n4194304\n", "host says one\nthen two\n", "Operation not permitted"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	b := make([]byte, 5)
	if _, err := room.ReadAt(b, 0); err != nil || string(b) != "left\n" {
		t.Errorf("the room holds %q, %v", b, err)
	}
}

// hasHugePages asks for huge pages in a file of 4 MiB, which holds one however
// it is mapped.
func hasHugePages(t *testing.T, f *os.File) {
	t.Helper()
	b, err := unix.Mmap(int(f.Fd()), 0, 4<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	defer unix.Munmap(b)
	must(t, unix.Madvise(b, unix.MADV_HUGEPAGE))
	for i := 0; i < len(b); i += os.Getpagesize() {
		b[i] = 1
	}
	text, err := os.ReadFile("/proc/self/smaps")
	must(t, err)
	_, entry, _ := strings.Cut(string(text), " /hall\n")
	if m := regexp.MustCompile(`ShmemPmdMapped: +(\d+) kB`).FindStringSubmatch(entry); m == nil || m[1] == "0" {
		t.Errorf("it has no huge pages: %.700s", entry)
	}
}

// TestTap sends a packet through a card that belongs to a bridge.
func TestTap(t *testing.T) {
	r := newRig(t)
	for _, c := range []string{"ip link add br0 type bridge", "ip link set br0 up"} {
		if out, err := exec.Command("sh", "-c", c).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", c, err, out)
		}
	}
	packet := strings.Repeat(`\377`, 6) + `\002\000\000\000\000\001\210\265hello`
	tap := func(j *Jail) { j.Files = []File{Tap{Device: "lgt0", Master: "br0", MTU: 1400}} }
	held := r.run(fmt.Sprintf("printf '%s' >&3; echo sent; sleep 1000", packet), tap)
	r.said("sent\n")
	out, err := exec.Command("ip", "-o", "link", "show", "lgt0").CombinedOutput()
	if text := string(out); err != nil || !strings.Contains(text, "master br0") || !strings.Contains(text, "mtu 1400") || !strings.Contains(text, "LOWER_UP") {
		t.Errorf("%v: %s", err, out)
	}
	if out, err := exec.Command("ip", "-o", "addr", "show", "lgt0").CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("the card speaks IP: %s %v", out, err)
	}
	counts, err := os.ReadFile("/proc/net/dev") // /sys still shows the network outside
	must(t, err)
	if _, after, ok := strings.Cut(string(counts), "br0:"); !ok || strings.HasPrefix(strings.TrimSpace(after), "0 ") {
		t.Errorf("the bridge saw nothing: %s", counts)
	}
	must(t, held.Signal(t.Context(), syscall.SIGKILL))
	if _, err := held.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if exec.Command("ip", "link", "show", "lgt0").Run() != nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the card outlives the program")
		}
	}
}

// TestWhole checks that nothing of a jail outlives its first process, that all
// of it is in the control group, and that failures are told in words.
func TestWhole(t *testing.T) {
	r := newRig(t)
	held := r.run("for i in 1 2 3; do sleep 1000 & done; echo begun; wait", func(j *Jail) { j.Devices = []string{"null"} })
	r.said("begun")
	if u, err := r.tree.Usage(group); err != nil || u.Processes != 4 {
		t.Errorf("the group holds %d processes, %v", u.Processes, err)
	}
	must(t, held.Signal(t.Context(), syscall.SIGKILL))
	if e, err := held.Wait(t.Context()); err != nil || e.Signal != syscall.SIGKILL {
		t.Errorf("%+v, %v", e, err)
	}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if u, err := r.tree.Usage(group); err == nil && u.Processes == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("processes are left")
		}
	}
	for want, j := range map[string]Jail{
		"run /bin/nothing: no such file":   {Argv: []string{"/bin/nothing"}},
		"bind /no/such/file: no such file": {Argv: []string{"/x"}, Binds: []Bind{{Host: "/no/such/file", Inside: "/x"}}},
		"open /no/such/disk: no such file": {Argv: []string{"/x"}, Files: []File{Open{"/no/such/disk", 0}}},
		"network interface nobr: ":         {Argv: []string{"/x"}, Files: []File{Tap{Device: "lgt1", Master: "nobr"}}},
	} {
		j.Launch, j.Join, j.UID = r.helper, r.tree.Join(group), user
		p, err := j.Program()
		must(t, err)
		if _, err := r.keeper.Start(t.Context(), "bad", p); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}
