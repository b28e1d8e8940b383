package uml

import (
	"debug/elf"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"lodge/internal/agent"
	"lodge/internal/agent/initrd"
	"lodge/internal/base/errs"
	"lodge/internal/engine"
	"lodge/internal/keeper"
	"lodge/internal/launch"
	"lodge/internal/model/guest"
)

// logMax is how much of a guest's console is kept, in bytes, twice.
const logMax = 1 << 20

// defaultMemory is what a guest has that was given none: its kernel wants a
// figure.
const defaultMemory = 1 << 30

// Memory beside the guest's: that of the mailbox, and what else lies in the
// jail's memory file system.
const (
	mailboxSize = 8 << 20
	tmpMargin   = 64 << 20
)

// Where things are in the jail.
const (
	kernelAt    = "/kernel"
	baseAt      = "/base"
	volumeAt    = "/volume"
	loaderAt    = "/lib64/ld-linux-x86-64.so.2" // where programs of this machine name it
	librariesAt = "/lib"
	modulesAt   = "/modules"
	doorAt      = "/lib/lodge-door.so"
	tunAt       = "/dev/net/tun" // which the kernel opens for each network card
	placesAt    = "/disks"
)

// The disks of a guest. The kernel counts them, and gives each of them a letter.
const (
	baseDisk    = 0
	volumeDisk  = 1
	mailboxDisk = 2
	modulesDisk = 3
	firstDisk   = 4
	disksMax    = 16 // that the kernel's driver has
)

// Descriptors that the jail hands over, in this order.
const (
	lineFile = iota
	initrdFile
	mailboxFile
	spaceFile // two descriptors
	spareFile // the first of spares
	firstCard = spareFile + spares
)

// fixedFiles are the first of a jail's files, which are of the same kind for all
// guests: what comes behind them has the same descriptors.
func fixedFiles() []launch.File {
	return []launch.File{lineFile: launch.Pair{}, initrdFile: launch.Memory{}, mailboxFile: launch.Memory{}, spaceFile: launch.Pair{}}
}

// spares is how many network cards a guest can be given while it runs: each is
// an open door to the host's tap devices with no device behind it yet.
const spares = 4

// the agent's line in the guest.
const lineDevice = "/dev/ttyS1"

// diskDevice is what the guest calls the nth disk.
func diskDevice(n int) string { return "/dev/ubd" + string(rune('a'+n)) }

// Program says how g is run.
func (e *Engine) Program(g guest.Guest, parts engine.Parts) (keeper.Program, error) {
	if err := fit(g, parts); err != nil {
		return keeper.Program{}, err
	}
	if damaged(parts.Kernel.Path) {
		return keeper.Program{}, &errs.Error{Op: "uml.program", Kind: errs.Unsupported, Ref: g.Key().String(), Field: "kernel",
			Msg: "its kernel " + parts.Kernel.Name + " is damaged: it is no program", Hint: "build it again: lodge kernel build " + parts.Kernel.Name + " --refresh"}
	}
	j, err := e.jail(g, parts)
	if err != nil {
		return keeper.Program{}, err
	}
	return j.Program()
}

// damaged reports whether a kernel is there and certainly none.
func damaged(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false // whoever runs it says why
	}
	defer f.Close()
	magic := make([]byte, len(elf.ELFMAG))
	_, err = io.ReadFull(f, magic)
	return err != nil || string(magic) != elf.ELFMAG
}

// fit says why a guest cannot run here.
func fit(g guest.Guest, parts engine.Parts) error {
	bad := func(kind errs.Kind, field, msg, hint string) error {
		return &errs.Error{Op: "uml.program", Kind: kind, Ref: g.Key().String(), Field: field, Msg: msg, Hint: hint}
	}
	switch {
	case parts.Root.Own != nil:
		return bad(errs.Unsupported, "model", "a paravirtual guest cannot boot a disk of its own", "use --model vm")
	case parts.IDBase == 0:
		return bad(errs.Internal, "", "no user ids were given to the guest", "")
	case parts.Root.Base == "" || parts.Root.Volume == "":
		return bad(errs.Internal, "", "the guest has no disks", "")
	case parts.Kernel.Path == "" || parts.Kernel.Initrd == "":
		return bad(errs.NotFound, "kernel", "there is no kernel for the guest", "lodge kernel build um/debian-sid")
	case parts.Memory != "":
		return bad(errs.Unsupported, "", "a paravirtual guest has no memory image to go on from", "start it anew")
	case len(parts.Disks) > disksMax-firstDisk:
		return bad(errs.Invalid, "disks", fmt.Sprintf("%d further disks are too many", len(parts.Disks)), fmt.Sprintf("at most %d", disksMax-firstDisk))
	}
	for _, d := range parts.Disks {
		if err := fitDisk(g, d); err != nil {
			return err
		}
	}
	return nil
}

