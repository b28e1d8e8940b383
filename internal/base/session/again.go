package session

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// Again is a descriptor of our own for a file that the caller of Exec closes;
// nil stays nil. Closing it ends a read that waits on a pipe.
func Again(f *os.File) (*os.File, error) {
	if f == nil {
		return nil, nil
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var fd int
	var inner error
	err = raw.Control(func(n uintptr) {
		if fd, inner = unix.FcntlInt(n, unix.F_DUPFD_CLOEXEC, 0); inner != nil {
			return
		}
		var st unix.Stat_t
		if unix.Fstat(fd, &st) == nil && (st.Mode&unix.S_IFMT == unix.S_IFIFO || st.Mode&unix.S_IFMT == unix.S_IFSOCK) {
			_ = unix.SetNonblock(fd, true) // so that it can be closed while somebody waits
		}
	})
	if err = errors.Join(err, inner); err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}
