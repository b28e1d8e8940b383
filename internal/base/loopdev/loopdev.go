// Package loopdev lends files to the kernel as block devices.
package loopdev

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Options of a device.
type Options struct {
	ReadOnly bool
	Direct   bool   // the file's pages are not cached a second time
	Sector   uint32 // bytes; 0: as the kernel has it, 512
}

// Attach attaches file to a free device that is freed with its last user: the
// caller closes the returned file once the device is mounted.
func Attach(file string, o Options) (*os.File, error) {
	ctl, err := unix.Open("/dev/loop-control", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: "/dev/loop-control", Err: err}
	}
	defer unix.Close(ctl)
	mode, flags := os.O_RDWR, uint32(unix.LO_FLAGS_AUTOCLEAR)
	if o.ReadOnly {
		mode, flags = os.O_RDONLY, flags|unix.LO_FLAGS_READ_ONLY
	}
	if o.Direct {
		flags |= unix.LO_FLAGS_DIRECT_IO
	}
	back, err := os.OpenFile(file, mode|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer back.Close()
	for range 64 { // another program may take the free device first
		n, err := unix.IoctlRetInt(ctl, unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("no free loop device: %w", err)
		}
		dev, err := os.OpenFile("/dev/loop"+strconv.Itoa(n), mode, 0)
		if err != nil {
			return nil, err
		}
		cfg := unix.LoopConfig{Fd: uint32(back.Fd()), Size: o.Sector, Info: unix.LoopInfo64{Flags: flags}}
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
