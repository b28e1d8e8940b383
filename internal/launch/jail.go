// Package launch starts programs in namespaces of their own: it has the words
// that plans are made of (Script, Wire), and the jail that programs which are
// machines to their guests are shut in.
//
// Go decides what is done and in which order, the launch helper (helper/launch.c)
// only executes it.
package launch

import (
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"lodge/internal/base/cgroup"
	"lodge/internal/base/errs"
	"lodge/internal/keeper"
	"lodge/internal/launch/plan"
)

// Jail is a program and all that it may touch.
//
// It runs as process 1 of namespaces of its own (process, mount, network, ipc,
// uts, cgroup), under a user id without any capability (but see Faults), in an empty read-only
// root with nothing but Binds, Devices, Tmp and Proc in it. What it needs
// beyond that is opened before it is shut in and handed over as descriptors.
// When it ends, all processes of the jail end.
type Jail struct {
	Launch string // path of the launch helper
	Join   cgroup.JoinPaths
	UID    uint32 // and group id; not 0
	CPUs   []int  // of the host that it may run on; nil: all

	Argv []string // Argv[0] is an absolute path in the jail
	Env  []string

	Binds   []Bind
	Tmp     uint64   // bytes that the memory file system at /tmp may hold; 0: there is none
	Proc    bool     // /proc, of which it sees its own processes and nothing else
	Devices []string // of "null", "zero", "urandom", "random", "kvm", below /dev
	Nulls   []string // absolute paths of devices like /dev/null
	Files   []File   // what the program finds at descriptors 3, 4, ... in this order
	Limits  Limits
	Filter  []byte // seccomp program, or nil
	// Faults lets the program serve page faults of its own memory, the kernel's
	// too (userfaultfd(2)). For that it keeps CAP_SYS_PTRACE, which reaches the
	// processes of its own namespace and no other.
	Faults bool

	Console bool   // as keeper.Program takes them
	Log     string //
	LogMax  int64  //
}

// Bind is a file or folder of the host that the program sees.
type Bind struct {
	Host, Inside string
	Writable     bool // it becomes the jail's user's own then
	Make         bool // a folder that is made if it is not there
	// Files of a writable folder become the jail's user's too, those that are
	// there: the folder may be a copy of another user's.
	Files []string
}

// Limits are those of each process in the jail. A core is never written.
type Limits struct {
	Descriptors uint64 // that may be open; 0 is 1024
	Locked      uint64 // bytes of memory that may be locked
}

// The child of the plan waits for these.
const plugged = 1

// jail is the plan of one, while it is being made.
type jail struct {
	Script
	j     Jail
	stage Stage
	fds   []plan.Reg // what is opened, in the order of the program's descriptors
	root  plan.Reg
}

// Program compiles the jail. It has no side effects: equal jails give equal
// programs.
func (j Jail) Program() (keeper.Program, error) {
	if err := j.check(); err != nil {
		return keeper.Program{}, err
	}
	b := &jail{Script: NewScript(), j: j}
	b.stage = b.NewStage()
	b.host()
	input, err := b.Compile()
	if err != nil {
		return keeper.Program{}, err
	}
	return keeper.Program{Argv: []string{j.Launch}, Dir: "/", Input: input, Launcher: true,
		Console: j.Console, Log: j.Log, LogMax: j.LogMax}, nil
}

func (j Jail) check() error {
	bad := func(field, format string, args ...any) error {
		return &errs.Error{Op: "launch.jail", Kind: errs.Internal, Field: field, Msg: fmt.Sprintf(format, args...)}
	}
	if j.UID == 0 {
		return bad("uid", "a jailed program may not be root")
	}
	if len(j.Argv) == 0 || !path.IsAbs(j.Argv[0]) {
		return bad("argv", "a jailed program needs the full path of what to run")
	}
	for _, b := range j.Binds {
		if !placeIn(b.Inside) {
			return bad("binds", "%q cannot be a place in a jail", b.Inside)
		}
		if b.Host == "" {
			return bad("binds", "nothing was given for %s", b.Inside)
		}
	}
	for _, d := range j.Devices {
		if _, known := jailDevices()[d]; !known {
			return bad("devices", "%q is no device of jails", d)
		}
	}
	for _, at := range j.Nulls {
		if !placeIn(at) {
			return bad("nulls", "%q cannot be a place in a jail", at)
		}
	}
	for _, c := range j.CPUs {
		if c < 0 || c >= cpusMax {
			return bad("cpus", "there is no processor %d", c)
		}
	}
	return nil
}

// placeIn reports whether something can be at a path in a jail.
func placeIn(at string) bool { return path.IsAbs(at) && path.Clean(at) == at && at != "/" }

// first is the descriptor of the first of Jail.Files.
const first = 3