// fitDisk says why a guest cannot have a further disk.
func fitDisk(g guest.Guest, d engine.Disk) error {
	e := &errs.Error{Op: "uml.disk", Kind: errs.Invalid, Ref: g.Key().String(), Field: "disks"}
	switch {
	case d.Name == "" || strings.ContainsAny(d.Name, "/,: ") || strings.HasPrefix(d.Name, "."):
		e.Msg, e.Hint = fmt.Sprintf("%q cannot be the name of a disk", d.Name), "use letters, digits and dashes"
		return e
	case d.Format != "raw" && d.Format != "":
		e.Kind, e.Msg, e.Hint = errs.Unsupported, fmt.Sprintf("disk %s is of format %s", d.Name, d.Format), "paravirtual guests have raw disks only"
		return e
	}
	return nil
}

// jail is everything that the guest's kernel may touch.
func (e *Engine) jail(g guest.Guest, parts engine.Parts) (launch.Jail, error) {
	config, err := initrd.ConfigArchive(config(g, parts))
	if err != nil {
		return launch.Jail{}, err
	}
	filter, err := e.filter()
	if err != nil {
		return launch.Jail{}, err
	}
	memory := memoryOf(g.Spec)
	j := launch.Jail{
		Launch: e.o.Launch, Join: e.o.Tree.Join(parts.Cgroup), UID: parts.IDBase, CPUs: parts.CPUSet,
		Env: []string{"TMPDIR=/tmp", "HOME=/", "LD_PRELOAD=" + doorAt}, Proc: true, Tmp: memory + tmpMargin, Devices: []string{"null"}, Nulls: []string{tunAt},
		Binds: append(programOf(parts.Kernel), launch.Bind{Host: e.o.Door, Inside: doorAt},
			launch.Bind{Host: parts.Root.Base, Inside: baseAt}, launch.Bind{Host: parts.Root.Volume, Inside: volumeAt, Writable: true}),
		Files: []launch.File{
			lineFile: launch.Pair{},
			// What makes the guest this guest comes first: the kernel wants
			// archives to begin at a multiple of 4 bytes.
			initrdFile:  launch.Memory{Name: "initrd", Parts: []launch.Part{{Bytes: config}, {Path: parts.Kernel.Initrd}}, Seal: unix.F_SEAL_GROW},
			mailboxFile: launch.Memory{Name: "mailbox", Size: mailboxSize, Seal: unix.F_SEAL_GROW | unix.F_SEAL_SHRINK},
			spaceFile:   launch.Pair{},
		},
		Limits:  launch.Limits{Descriptors: 4096},
		Filter:  filter,
		Console: true, Log: engine.ConsoleLog(parts.Dir), LogMax: logMax,
	}
	if parts.Kernel.Modules != "" {
		j.Binds = append(j.Binds, launch.Bind{Host: parts.Kernel.Modules, Inside: modulesAt})
	}
	for range spares {
		j.Files = append(j.Files, launch.Tap{})
	}
	for _, n := range parts.NICs {
		j.Files = append(j.Files, launch.Tap{Device: n.Device, Master: n.Master, MTU: n.MTU, Header: true})
	}
	for _, d := range parts.Disks {
		j.Binds = append(j.Binds, launch.Bind{Host: d.Path, Inside: place(d.Name), Writable: writable(d)})
	}
	j.Env = append(j.Env, "LODGE_DOOR="+strconv.Itoa(j.Descriptor(spaceFile)))
	j.Argv = commandLine(g, parts, j, memory)
	return j, nil
}

// place is where a further disk is in the jail.
func place(name string) string { return path.Join(placesAt, name) }

func writable(d engine.Disk) bool { return !d.ReadOnly && !d.Optical }

// programOf is the kernel and what it needs to run: on hosts of any age, since
// it brings its own loader and libraries.
func programOf(k engine.Kernel) []launch.Bind {
	binds := []launch.Bind{{Host: k.Path, Inside: kernelAt}}
	for i, file := range k.Support {
		at := path.Join(librariesAt, filepath.Base(file))
		if i == 0 {
			at = loaderAt
		}
		binds = append(binds, launch.Bind{Host: file, Inside: at})
	}
	return binds
}

