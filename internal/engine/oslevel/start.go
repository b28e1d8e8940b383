package oslevel

import (
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"lodge/internal/base/cgroup"
	"lodge/internal/engine"
	"lodge/internal/launch"
	"lodge/internal/launch/plan"
	"lodge/internal/model/guest"
)

// The stages of a start, in their order. The host's side and the guest's side
// work at the same time and meet here.
const (
	mapped    = iota + 1 // the guest has its user ids
	furnished            // the root and the devices are there
	plugged              // the network cards are there
)

// boot is the plan of one start, while it is being made.
type boot struct {
	script
	g     guest.Guest
	parts engine.Parts
	join  cgroup.JoinPaths
	bpf   filters
	stage launch.Stage

	// What the host's side opens for the guest's side.
	root, devices, console plan.Reg
}

// compileStart writes the plan of a start.
func (e *Engine) compileStart(g guest.Guest, parts engine.Parts, join cgroup.JoinPaths) ([]byte, error) {
	bpf, err := e.filter()
	if err != nil {
		return nil, err
	}
	b := &boot{script: newScript(), g: g, parts: parts, join: join, bpf: bpf}
	b.stage = b.NewStage()
	if err := b.host(); err != nil {
		return nil, err
	}
	return b.Compile()
}

// host is the part that runs in the host's namespaces.
func (b *boot) host() error {
	b.Do("umask", unix.SYS_UMASK, zero)
	group := b.groups()
	b.resources()
	b.console = b.terminal()
	c := b.NewClone(unix.CLONE_NEWUSER|unix.CLONE_NEWNS|unix.CLONE_NEWPID|unix.CLONE_NEWUTS|unix.CLONE_NEWIPC|unix.CLONE_NEWNET, group)
	child := b.Mark()
	b.root, b.devices = b.New(), b.New()
	pid := b.Spawn("make the guest's namespaces", c.Args, child)
	userns := b.identities(pid)
	b.stage.Reach(mapped)
	b.overlay(userns)
	b.furnish()
	b.stage.Reach(furnished)
	if len(b.parts.NICs) > 0 {
		w := b.newWire()
		for _, n := range b.parts.NICs {
			if err := w.plug(n, pid); err != nil {
				return err
			}
		}
	}
	b.stage.Reach(plugged)
	b.AwaitCleared(c.TID)
	line := b.Space(plan.TextLen + 8)
	n := b.Decimal(line, pid)
	b.Do("report", unix.SYS_WRITE, plan.Imm(4), line, n)
	b.Write("report", plan.Imm(4), "\n")
	b.End()
	b.Here(child)
	return b.guest()
}

// groups enters the guest's control groups of v1 (a single thread that writes
// "0" takes no host-wide lock, and the guest is born where the helper is) and
// opens that of v2.
func (b *boot) groups() plan.Reg {
	for _, tasks := range b.join.Tasks {
		b.WriteFile(tasks, "0")
	}
	for _, path := range b.join.Delegate {
		b.Do("give away "+path, unix.SYS_FCHOWNAT, cwd, b.Text(path), b.owner(), b.owner(), zero)
	}
	return b.Open(b.join.Dir, unix.O_RDONLY|unix.O_DIRECTORY)
}

func (b *boot) owner() plan.Imm { return plan.Imm(b.parts.IDBase) }

// ttyGroup is the group of terminals in every distribution.
const ttyGroup = 5

// terminal makes the console the guest's own and returns a mount of it.
func (b *boot) terminal() plan.Reg {
	b.Do("console's owner", unix.SYS_FCHOWN, zero, b.owner(), plan.Imm(b.parts.IDBase+ttyGroup))
	b.Do("console's mode", unix.SYS_FCHMOD, zero, plan.Imm(0o620))
	return b.Clone("console", zero, "", unix.AT_EMPTY_PATH)
}