// Descriptor returns the number of the i-th file's descriptor in the program;
// of a Pair, that of the program's end, after which comes the host's.
func (j Jail) Descriptor(i int) int {
	n := first
	for _, f := range j.Files[:i] {
		n += f.count()
	}
	return n
}

// Take returns a descriptor of a running program of a jail, which stays open
// there. It does not block: the runtime waits for it without a thread.
func Take(held keeper.Held, fd int) (*os.File, error) {
	own, err := unix.PidfdGetfd(held.Pidfd(), fd, 0)
	if err != nil {
		return nil, fmt.Errorf("descriptor %d of %s: %w", fd, held.State().Name, err)
	}
	if err := unix.SetNonblock(own, true); err != nil {
		unix.Close(own)
		return nil, err
	}
	return os.NewFile(uintptr(own), held.State().Name+"/"+strconv.Itoa(fd)), nil
}

// host is the part that runs in the host's namespaces.
func (b *jail) host() {
	b.Do("umask", unix.SYS_UMASK, Zero)
	// A single thread that writes "0" takes no host-wide lock, and the program
	// is born where the helper is; so is what it ever forks.
	for _, tasks := range b.j.Join.Tasks {
		b.WriteFile(tasks, "0")
	}
	group := b.Open(b.j.Join.Dir, unix.O_RDONLY|unix.O_DIRECTORY)
	b.limits()
	for _, f := range b.j.Files {
		for range f.count() {
			b.fds = append(b.fds, b.New())
		}
	}
	c := b.NewClone(unix.CLONE_NEWNS|unix.CLONE_NEWPID|unix.CLONE_NEWUTS|unix.CLONE_NEWIPC|unix.CLONE_NEWNET, group)
	child := b.Mark()
	pid := b.Spawn("make the namespaces", c.Args, child)
	// No register that is used here is used again: the child runs meanwhile.
	b.each(func(f File, fds []plan.Reg) {
		if t, ok := f.(Tap); ok {
			t.open(b.Script, fds)
		}
	})
	b.stage.Reach(plugged)
	b.AwaitCleared(c.TID)
	line := b.Space(plan.TextLen + 8)
	n := b.Decimal(line, pid)
	b.Do("report", unix.SYS_WRITE, Status, line, n)
	b.Write("report", Status, "\n")
	b.End()
	b.Here(child)
	b.inside()
}

func (b *jail) each(do func(f File, fds []plan.Reg)) {
	at := 0
	for _, f := range b.j.Files {
		do(f, b.fds[at:at+f.count()])
		at += f.count()
	}
}

func (b *jail) limits() {
	files := b.j.Limits.Descriptors
	if files == 0 {
		files = 1024
	}
	for _, l := range []struct {
		resource int
		value    uint64
	}{
		{unix.RLIMIT_NOFILE, files}, {unix.RLIMIT_CORE, 0}, {unix.RLIMIT_MEMLOCK, b.j.Limits.Locked},
		{unix.RLIMIT_NPROC, math.MaxUint64}, // the control group counts
	} {
		at := b.Bytes(binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, l.value), l.value))
		// Where the daemon may not raise limits, the program has the daemon's own.
		b.Ignore(unix.SYS_PRLIMIT64, Zero, plan.Imm(l.resource), at, Zero)
	}
	b.Knob("/proc/self/oom_score_adj", "0")
}

// inside is the part that runs in the jail's namespaces. Until it has changed
// the root it still sees the host's tree, and opens what is wanted of it: in
// the program's control group, which pays for it.
func (b *jail) inside() {
	b.Do("control group namespace", unix.SYS_UNSHARE, plan.Imm(unix.CLONE_NEWCGROUP))
	b.Do("new session", unix.SYS_SETSID)
	// Nothing that is mounted here shows on the host.
	b.Do("own mounts", unix.SYS_MOUNT, b.Text(""), b.Text("/"), b.Text(""), plan.Imm(unix.MS_REC|unix.MS_PRIVATE), Zero)
	b.each(func(f File, fds []plan.Reg) {
		if _, ok := f.(Tap); !ok {
			b.Scope(func() { f.open(b.Script, fds) })
		}
	})
	b.furnish()
	const name = "jail"
	b.Do("host name", unix.SYS_SETHOSTNAME, b.Text(name), plan.Imm(len(name)))
	b.affinity()
	b.stage.Await(plugged)
	b.handOver()
	b.drop()
	set := b.Space(8)
	b.Do("signal mask", unix.SYS_RT_SIGPROCMASK, plan.Imm(unix.SIG_SETMASK), set, Zero, plan.Imm(8))
	b.Do("umask", unix.SYS_UMASK, plan.Imm(0o077))
	vector, environ := b.Vector(b.j.Argv), b.Vector(b.j.Env)
	if b.j.Filter != nil {
		b.Do("seccomp filter", unix.SYS_SECCOMP, plan.Imm(unix.SECCOMP_SET_MODE_FILTER), Zero, b.SockFilter(b.j.Filter))
	}
	r := b.Try(unix.SYS_EXECVE, b.Text(b.j.Argv[0]), vector, environ)
	b.Fail("run "+b.j.Argv[0], r)
}