// memoryOf is how much memory the guest's kernel finds.
func memoryOf(s guest.Spec) uint64 {
	if s.Memory == 0 {
		return defaultMemory
	}
	return s.Memory
}

// loopsPerJiffy is the delay loop's speed on a fast processor of today, for a
// jiffy of 10 ms.
const loopsPerJiffy = "12000000"

// skipped is what Debian's kernel does for a second of each start and guests do
// without: it looks for the fastest way to reckon RAID 6, by trying each. The
// kernel of a guest that mounts a RAID 6 of its disks panics then; it reckons
// nothing wrong. Kernels of older versions call it by the second name.
const skipped = "raid6_init,raid6_select_algo"

// commandLine is the kernel's.
func commandLine(g guest.Guest, parts engine.Parts, j launch.Jail, memory uint64) []string {
	fd := func(file int) string { return strconv.Itoa(j.Descriptor(file)) }
	line := fd(lineFile)
	argv := []string{
		kernelAt, "umid=" + umid, "uml_dir=/tmp/", "mem=" + strconv.FormatUint(memory>>10, 10) + "k",
		"initrd=/proc/self/fd/" + fd(initrdFile),
		// "c" keeps the kernel from locking the image, which all its guests read.
		"ubd" + strconv.Itoa(baseDisk) + "rc=" + baseAt,
		"ubd" + strconv.Itoa(volumeDisk) + "=" + volumeAt,
		"ubd" + strconv.Itoa(mailboxDisk) + "c=/proc/self/fd/" + fd(mailboxFile),
		"con0=fd:0,fd:1", "con=null", "ssl=null", "ssl1=fd:" + line + ",fd:" + line, "console=tty0",
		"seccomp=auto", "panic=-1", "noreboot",
		// Notices are shown, among them which kernel this is, information is
		// not.
		"loglevel=6",
		// Delays are not measured, which takes a fifth of a second: nothing in
		// this kernel waits for a device.
		"lpj=" + loopsPerJiffy,
		"initcall_blacklist=" + skipped,
		// 512 devices of the terminals of old, which no program uses any more, and
		// which each take memory in the kernel and work in udev.
		"pty.legacy_count=0",
		// Many small caches in a small memory: what they have in reserve is less
		// in single pages.
		"slab_max_order=0",
		// What JFS keeps ready for as many changes as a server makes.
		"jfs.nTxBlock=128",
		// Twice a second the kernel would look whether it should make room for
		// huge pages, which it has none of.
		"sysctl.vm.compaction_proactiveness=0",
	}
	if parts.Kernel.Modules != "" {
		argv = append(argv, "ubd"+strconv.Itoa(modulesDisk)+"rc="+modulesAt)
	}
	for i, d := range parts.Disks {
		argv = append(argv, diskArgument(firstDisk+i, d))
	}
	for i, n := range parts.NICs {
		argv = append(argv, fmt.Sprintf("vec%d:%s", i, cardOptions(j.Descriptor(firstCard+i), n.MAC)))
	}
	if n := int(g.Spec.CPUs + 0.999); n > 1 && len(parts.CPUSet) != 1 {
		// A kernel without SMP passes over this.
		argv = append(argv, "ncpus="+strconv.Itoa(n))
	}
	return argv
}

// diskArgument is how the kernel is told of the nth disk, on its command line
// and while it runs.
func diskArgument(n int, d engine.Disk) string {
	flags := ""
	if !writable(d) {
		flags = "r"
	}
	return fmt.Sprintf("ubd%d%s=%s,,%s", n, flags, place(d.Name), d.Name)
}

// cardOptions is how the kernel is told of a network card whose tap device it
// has as a descriptor: it believes that it makes the device (see door/door.c),
// for only of those does it expect packets of 64 KiB without checksums, which
// spare it most of its work.
func cardOptions(fd int, mac string) string {
	return fmt.Sprintf("transport=tap,ifname=fd%d,gro=1,mac=%s", fd, strings.ToLower(mac))
}

// config is what the agent makes of the kernel and the image this guest.
func config(g guest.Guest, parts engine.Parts) agent.Config {
	c := engine.AgentConfig(g, parts)
	c.Base, c.Volume, c.Mailbox = diskDevice(baseDisk), diskDevice(volumeDisk), diskDevice(mailboxDisk)
	c.Channel, c.Credit = lineDevice, true
	if parts.Kernel.Modules != "" {
		c.Modules = diskDevice(modulesDisk)
	}
	return c
}
