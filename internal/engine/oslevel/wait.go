package oslevel

import (
	"errors"
	"unsafe"

	"golang.org/x/sys/unix"
)

// childInfo is the part of siginfo_t that waitid(2) fills, as on all 64-bit
// machines.
type childInfo struct {
	signo, errno, how int32
	_                 int32
	pid, uid, status  int32
	_                 [100]byte
}

// How a child ended, of siginfo's CLD_ codes.
const (
	cldExited = 1
	signalled = 128 // what shells add to the number of the signal
)

// code is the exit status, or 128 plus the signal.
func (c childInfo) code() int {
	if c.how == cldExited {
		return int(c.status)
	}
	return signalled + int(c.status)
}

// waitid reaps the child that pidfd refers to if it has ended; else info.pid
// stays 0. x/sys' Siginfo does not show the fields.
func waitid(pidfd int, info *childInfo) error {
	for {
		_, _, e := unix.Syscall6(unix.SYS_WAITID, unix.P_PIDFD, uintptr(pidfd), uintptr(unsafe.Pointer(info)),
			unix.WEXITED|unix.WNOHANG|unix.WALL, 0, 0)
		if errors.Is(e, unix.EINTR) {
			continue
		}
		if e != 0 && !errors.Is(e, unix.EAGAIN) { // EAGAIN is how a descriptor that does not block says "not yet"
			return e
		}
		return nil
	}
}
