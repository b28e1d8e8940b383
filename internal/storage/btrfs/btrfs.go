// Package btrfs is the storage driver whose quotas hold: a volume is a
// subvolume, limited by a simple quota where the kernel has them (Linux 6.7)
// and by a full quota group elsewhere.
package btrfs

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
	"lodge/internal/base/fsx"
	"lodge/internal/model/pool"
	"lodge/internal/storage"
)

// smallest is the least size of a file for a pool; mkfs.btrfs itself refuses
// less than 109 MiB, and below this btrfs is full before it is used.
const smallest = 256 << 20

// largest is how much a pool's file may grow to unless its spec says more.
const largest = 100 << 30

// Driver opens pools on btrfs.
type Driver struct {
	log *slog.Logger
}

// New returns the driver.
func New(log *slog.Logger) *Driver { return &Driver{log: log} }

// Info implements storage.Driver. It looks anew each time, since a missing
// tool may have been installed meanwhile.
func (d *Driver) Info() storage.Info {
	info := storage.Info{Name: "btrfs", Quota: true}
	known, err := os.ReadFile("/proc/filesystems")
	if err == nil && !strings.Contains(string(known), "\tbtrfs\n") {
		// It may be a module that is not loaded yet.
		if err := exec.Command("modprobe", "btrfs").Run(); err != nil {
			info.Missing, info.Hint = "the kernel has no btrfs", "use a pool of driver dir, or a kernel with CONFIG_BTRFS_FS"
			return info
		}
	}
	if _, err := exec.LookPath("mkfs.btrfs"); err != nil {
		info.Missing, info.Hint = "mkfs.btrfs is not installed", "apt-get install btrfs-progs"
		return info
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		if err := exec.Command("modprobe", "loop").Run(); err != nil {
			info.Missing, info.Hint = "the kernel has no loop devices", "give the pool a block device or a directory on btrfs as source, or a kernel with CONFIG_BLK_DEV_LOOP"
		}
	}
	return info
}

// place is where a pool lies, as decided from its spec and what is there.
type place uint8

const (
	onFile      place = iota // a file in the pool's own directory, through a loop device
	onDirectory              // a subvolume in a directory that is on btrfs already
	onDevice                 // a block device
)

// decide picks the place of a pool. mode is the file mode of the source, and
// only looked at when there is one.
func decide(spec pool.Spec, dirOnBtrfs bool, mode os.FileMode) (place, error) {
	switch {
	case spec.Source == "" && dirOnBtrfs && spec.Size == 0:
		return onDirectory, nil
	case spec.Source == "" && spec.Size != 0 && spec.Size < smallest:
		return 0, errs.Bad("size", "is too small for btrfs", "256MiB or more")
	case spec.Source == "":
		return onFile, nil
	case !filepath.IsAbs(spec.Source):
		return 0, errs.Bad("source", "is not an absolute path", "write it as /srv/guests or /dev/vdb")
	case spec.Size != 0:
		return 0, errs.Bad("size", "goes only with a file that Lodge makes itself", "leave out size or source")
	case mode.IsDir():
		return onDirectory, nil
	case mode&os.ModeDevice != 0 && mode&os.ModeCharDevice == 0:
		return onDevice, nil
	default:
		return 0, errs.Bad("source", "is neither a directory nor a block device", "name one of these, or leave it out")
	}
}

// Open implements storage.Driver. After a crash of the daemon it finds the
// mount or the loop device that is there.
func (d *Driver) Open(ctx context.Context, name string, spec pool.Spec, dir string) (storage.Pool, error) {
	ref := string(pool.Kind) + "/" + name
	if !storage.SafeName(name) {
		return nil, errs.Bad("name", "is not a pool's name", "letters, digits, '-', '_' and '.'")
	}
	var mode os.FileMode
	if spec.Source != "" {
		st, err := os.Stat(spec.Source)
		if err != nil {
			return nil, &errs.Error{Op: "pool.open", Kind: errs.Invalid, Ref: ref, Field: "source",
				Msg: spec.Source + " does not exist", Hint: "make it first, or leave it out", Err: err}
		}
		mode = st.Mode()
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, storage.Failed("pool.open", ref, err)
	}
	where, err := decide(spec, onBtrfs(dir), mode)
	if err != nil {
		return nil, err
	}
	if info := d.Info(); info.Missing != "" && where != onDirectory {
		return nil, &errs.Error{Op: "pool.open", Kind: errs.Unsupported, Ref: ref, Msg: info.Missing, Hint: info.Hint}
	}
	p := &btrfsPool{name: name, ref: ref, dir: dir, where: where, source: spec.Source, log: d.log.With("pool", name)}
	unlock, err := lockDir(dir)
	if err != nil {
		return nil, storage.Failed("pool.open", ref, err)
	}
	defer unlock()
	if err := p.ready(ctx, spec); err != nil {
		return nil, storage.Failed("pool.open", ref, err)
	}
	return p, nil
}

// ready brings the pool to where volumes can be made, from whatever is there.
func (p *btrfsPool) ready(ctx context.Context, spec pool.Spec) error {
	var err error
	switch p.where {
	case onFile:
		p.root = filepath.Join(p.dir, "mnt")
		err = p.mountFile(ctx, spec.Size)
	case onDevice:
		p.root = filepath.Join(p.dir, "mnt")
		err = p.mountDevice(ctx, spec.Source)
	case onDirectory:
		p.root, err = p.adoptDirectory(spec.Source)
	}
	if err != nil {
		return err
	}
	if err := os.Chmod(p.root, 0o700); err != nil { // a set-user-id file of a guest must be out of reach
		return err
	}
	for _, sub := range []string{"volumes", "trash", "snapshots", "incoming"} {
		if err := os.MkdirAll(filepath.Join(p.root, sub), 0o700); err != nil {
			return err
		}
	}
	if err := p.incoming().Sweep(p.discard); err != nil {
		return err
	}
	if err := enableQuota(p.root); err != nil {
		return err
	}
	if p.sys, err = sysDir(p.root); err != nil {
		return err
	}
	p.quota = quotaWords(p.sys)
	p.startCleaner()
	return nil
}

