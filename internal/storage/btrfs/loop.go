package btrfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// findLoop returns the loop device that file is attached to, or "". It
// compares inodes, so a renamed file is found and a removed one is not.
func findLoop(file string) (string, error) {
	var want unix.Stat_t
	if err := unix.Stat(file, &want); err != nil {
		return "", &os.PathError{Op: "stat", Path: file, Err: err}
	}
	attached, err := filepath.Glob("/sys/block/loop*/loop")
	if err != nil {
		return "", err
	}
	for _, sys := range attached {
		dev := "/dev/" + filepath.Base(filepath.Dir(sys))
		fd, err := unix.Open(dev, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			continue // it was detached meanwhile
		}
		info, err := unix.IoctlLoopGetStatus64(fd)
		unix.Close(fd)
		if err == nil && info.Inode == want.Ino && info.Device == want.Dev {
			return dev, nil
		}
	}
	return "", nil
}

// attachLoop attaches file to a free loop device, with direct I/O so that its
// pages are not cached twice, and with auto-clear so that the last close (that
// of the mount) frees it. The caller closes the returned file once the device
// is mounted.
func attachLoop(file string) (*os.File, error) {
	ctl, err := unix.Open("/dev/loop-control", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: "/dev/loop-control", Err: err}
	}
	defer unix.Close(ctl)
	back, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer back.Close()
	for range 64 { // another program may take the free device first
		n, err := unix.IoctlRetInt(ctl, unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("no free loop device: %w", err)
		}
		dev, err := os.OpenFile("/dev/loop"+strconv.Itoa(n), os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		// 4096 is btrfs' sector size on every machine with 4 KiB pages, and
		// direct I/O needs no smaller one from the host's disk then.
		cfg := unix.LoopConfig{Fd: uint32(back.Fd()), Size: 4096,
			Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO}}
		err = unix.IoctlLoopConfigure(int(dev.Fd()), &cfg)
		if err == nil {
			return dev, nil
		}
		dev.Close()
		if !errors.Is(err, unix.EBUSY) {
			return nil, &os.PathError{Op: "attach to " + dev.Name(), Path: file, Err: err}
		}
	}
	return nil, fmt.Errorf("other programs took every free loop device: %w", unix.EBUSY)
}

// mountedAt returns what is mounted at dir according to the text of
// /proc/self/mountinfo: its file system type and source. The last line counts,
// it is the topmost mount.
func mountedAt(mountinfo, dir string) (fstype, source string) {
	for line := range strings.Lines(mountinfo) {
		before, after, ok := strings.Cut(line, " - ")
		fields, rest := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 5 || len(rest) < 2 || unescapeMount(fields[4]) != dir {
			continue
		}
		fstype, source = rest[0], unescapeMount(rest[1])
	}
	return fstype, source
}

// unescapeMount turns the \040 of mountinfo back into the byte it stands for.
func unescapeMount(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
