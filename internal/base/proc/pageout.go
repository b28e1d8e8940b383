package proc

import (
	"context"
	"errors"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Range is a part of a process's memory, from one address up to another.
type Range struct{ Start, End uint64 }

// pageOutAtOnce is how much one call pages out, so that one that is given up
// ends soon and the process is not kept long from mapping memory.
const pageOutAtOnce = 8 << 20

// PageOut has the kernel move memory of another process to swap space, from
// which it comes back when it is touched. Without swap space nothing happens.
// What is gone by now, or cannot be swapped, is passed over. It needs
// CAP_SYS_NICE and the right to trace the process.
func PageOut(ctx context.Context, pidfd int, r Range) error {
	for at := r.Start; at < r.End; {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		end := min(at+pageOutAtOnce, r.End)
		// Addresses of another process are no pointers of ours.
		vector := struct{ base, size uintptr }{uintptr(at), uintptr(end - at)}
		_, _, errno := unix.Syscall6(unix.SYS_PROCESS_MADVISE, uintptr(pidfd), uintptr(unsafe.Pointer(&vector)), 1, unix.MADV_PAGEOUT, 0, 0)
		if errno != 0 && !errors.Is(errno, unix.ENOMEM) && !errors.Is(errno, unix.EINVAL) {
			return errno
		}
		at = end
	}
	return nil
}
