package oslevel

import (
	"golang.org/x/sys/unix"

	"lodge/internal/launch"
	"lodge/internal/launch/plan"
)

const (
	sealed   = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC
	readOnly = unix.MOUNT_ATTR_RDONLY
)

// mounts gives the guest its file systems. The kernel's own are made while the
// host's side still makes the root, which is attached at place.
//
// /sys is read-only, which also tells systemd that no device manager is wanted.
// The guest's root could undo this and the masks below, being master of its
// mount namespace: what protects the host is that no file there belongs to an
// id of the guest. They keep the guest's own users and programs from looking.
func (b *boot) mounts(place plan.Reg) {
	proc := b.Create("proc", b.Filesystem("proc"), sealed)
	sys := b.Create("sysfs", b.Filesystem("sysfs"), sealed|readOnly)
	group := b.Create("cgroup2", b.Filesystem("cgroup2"), sealed)
	pts := b.Create("devpts", b.Filesystem("devpts", launch.Opt("ptmxmode", "666"), launch.Opt("mode", "620"), launch.Opt("gid", "5")),
		unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC)
	queue := b.Create("mqueue", b.Filesystem("mqueue"), sealed)

	b.stage.Await(furnished)
	b.Attach("attach the root", b.root, place)
	b.hang(b.root, "proc", proc)
	b.hang(b.root, "sys", sys)
	b.Attach("/sys/fs/cgroup", group, b.Inside(sys, "fs/cgroup", unix.O_PATH|unix.O_DIRECTORY))

	// Only what is attached can be cloned, so the memory file system passes by.
	b.hang(b.root, "dev", b.devices)
	part := func(tree string, set int) plan.Reg {
		m := b.Clone(tree, b.devices, tree, 0)
		if set != 0 {
			b.Attributes(tree, m, set, nil)
		}
		return m
	}
	dev := part(devTree, unix.MOUNT_ATTR_NOEXEC)
	run := part(runTree, unix.MOUNT_ATTR_NODEV)
	shm := part(shmTree, unix.MOUNT_ATTR_NODEV)
	void := part(voidTree, sealed|readOnly)
	b.Do("enter the root", unix.SYS_FCHDIR, b.root)
	b.Do("detach devices", unix.SYS_UMOUNT2, b.Text("dev"), plan.Imm(unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW))
	b.hang(b.root, "dev", dev)
	b.hang(b.root, "run", run)
	b.hang(dev, "shm", shm)
	b.hang(dev, "pts", pts)
	b.hang(dev, "mqueue", queue)
	b.Attach("/dev/console", b.console, b.Inside(dev, "console", unix.O_PATH))
	b.masks(proc, sys, dev, void)
}

// hang attaches a mount to a directory of the guest, which is made if it is
// not there.
func (b *boot) hang(root plan.Reg, path string, mount plan.Reg) {
	b.Ignore(unix.SYS_MKDIRAT, root, b.Text(path), plan.Imm(0o755))
	place := b.Inside(root, path, unix.O_PATH|unix.O_DIRECTORY)
	b.Attach("/"+path, mount, place)
	b.Close(place)
}

// masks covers what tells of the host, and makes read-only what steers it.
func (b *boot) masks(proc, sys, dev, void plan.Reg) {
	for _, path := range []string{"kcore", "keys", "timer_list", "kallsyms", "latency_stats"} {
		b.cover(proc, path, dev, "null")
	}
	for _, path := range []string{"acpi", "scsi"} {
		b.cover(proc, path, void, ".")
	}
	b.cover(sys, "firmware", void, ".")
	for _, path := range []string{"sysrq-trigger", "irq", "bus", "fs", "sys/vm", "sys/fs", "sys/dev", "sys/debug"} {
		b.freeze(proc, path)
	}
}

// cover puts a copy of what is at (from, path) over a file of the kernel's, if
// there is one.
func (b *boot) cover(tree plan.Reg, path string, from plan.Reg, with string) {
	b.ifThere(tree, path, func(place plan.Reg) {
		m := b.Clone("mask "+path, from, with, 0)
		b.Attach("mask "+path, m, place)
		b.Close(m)
	})
}

// freeze makes a file or tree of the kernel's read-only, if there is one.
func (b *boot) freeze(tree plan.Reg, path string) {
	b.ifThere(tree, path, func(place plan.Reg) {
		m := b.Clone("protect "+path, place, "", unix.AT_EMPTY_PATH)
		b.Attributes("protect "+path, m, sealed|readOnly, nil)
		b.Attach("protect "+path, m, place)
		b.Close(m)
	})
}

func (b *boot) ifThere(tree plan.Reg, path string, then func(place plan.Reg)) {
	place := b.Try(unix.SYS_OPENAT2, tree, b.Text(path), b.How(unix.O_PATH, 0, launch.Stay), launch.HowSize)
	none := b.Mark()
	b.JumpIf(place, launch.No(unix.ENOENT), none)
	then(place)
	b.Close(place)
	b.Here(none)
}
