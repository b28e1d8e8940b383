package layer

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
	"lodge/internal/base/loopdev"
)

// label is how an ext4 file of ours is called inside.
const label = "lodge-root"

// bytesPerInode is mkfs.ext4's own.
const bytesPerInode = 16 << 10

// smallest is the least size of a volume.
const smallest = 32 << 20

// mkfs makes an ext4 file system of size bytes, with an empty layer and room for
// so many files, in a new sparse file. Its features are those that kernels since 5.4 and
// e2fsck of the oldest distributions know; ea_inode is for extended attributes
// that are larger than a block, which trees may have.
func mkfs(ctx context.Context, path string, size, files uint64) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	noCopyOnWrite(f)
	if err := f.Truncate(int64(size)); err != nil {
		return err
	}
	skeleton, err := makeSkeleton(path)
	if err != nil {
		return err
	}
	defer os.RemoveAll(skeleton)
	journal := 16
	if size < 512<<20 {
		journal = 4
	}
	// The file reads as zeros where nothing was written: without being told, a
	// guest's kernel would write them for a minute of its first boot. Tables for
	// growth to thousands of times the size would be 4 MiB of every new guest.
	return tool(ctx, nil, "mkfs.ext4", "-q", "-F", "-L", label, "-b", "4096", "-m", "0", "-I", "256", "-J", "size="+strconv.Itoa(journal),
		"-N", strconv.FormatUint(max(size/bytesPerInode, files+files/8+1024), 10),
		"-O", "ea_inode,^orphan_file,^metadata_csum_seed",
		"-E", "assume_storage_prezeroed=1,nodiscard,root_owner=0:0"+growth(size), "-d", skeleton, path)
}

// growth reserves tables for a file system of size bytes that grows to 1 TiB, or
// eightfold. A larger one has what mkfs.ext4 reserves itself. Where one grows
// beyond, other blocks make way first.
func growth(size uint64) string {
	const block, most = 4096, 1 << 44 // the blocks of such tables have 32 bits
	if limit := max(8*size, 1<<40); limit < most {
		return ",resize=" + strconv.FormatUint(limit/block, 10)
	}
	return ""
}

// makeSkeleton makes the folder that an empty file system is filled from.
func makeSkeleton(path string) (string, error) {
	skeleton := path[:len(path)-len(fresh)] + ".skeleton" + fresh
	if err := os.Mkdir(skeleton, 0o700); err != nil {
		return "", err
	}
	err := makeEmpty(skeleton + "/upper")
	if err == nil {
		err = os.Mkdir(skeleton+"/work", 0o700)
	}
	return skeleton, err
}

// noCopyOnWrite keeps btrfs from writing a guest's every block to a new place,
// which would cut its disk into millions of pieces. Other file systems know no
// such thing, and need none.
func noCopyOnWrite(f *os.File) {
	flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err == nil {
		_ = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, int(flags|fsNoCow))
	}
}

const fsNoCow = 0x00800000 // FS_NOCOW_FL of linux/fs.h

// tool runs a program of e2fsprogs. fine are the exit codes beside 0 that mean
// success.
func tool(ctx context.Context, fine []int, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if errors.Is(err, exec.ErrNotFound) {
		return &errs.Error{Op: "layer", Kind: errs.Unsupported, Msg: name + " is not installed", Hint: "apt-get install e2fsprogs"}
	}
	exit, ended := errors.AsType[*exec.ExitError](err)
	if err == nil || ctx.Err() != nil {
		return errors.Join(err, ctx.Err())
	}
	if ended {
		for _, code := range fine {
			if exit.ExitCode() == code {
				return nil
			}
		}
	}
	text := strings.TrimSpace(out.String())
	if strings.Contains(text, unix.ENOSPC.Error()) {
		return &os.PathError{Op: name, Path: args[len(args)-1], Err: unix.ENOSPC}
	}
	return fmt.Errorf("%s: %s: %w", name, lastWords(text), err)
}

func lastWords(text string) string {
	if len(text) > 500 {
		return "..." + text[len(text)-500:]
	}
	return text
}

// check replays the journal of a guest that ended without writing it back,
// mends what can be mended, and refuses what is broken: the host's kernel is not
// to be asked about a file system that somebody made up.
func check(ctx context.Context, path string) error {
	err := tool(ctx, []int{1}, "e2fsck", "-f", "-p", path)
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode()&4 != 0 {
		return &errs.Error{Op: "layer", Kind: errs.Unsupported, Msg: "its file system is damaged, and mending it might lose files",
			Hint: "start it as it is and run e2fsck in it, or go back to a snapshot", Err: err}
	}
	return err
}