// rootSize is how large the jail's own root may get, which holds but empty
// files and folders.
const rootSize = "1m"

// device is a character device that a jail may have, with the numbers of
// Documentation/admin-guide/devices.txt.
type device struct{ major, minor uint32 }

func jailDevices() map[string]device {
	return map[string]device{"null": {1, 3}, "zero": {1, 5}, "random": {1, 8}, "urandom": {1, 9}, "kvm": {10, 232}}
}

// furnish makes the root and moves there.
func (b *jail) furnish() {
	b.root = b.Create("tmpfs", b.Filesystem("tmpfs", Opt("mode", "755"), Opt("size", rootSize)), unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC)
	// It must be attached somewhere to become the root, and every host has a
	// /proc.
	place := b.Open("/proc", unix.O_PATH|unix.O_DIRECTORY)
	b.Attach("attach the root", b.root, place)
	b.Close(place)
	made := map[string]bool{}
	for _, bind := range b.j.Binds {
		b.Scope(func() { b.bind(bind, made) })
	}
	if b.j.Tmp > 0 {
		id := strconv.FormatUint(uint64(b.j.UID), 10)
		fs := b.Filesystem("tmpfs", Opt("mode", "700"), Opt("uid", id), Opt("gid", id), Opt("size", strconv.FormatUint(b.j.Tmp, 10)))
		b.hang("/tmp", b.Create("tmpfs", fs, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV), made)
	}
	if b.j.Proc {
		fs := b.Filesystem("proc", Opt("subset", "pid"))
		b.hang("/proc", b.Create("proc", fs, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC), made)
	}
	for _, name := range b.j.Devices {
		b.device("/dev/"+name, jailDevices()[name], made)
	}
	for _, at := range b.j.Nulls {
		b.device(at, jailDevices()["null"], made)
	}
	b.Attributes("protect the root", b.root, unix.MOUNT_ATTR_RDONLY, nil)
	b.Do("enter the root", unix.SYS_FCHDIR, b.root)
	b.Do("change the root", unix.SYS_PIVOT_ROOT, b.Text("."), b.Text("."))
	b.Do("let go of the host", unix.SYS_UMOUNT2, b.Text("."), plan.Imm(unix.MNT_DETACH))
	b.Do("enter /", unix.SYS_CHDIR, b.Text("/"))
}

// device makes one of the host's devices in the jail.
func (b *jail) device(at string, d device, made map[string]bool) {
	b.folders(path.Dir(at), made)
	b.Do("device "+at, unix.SYS_MKNODAT, b.root, b.Text(at[1:]), plan.Imm(unix.S_IFCHR|0o666), plan.Imm(int64(unix.Mkdev(d.major, d.minor))))
}

// folders makes a folder of the jail and those above it, unless made tells
// that they are there.
func (b *jail) folders(dir string, made map[string]bool) {
	if dir == "/" || made[dir] {
		return
	}
	b.folders(path.Dir(dir), made)
	b.Ignore(unix.SYS_MKDIRAT, b.root, b.Text(dir[1:]), plan.Imm(0o755))
	made[dir] = true
}

func (b *jail) hang(dir string, mount plan.Reg, made map[string]bool) {
	b.folders(dir, made)
	place := b.OpenAt(dir+" of the jail", b.root, dir[1:], unix.O_PATH|unix.O_DIRECTORY)
	b.Attach("attach "+dir, mount, place)
	b.Close(place, mount)
}

// bind shows a file or folder of the host in the jail. Which of both it is only
// shows when it is attached: a file cannot be put on a folder.
func (b *jail) bind(bind Bind, made map[string]bool) {
	what := "bind " + bind.Host
	set := unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV
	if bind.Make {
		b.Ignore(unix.SYS_MKDIRAT, Cwd, b.Text(bind.Host), plan.Imm(0o700))
	}
	if !bind.Writable {
		set |= unix.MOUNT_ATTR_RDONLY
	} else {
		b.Do("give away "+bind.Host, unix.SYS_FCHOWNAT, Cwd, b.Text(bind.Host), plan.Imm(b.j.UID), plan.Imm(b.j.UID), Zero)
		for _, name := range bind.Files {
			b.Ignore(unix.SYS_FCHOWNAT, Cwd, b.Text(path.Join(bind.Host, name)), plan.Imm(b.j.UID), plan.Imm(b.j.UID), plan.Imm(unix.AT_SYMLINK_NOFOLLOW))
		}
	}
	m := b.Clone(what, Cwd, bind.Host, 0)
	b.Attributes(what, m, set, nil)
	b.folders(path.Dir(bind.Inside), made)
	at, file, done := bind.Inside[1:], b.Mark(), b.Mark()
	b.Ignore(unix.SYS_MKDIRAT, b.root, b.Text(at), plan.Imm(0o755))
	place := b.OpenAt(what, b.root, at, unix.O_PATH)
	r := b.Try(unix.SYS_MOVE_MOUNT, m, b.Text(""), place, b.Text(""), plan.Imm(unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH))
	b.JumpIf(r, No(unix.EINVAL), file)
	b.JumpIf(r, Zero, done)
	b.Fail(what, r)
	b.Here(file)
	b.Close(place)
	b.Ignore(unix.SYS_UNLINKAT, b.root, b.Text(at), plan.Imm(unix.AT_REMOVEDIR))
	b.Do(what, unix.SYS_MKNODAT, b.root, b.Text(at), plan.Imm(unix.S_IFREG|0o644), Zero)
	b.Set(place, b.OpenAt(what, b.root, at, unix.O_PATH))
	b.Attach(what, m, place)
	b.Here(done)
	b.Close(place, m)
}

