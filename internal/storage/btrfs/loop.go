package btrfs

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"lodge/internal/base/loopdev"
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
// pages are not cached twice. 4096 is btrfs' sector size on every machine with
// 4 KiB pages, and direct I/O needs no smaller one from the host's disk then.
// The caller closes the returned file once the device is mounted.
func attachLoop(file string) (*os.File, error) {
	return loopdev.Attach(file, loopdev.Options{Direct: true, Sector: 4096})
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