// identities gives the guest its range of ids and returns its user namespace.
func (b *boot) identities(pid plan.Reg) plan.Reg {
	path := b.Bytes(append([]byte("/proc/"), make([]byte, plan.TextLen)...))
	b.Decimal(path+plan.At(len("/proc/")), pid)
	dir := b.Sys("open /proc", unix.SYS_OPENAT, cwd, path, plan.Imm(unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC), zero)
	ids := fmt.Sprintf("0 %d %d\n", b.parts.IDBase, idCount)
	for _, file := range []string{"uid_map", "gid_map"} {
		fd := b.OpenAt(file, dir, file, unix.O_WRONLY)
		b.Write(file, fd, ids)
		b.Close(fd)
	}
	userns := b.OpenAt("user namespace", dir, "ns/user", unix.O_RDONLY)
	b.Close(dir)
	return userns
}

// overlay makes the guest's root of the image and the volume, both id-mapped,
// so that ids on disk are those that the guest sees.
//
// Overlayfs works in the volume with its mounter's identity. Root has none in
// an id-mapped volume, so the mounter is the guest's root for as long as it
// takes, with root's capabilities.
func (b *boot) overlay(userns plan.Reg) {
	lower := b.Clone("the image", cwd, b.parts.Root.Lower, 0)
	b.Attributes("id-map the image", lower, unix.MOUNT_ATTR_IDMAP, userns)
	volume := b.Clone("the volume", cwd, b.parts.Root.Writable, 0)
	b.Attributes("id-map the volume", volume, unix.MOUNT_ATTR_IDMAP, userns)
	upper := b.OpenAt("the volume's upper", volume, "upper", unix.O_PATH|unix.O_DIRECTORY)
	work := b.OpenAt("the volume's work", volume, "work", unix.O_PATH|unix.O_DIRECTORY)
	// What would make the volume mean something only to this mount stays off,
	// so that it can be copied, moved and mounted anywhere.
	fs := b.Filesystem("overlay", launch.Opt("index", "off"), launch.Opt("metacopy", "off"), launch.Opt("redirect_dir", "off"), launch.Opt("uuid", "null"))
	for _, l := range []struct {
		key string
		fd  plan.Reg
	}{{"lowerdir+", lower}, {"upperdir", upper}, {"workdir", work}} {
		b.Do("overlay "+l.key, unix.SYS_FSCONFIG, fs, plan.Imm(unix.FSCONFIG_SET_FD), b.Text(l.key), zero, l.fd)
	}
	b.actAs(b.parts.IDBase)
	b.Set(b.root, b.Create("overlay", fs, unix.MOUNT_ATTR_NODEV))
	// The detached trees dissolve when closed, so not before now.
	b.Close(lower, volume, upper, work, userns)
}

// actAs makes the host's side own files as id, keeping every capability.
func (b *boot) actAs(id uint32) {
	b.Ignore(unix.SYS_SETFSGID, plan.Imm(id))
	b.Ignore(unix.SYS_SETFSUID, plan.Imm(id))
	header := b.Bytes([]byte{0x22, 0x05, 0x08, 0x20, 0, 0, 0, 0}) // _LINUX_CAPABILITY_VERSION_3, this thread
	sets := b.Space(24)                                           // twice effective, permitted, inheritable
	b.Do("capabilities", unix.SYS_CAPGET, header, sets)
	b.Store32(sets, b.Load(sets+4))
	b.Store32(sets+12, b.Load(sets+16))
	b.Do("capabilities", unix.SYS_CAPSET, header, sets)
}

// device is a character device of every guest, with the numbers of
// Documentation/admin-guide/devices.txt.
type device struct {
	name         string
	major, minor uint32
}

func devices() []device {
	return []device{{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0},
		{"fuse", 10, 229}, {"net/tun", 10, 200}}
}

// The directories of a guest's one memory file system, each attached where it
// belongs: a file system of its own for each would cost every memory group of
// the host (research: kernel memory grows with the number of superblocks).
const (
	devTree, runTree, shmTree, voidTree = "dev", "run", "shm", "void"
)