// simple is what is said where the kernel counts what each subvolume wrote.
const simple = "enforced (squota)"

// quotaWords tells how the kernel keeps quotas on the file system, from what
// it says in /sys: full groups are all that kernels without a mode file know.
func quotaWords(sys string) string {
	mode, err := os.ReadFile(filepath.Join(sys, "qgroups", "mode"))
	if err == nil && strings.TrimSpace(string(mode)) == "squota" {
		return simple
	}
	return "enforced (qgroup)"
}

// adoptDirectory makes the pool a subvolume of its own in the directory.
func (p *btrfsPool) adoptDirectory(source string) (string, error) {
	root := filepath.Join(source, "lodge-"+p.name)
	if source == "" {
		source, root = p.dir, filepath.Join(p.dir, "tree")
	}
	if !onBtrfs(source) {
		return "", &errs.Error{Op: "pool.open", Kind: errs.Invalid, Ref: p.ref, Field: "source",
			Msg: source + " is not on btrfs", Hint: "use driver dir for it, or leave out the source: Lodge makes a file system of its own then"}
	}
	err := createSubvolume(root)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	if !isSubvolume(root) {
		return "", &errs.Error{Op: "pool.open", Kind: errs.Conflict, Ref: p.ref, Field: "source",
			Msg: root + " is there and is not a subvolume", Hint: "move it away"}
	}
	return root, nil
}

// mountFile makes the pool's file and file system unless they are there, and
// mounts it unless it is mounted.
func (p *btrfsPool) mountFile(ctx context.Context, size uint64) error {
	file := p.file()
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		if err := p.makeFile(ctx, file, size); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	dev, err := findLoop(file)
	if err != nil {
		return err
	}
	if ok, err := p.mounted(dev); ok || err != nil {
		return err
	}
	if dev != "" {
		return p.mount(dev)
	}
	loop, err := attachLoop(file)
	if err != nil {
		return err
	}
	defer loop.Close() // from here the mount alone keeps the device
	return p.mount(loop.Name())
}

// makeFile writes a new file system under another name and renames it when it
// is whole, so that a crash leaves none or a good one.
func (p *btrfsPool) makeFile(ctx context.Context, file string, size uint64) error {
	space, err := storage.SpaceOf(p.dir)
	if err != nil {
		return err
	}
	if size == 0 {
		size = fileSize(space.Free)
	}
	if size < smallest {
		return &errs.Error{Op: "pool.open", Kind: errs.NoSpace, Ref: p.ref,
			Msg: "there is not enough free space for a pool in " + p.dir, Hint: "make 512MiB free, or name another place as source"}
	}
	tmp := file + ".new"
	f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer os.Remove(tmp)
	defer f.Close()
	if err := f.Truncate(int64(size)); err != nil {
		return err
	}
	if err := p.mkfs(ctx, tmp); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(tmp, file); err != nil {
		return err
	}
	return fsx.SyncDir(p.dir)
}

// fileSize is the default size of a pool's file: half of what is free, since
// the disk has other uses, and no more than 100 GiB; whole 4 KiB blocks.
func fileSize(free uint64) uint64 { return min(free/2, largest) &^ 4095 }

// mountDevice formats the device if it is blank, and mounts it.
func (p *btrfsPool) mountDevice(ctx context.Context, dev string) error {
	real, err := filepath.EvalSymlinks(dev)
	if err != nil {
		return err
	}
	if ok, err := p.mounted(real); ok || err != nil {
		return err
	}
	label, isBtrfs, err := btrfsLabel(real)
	if err != nil {
		return err
	}
	if isBtrfs && label != p.label() {
		return p.deviceTaken(real, "a btrfs file system that is not this pool's", nil)
	}
	if !isBtrfs {
		if err := p.mkfs(ctx, real); err != nil {
			return p.deviceTaken(real, "something, or cannot be formatted", err)
		}
	}
	return p.mount(real)
}

func (p *btrfsPool) deviceTaken(dev, what string, err error) error {
	return &errs.Error{Op: "pool.open", Kind: errs.Conflict, Ref: p.ref, Field: "source", Err: err,
		Msg:  dev + " holds " + what,
		Hint: "if nothing on it is needed, blank it first: wipefs -a " + dev}
}

// mkfs formats target. Without -f mkfs.btrfs refuses what has a signature of
// any file system or partition table, or is mounted.
func (p *btrfsPool) mkfs(ctx context.Context, target string) error {
	out, err := exec.CommandContext(ctx, "mkfs.btrfs", "-q", "-K", "-L", p.label(), target).CombinedOutput()
	if err == nil {
		return nil
	}
	text := strings.TrimSpace(string(out))
	if strings.Contains(text, unix.ENOSPC.Error()) {
		return storage.Failed("pool.open", p.ref, unix.ENOSPC)
	}
	return &errs.Error{Op: "mkfs.btrfs", Kind: errs.Internal, Ref: p.ref, Msg: "making the file system failed: " + text, Err: err}
}

// label is how a device of ours is known again; btrfs allows 255 bytes.
func (p *btrfsPool) label() string { return "lodge-" + p.name }

func (p *btrfsPool) file() string { return filepath.Join(p.dir, "pool.btrfs") }
