package btrfs

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Requests and structures of linux/btrfs.h. The sizes in the request numbers
// are checked by the kernel, and by a test here.
const (
	iocSnapCreate   = 0x50009401 // _IOW(0x94, 1, struct btrfs_ioctl_vol_args)
	iocSubvolCreate = 0x5000940e // _IOW(0x94, 14, struct btrfs_ioctl_vol_args)
	iocSnapDestroy  = 0x5000940f // _IOW(0x94, 15, struct btrfs_ioctl_vol_args)
	iocInoLookup    = 0xd0009412 // _IOWR(0x94, 18, struct btrfs_ioctl_ino_lookup_args)
	iocFsInfo       = 0x8400941f // _IOR(0x94, 31, struct btrfs_ioctl_fs_info_args)
	iocQuotaCtl     = 0xc0109428 // _IOWR(0x94, 40, struct btrfs_ioctl_quota_ctl_args)
	iocQgroupCreate = 0x4010942a // _IOW(0x94, 42, struct btrfs_ioctl_qgroup_create_args)
	iocQgroupLimit  = 0x8030942b // _IOR(0x94, 43, struct btrfs_ioctl_qgroup_limit_args)
	iocRescanWait   = 0x0000942e // _IO(0x94, 46)

	quotaEnable       = 1
	quotaEnableSimple = 4 // since Linux 6.7

	limitMaxRfer = 1 << 0 // BTRFS_QGROUP_LIMIT_MAX_RFER
	clearLimit   = ^uint64(0)

	firstFreeObjectid = 256 // the inode of every subvolume's root
)

type volArgs struct {
	Fd   int64
	Name [4088]byte
}

type inoLookupArgs struct {
	TreeID   uint64
	ObjectID uint64
	Name     [4080]byte
}

type fsInfoArgs struct {
	MaxID      uint64
	NumDevices uint64
	FSID       [16]byte
	_          [992]byte
}

type quotaCtlArgs struct {
	Cmd    uint64
	Status uint64
}

type qgroupCreateArgs struct {
	Create   uint64
	QgroupID uint64
}

type qgroupLimitArgs struct {
	QgroupID uint64
	Flags    uint64
	MaxRfer  uint64
	MaxExcl  uint64
	RsvRfer  uint64
	RsvExcl  uint64
}

// onDir opens the directory and calls one ioctl on it.
func onDir(dir, what string, request uint, arg unsafe.Pointer) error {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(fd)
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), uintptr(arg))
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return &os.PathError{Op: what, Path: dir, Err: errno}
		}
		return nil
	}
}

func namedArgs(name string) (*volArgs, error) {
	var a volArgs
	if len(name) >= len(a.Name) || bytes.IndexByte([]byte(name), '/') >= 0 {
		return nil, fmt.Errorf("%q is not a subvolume's name", name)
	}
	copy(a.Name[:], name)
	return &a, nil
}

// createSubvolume makes an empty subvolume; fs.ErrExist when the name is taken.
func createSubvolume(path string) error {
	a, err := namedArgs(filepath.Base(path))
	if err != nil {
		return err
	}
	return onDir(filepath.Dir(path), "btrfs create subvolume "+filepath.Base(path)+" in", iocSubvolCreate, unsafe.Pointer(a))
}

// snapshotSubvolume makes path a subvolume that shares all that from holds. It
// waits until what was written to from is part of it.
func snapshotSubvolume(from, path string) error {
	a, err := namedArgs(filepath.Base(path))
	if err != nil {
		return err
	}
	fd, err := unix.Open(from, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: from, Err: err}
	}
	defer unix.Close(fd)
	a.Fd = int64(fd)
	return onDir(filepath.Dir(path), "btrfs snapshot "+from+" in", iocSnapCreate, unsafe.Pointer(a))
}

// destroySubvolume unlinks a subvolume; the kernel frees its space behind.
func destroySubvolume(path string) error {
	a, err := namedArgs(filepath.Base(path))
	if err != nil {
		return err
	}
	return onDir(filepath.Dir(path), "btrfs destroy subvolume "+filepath.Base(path)+" in", iocSnapDestroy, unsafe.Pointer(a))
}

// isSubvolume reports whether path is the root of a subvolume.
func isSubvolume(path string) bool {
	var st unix.Stat_t
	return unix.Lstat(path, &st) == nil && st.Ino == firstFreeObjectid && st.Mode&unix.S_IFMT == unix.S_IFDIR
}

// subvolumeID returns the id of the subvolume that path lies in. It is also
// the id of its quota group, and is never used again in this file system.
func subvolumeID(path string) (uint64, error) {
	a := inoLookupArgs{ObjectID: firstFreeObjectid}
	err := onDir(path, "btrfs subvolume id", iocInoLookup, unsafe.Pointer(&a))
	return a.TreeID, err
}

// sysDir returns the folder in /sys/fs/btrfs that tells about the file system.
func sysDir(path string) (string, error) {
	var a fsInfoArgs
	if err := onDir(path, "btrfs info", iocFsInfo, unsafe.Pointer(&a)); err != nil {
		return "", err
	}
	h := hex.EncodeToString(a.FSID[:])
	return "/sys/fs/btrfs/" + h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:], nil
}

// enableQuota turns accounting on unless it is on: simple quotas where the
// kernel has them, since they cost a write nothing; else the full ones.
func enableQuota(path string) error {
	for _, cmd := range []uint64{quotaEnableSimple, quotaEnable} {
		a := quotaCtlArgs{Cmd: cmd}
		err := onDir(path, "btrfs enable quota", iocQuotaCtl, unsafe.Pointer(&a))
		if errors.Is(err, unix.EEXIST) || err == nil && cmd == quotaEnableSimple {
			return nil
		}
		if err == nil { // full quotas count what is there already: wait until that is done
			return onDir(path, "btrfs quota rescan", iocRescanWait, nil)
		}
		if cmd == quotaEnable || !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EOPNOTSUPP) {
			return err
		}
	}
	return nil
}

// limitSubvolume caps what the subvolume id may refer to; 0 lifts the cap.
func limitSubvolume(pool string, id, quota uint64) error {
	a := qgroupLimitArgs{QgroupID: id, Flags: limitMaxRfer, MaxRfer: quota}
	if quota == 0 {
		a.MaxRfer = clearLimit
	}
	return onDir(pool, "btrfs limit quota group", iocQgroupLimit, unsafe.Pointer(&a))
}

// dropQgroup removes the quota group of a subvolume that is gone. The kernel
// refuses with EBUSY while anything is still counted in it.
func dropQgroup(pool string, id uint64) error {
	a := qgroupCreateArgs{QgroupID: id}
	err := onDir(pool, "btrfs remove quota group", iocQgroupCreate, unsafe.Pointer(&a))
	if errors.Is(err, unix.ENOENT) {
		return nil // kernels since 6.11 do it themselves
	}
	return err
}

// onBtrfs reports whether path exists and lies on btrfs.
func onBtrfs(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.BTRFS_SUPER_MAGIC
}