// furnish makes the memory file system with the devices. It must be the host
// that makes it: device nodes on a file system of a guest's own do not work.
// It runs as the guest's root (actAs), which therefore owns everything in it.
func (b *boot) furnish() {
	size := "50%"
	if b.g.Spec.Memory > 0 {
		size = strconv.FormatUint(max(b.g.Spec.Memory/2, 1<<20), 10)
	}
	id := strconv.FormatUint(uint64(b.parts.IDBase), 10)
	fs := b.Filesystem("tmpfs", launch.Opt("mode", "755"), launch.Opt("size", size), launch.Opt("uid", id), launch.Opt("gid", id))
	b.Set(b.devices, b.Create("tmpfs", fs, unix.MOUNT_ATTR_NOSUID))
	mkdir := func(path string, mode int) {
		b.Do("make /"+path, unix.SYS_MKDIRAT, b.devices, b.Text(path), plan.Imm(mode))
	}
	for _, d := range []string{devTree, runTree, devTree + "/pts", devTree + "/mqueue", devTree + "/shm", devTree + "/net"} {
		mkdir(d, 0o755)
	}
	mkdir(voidTree, 0o555)
	mkdir(shmTree, 0o1777)
	for _, d := range devices() {
		b.Do("device "+d.name, unix.SYS_MKNODAT, b.devices, b.Text(devTree+"/"+d.name), plan.Imm(unix.S_IFCHR|0o666),
			plan.Imm(int64(unix.Mkdev(d.major, d.minor))))
	}
	b.Do("device console", unix.SYS_MKNODAT, b.devices, b.Text(devTree+"/console"), plan.Imm(unix.S_IFREG|0o600), zero)
	for _, l := range [][2]string{{"pts/ptmx", "ptmx"}, {"/proc/self/fd", "fd"}, {"/proc/self/fd/0", "stdin"},
		{"/proc/self/fd/1", "stdout"}, {"/proc/self/fd/2", "stderr"}} {
		b.Do("link "+l[1], unix.SYS_SYMLINKAT, b.Text(l[0]), b.devices, b.Text(devTree+"/"+l[1]))
	}
	b.Ignore(unix.SYS_SETFSUID, zero)
	b.Ignore(unix.SYS_SETFSGID, zero)
}

// guest is the part that runs in the guest's namespaces, up to its first
// program.
func (b *boot) guest() error {
	b.stage.Await(mapped)
	// Somewhere to hang the root until it is the root: the image's own place,
	// opened while this process is the host's root, who alone may look there.
	place := b.Open(b.parts.Root.Lower, unix.O_PATH|unix.O_DIRECTORY)
	b.Do("become root", unix.SYS_SETRESGID, zero, zero, zero)
	b.Do("become root", unix.SYS_SETGROUPS, zero, zero)
	b.Do("become root", unix.SYS_SETRESUID, zero, zero, zero)
	b.Do("control group namespace", unix.SYS_UNSHARE, plan.Imm(unix.CLONE_NEWCGROUP))
	b.Do("new session", unix.SYS_SETSID)
	b.mounts(place)
	b.personal()
	b.Do("enter the root", unix.SYS_FCHDIR, b.root)
	b.Do("change the root", unix.SYS_PIVOT_ROOT, b.Text("."), b.Text("."))
	b.Do("let go of the host", unix.SYS_UMOUNT2, b.Text("."), plan.Imm(unix.MNT_DETACH))
	b.Do("enter /", unix.SYS_CHDIR, b.Text("/"))
	b.Do("host name", unix.SYS_SETHOSTNAME, b.Text(b.g.Name), plan.Imm(len(b.g.Name)))
	b.stage.Await(plugged)
	b.network()

	argv, init := engine.FirstProgram(b.g, b.parts)
	env := environment(b.g)
	if init {
		env["container_uuid"] = engine.MachineID(b.g)
	} else {
		// An init hands its terminal on; a program has none but this.
		b.Do("controlling terminal", unix.SYS_IOCTL, zero, plan.Imm(unix.TIOCSCTTY), zero)
	}
	b.tidy()
	b.confine(b.bpf, b.parts.Root.Limit != "")
	b.Execute("run "+argv[0]+" in the guest", argv, environ(env), strings.Split(env["PATH"], ":"))
	return nil
}

func (b *boot) network() {
	w := b.newWire()
	w.Up("lo")
	var has4, has6 bool
	for _, n := range b.parts.NICs {
		index := w.configure(n)
		if n.Gateway4.IsValid() && !has4 {
			w.gateway(index, n.Gateway4)
			has4 = true
		}
		if n.Gateway6.IsValid() && !has6 {
			w.gateway(index, n.Gateway6)
			has6 = true
		}
	}
}
