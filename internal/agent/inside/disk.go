package inside

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
)

// Requests of linux/fs.h and of ext4.
const (
	fitrim     = 0xC0185879
	ext4Resize = 0x40086610
)

// switchOn writes want to the files that hold have.
func switchOn(pattern, have, want string) error {
	found, _ := filepath.Glob(pattern)
	for _, f := range found {
		if strings.TrimSpace(read(f)) != have {
			continue
		}
		if err := os.WriteFile(f, []byte(want), 0); err != nil {
			return &errs.Error{Kind: errs.Unsupported, Msg: fmt.Sprintf("the guest's kernel does not switch on %s", filepath.Base(filepath.Dir(f))), Err: err}
		}
	}
	return nil
}

// grow makes the writable layer as large as the device it lies on.
func (a *Agent) grow() error {
	f, err := a.layer()
	if err != nil {
		return unsupported(err)
	}
	defer f.Close()
	var st unix.Stat_t
	var fs unix.Statfs_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil {
		return err
	}
	if fs.Type != unix.EXT4_SUPER_MAGIC || fs.Bsize <= 0 {
		return unsupported(fmt.Errorf("its file system is of another kind"))
	}
	sectors := number(strings.TrimSpace(read(fmt.Sprintf("/sys/dev/block/%d:%d/size", unix.Major(st.Dev), unix.Minor(st.Dev)))))
	blocks := sectors * sector / uint64(fs.Bsize)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), ext4Resize, uintptr(unsafe.Pointer(&blocks)))
	if errno != 0 && errno != unix.EPERM { // EPERM: another is at it
		return &errs.Error{Kind: errs.Internal, Msg: "the guest's disk cannot grow: " + errno.Error(), Err: errno}
	}
	return nil
}

func unsupported(err error) error {
	return &errs.Error{Kind: errs.Unsupported, Msg: "the guest's disk: " + err.Error(), Err: err}
}

// trim tells the disk what is not used.
func (a *Agent) trim() (uint64, error) {
	f, err := a.layer()
	if err != nil {
		return 0, unsupported(err)
	}
	defer f.Close()
	r := struct{ start, length, least uint64 }{length: 1<<64 - 1}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fitrim, uintptr(unsafe.Pointer(&r)))
	if errno != 0 {
		return 0, &errs.Error{Kind: errs.Unsupported, Msg: "the guest's disk takes no trims: " + errno.Error(), Err: errno}
	}
	return r.length, nil
}
