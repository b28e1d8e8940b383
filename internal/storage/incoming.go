package storage

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"lodge/internal/base/ids"
)

// Incoming is a folder of a pool where copies are made under names of no
// meaning, to be renamed to where they belong once they are whole.
type Incoming string

// New returns a name for one more copy, and its lock, which keeps others from
// sweeping the copy away until it is closed.
func (in Incoming) New() (path string, lock *os.File, err error) {
	name := ids.New()
	lock, err = os.OpenFile(filepath.Join(string(in), name+".lock"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		lock.Close()
		return "", nil, err
	}
	return filepath.Join(string(in), name), lock, nil
}

// Done lets a copy go that was renamed or given up.
func (in Incoming) Done(path string, lock *os.File, discard func(path string) error) error {
	defer lock.Close()
	var err error
	if _, serr := os.Lstat(path); serr == nil {
		err = discard(path)
	}
	if err != nil {
		return err // the sweeper tries it again
	}
	return os.Remove(lock.Name())
}

// Sweep discards the copies that nobody makes any more.
func (in Incoming) Sweep(discard func(path string) error) error {
	locks, err := filepath.Glob(filepath.Join(string(in), "*.lock"))
	if err != nil {
		return err
	}
	var failed []error
	for _, name := range locks {
		lock, err := os.OpenFile(name, os.O_RDWR, 0)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		}
		switch {
		case errors.Is(err, unix.EWOULDBLOCK):
			lock.Close()
		case err != nil:
			failed = append(failed, err)
		default:
			failed = append(failed, in.Done(name[:len(name)-len(".lock")], lock, discard))
		}
	}
	return errors.Join(failed...)
}