// cpusMax is how many processors a host may have, for the size of the mask.
const cpusMax = 8192

func (b *jail) affinity() {
	if len(b.j.CPUs) == 0 {
		return
	}
	mask := make([]byte, (slices.Max(b.j.CPUs)/64+1)*8)
	for _, c := range b.j.CPUs {
		mask[c/8] |= 1 << (c % 8)
	}
	var list []string
	for _, c := range b.j.CPUs {
		list = append(list, strconv.Itoa(c))
	}
	b.Do("processors "+strings.Join(list, " "), unix.SYS_SCHED_SETAFFINITY, Zero, plan.Imm(len(mask)), b.Bytes(mask))
}

// handOver puts what was opened where the program looks for it. The numbers may
// be in use, also by one another, so all step aside first.
func (b *jail) handOver() {
	var aside []plan.Reg
	for _, fd := range b.fds {
		aside = append(aside, b.Sys("hand over", unix.SYS_FCNTL, fd, plan.Imm(unix.F_DUPFD_CLOEXEC), plan.Imm(first+len(b.fds))))
	}
	b.Do("close descriptors", unix.SYS_CLOSE_RANGE, plan.Imm(first), plan.Imm(math.MaxUint32),
		plan.Imm(unix.CLOSE_RANGE_UNSHARE|unix.CLOSE_RANGE_CLOEXEC))
	for i, fd := range aside {
		b.Do("hand over", unix.SYS_DUP3, fd, plan.Imm(first+i), Zero)
	}
}

// lastCapability is beyond what any kernel has yet.
const lastCapability = 63

// drop gives up every privilege for good, but for the one of Faults.
func (b *jail) drop() {
	for c := range lastCapability + 1 {
		if b.j.Faults && c == unix.CAP_SYS_PTRACE {
			continue
		}
		// A kernel that does not know a capability cannot grant it either.
		b.Ignore(unix.SYS_PRCTL, plan.Imm(unix.PR_CAPBSET_DROP), plan.Imm(c), Zero, Zero, Zero)
	}
	b.Do("no new privileges", unix.SYS_PRCTL, plan.Imm(unix.PR_SET_NO_NEW_PRIVS), plan.Imm(1), Zero, Zero, Zero)
	if b.j.Faults {
		b.Do("keep a capability", unix.SYS_PRCTL, plan.Imm(unix.PR_SET_KEEPCAPS), plan.Imm(1), Zero, Zero, Zero)
	}
	id := plan.Imm(b.j.UID)
	b.Do("groups", unix.SYS_SETGROUPS, Zero, Zero)
	b.Do("group", unix.SYS_SETRESGID, id, id, id)
	b.Do("user", unix.SYS_SETRESUID, id, id, id)
	header := b.Bytes([]byte{0x22, 0x05, 0x08, 0x20, 0, 0, 0, 0}) // _LINUX_CAPABILITY_VERSION_3, this thread
	if !b.j.Faults {
		b.Do("capabilities", unix.SYS_CAPSET, header, b.Space(24))
		return
	}
	// Effective, permitted and inheritable, in the lower of their halves; the
	// ambient one is what outlives execve.
	var sets []byte
	for range 3 {
		sets = binary.LittleEndian.AppendUint32(sets, 1<<unix.CAP_SYS_PTRACE)
	}
	b.Do("capabilities", unix.SYS_CAPSET, header, b.Bytes(append(sets, make([]byte, 12)...)))
	b.Do("keep a capability", unix.SYS_PRCTL, plan.Imm(unix.PR_CAP_AMBIENT), plan.Imm(unix.PR_CAP_AMBIENT_RAISE), plan.Imm(unix.CAP_SYS_PTRACE), Zero, Zero)
}