// mounted is an ext4 file that is mounted where nobody else can reach it.
type mounted struct {
	dev  *os.File // of the loop
	root *os.File
}

// mount mounts the file system in path, without attaching it anywhere: it is
// gone with the last descriptor, even if the daemon is killed.
func mount(path string, readOnly bool) (*mounted, error) {
	dev, err := loopdev.Attach(path, loopdev.Options{ReadOnly: readOnly})
	if err != nil {
		return nil, err
	}
	root, err := mountDevice(dev.Name(), readOnly)
	if err != nil {
		dev.Close()
		return nil, err
	}
	return &mounted{dev, root}, nil
}

func mountDevice(dev string, readOnly bool) (*os.File, error) {
	fs, err := unix.Fsopen("ext4", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("the kernel has no ext4: %w", err)
	}
	defer unix.Close(fs)
	options := []string{"noinit_itable"}
	attrs := unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC | unix.MOUNT_ATTR_NOATIME
	if readOnly {
		options, attrs = []string{"ro"}, attrs|unix.MOUNT_ATTR_RDONLY
	}
	err = unix.FsconfigSetString(fs, "source", dev)
	for _, o := range options {
		if err == nil {
			err = unix.FsconfigSetFlag(fs, o)
		}
	}
	if err == nil {
		err = unix.FsconfigCreate(fs)
	}
	if err != nil {
		return nil, fmt.Errorf("mounting ext4 of %s: %w", dev, err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attrs)
	if err != nil {
		return nil, fmt.Errorf("mounting ext4 of %s: %w", dev, err)
	}
	defer unix.Close(fd)
	return openFolder(fd, ".")
}

// unmountTime is how long the kernel may take to write a file system back.
const unmountTime = 2 * time.Minute

// close unmounts, and returns when all is in the file.
func (m *mounted) close(ctx context.Context) error {
	defer m.dev.Close()
	if err := m.root.Close(); err != nil {
		return err
	}
	// The kernel lets nobody have the device alone before it has let go of it.
	for deadline := time.Now().Add(unmountTime); ; {
		fd, err := unix.Open(m.dev.Name(), unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
		if err == nil {
			return unix.Close(fd)
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return &os.PathError{Op: "unmount", Path: m.dev.Name(), Err: err}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// super is what the superblock of an ext4 file system says of it.
type super struct {
	blocks, free       uint64
	inodes, freeInodes uint32
	blockSize          uint64
}

// Where the superblock is, and what is where in it (Documentation/filesystems/
// ext4/super.rst of Linux).
const (
	superAt     = 1024
	superLength = 1024
	superMagic  = 0xef53
)

func readSuper(path string) (super, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return super{}, err
	}
	defer f.Close()
	b := make([]byte, superLength)
	if _, err := f.ReadAt(b, superAt); err != nil {
		return super{}, fmt.Errorf("%s: %w", path, err)
	}
	s, err := parseSuper(b)
	if err != nil {
		return super{}, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

// parseSuper reads a superblock that a guest may have written.
func parseSuper(b []byte) (super, error) {
	if len(b) < superLength || binary.LittleEndian.Uint16(b[0x38:]) != superMagic {
		return super{}, errors.New("it is not ext4")
	}
	n := func(at int) uint64 { return uint64(binary.LittleEndian.Uint32(b[at:])) }
	s := super{inodes: uint32(n(0x0)), freeInodes: uint32(n(0x10)), blocks: n(0x4), free: n(0xc)}
	if log := n(0x18); log <= 6 {
		s.blockSize = 1024 << log
	} else {
		return super{}, errors.New("its blocks have no size that ext4 knows")
	}
	if n(0x60)&0x80 != 0 { // 64bit
		s.blocks |= n(0x150) << 32
		s.free |= n(0x158) << 32
	}
	const most = 1 << 60 // bytes; more than ext4 can have
	if s.blocks > most/s.blockSize || s.free > s.blocks || s.freeInodes > s.inodes {
		return super{}, errors.New("its superblock contradicts itself")
	}
	return s, nil
}

func (s super) size() uint64       { return s.blocks * s.blockSize }
func (s super) usedBytes() uint64  { return (s.blocks - s.free) * s.blockSize }
func (s super) usedInodes() uint64 { return uint64(s.inodes - s.freeInodes) }
