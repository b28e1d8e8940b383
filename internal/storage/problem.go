package storage

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sort"
	"syscall"

	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
)

// Failed gives err the kind that a person and a reconciler need: a full disk
// or quota is NoSpace with a hint, a missing path NotFound, anything else
// Internal. A nil err stays nil, an error of the house stays as it is.
func Failed(op, ref string, err error) error {
	if err == nil {
		return nil
	}
	if _, ours := errors.AsType[*errs.Error](err); ours {
		return err
	}
	e := &errs.Error{Op: op, Ref: ref, Err: err}
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		e.Kind, e.Msg = errs.NoSpace, "the disk under the pool is full"
		e.Hint = "remove guests or images that are not needed (lodge rm, lodge image rm), or make the disk larger; work goes on by itself then"
	case errors.Is(err, fs.ErrNotExist):
		e.Kind, e.Msg = errs.NotFound, "does not exist"
	default:
		e.Msg = "the pool could not do it"
	}
	return e
}

// CheckVolume refuses a volume name that is not a safe single path element.
func CheckVolume(volume string) error {
	if SafeName(volume) {
		return nil
	}
	return errs.Bad("volume", "is not a volume's name", "a guest's id: up to 64 letters, digits, '-', '_' and '.'")
}

// CheckSnapshot refuses a name of a volume, or of a snapshot of it, that is not a
// safe single path element.
func CheckSnapshot(volume, name string) error {
	if err := CheckVolume(volume); err != nil {
		return err
	}
	if SafeName(name) {
		return nil
	}
	return errs.Bad("snapshot", "is not a snapshot's name on a pool", "up to 64 letters, digits, '-', '_' and '.'")
}

// List returns the volumes that lie as folders in dir, sorted.
func List(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() && SafeName(e.Name()) {
			names = append(names, e.Name())
		}
	}
	sort.Strings(names)
	return names, nil
}

// Furnish makes what every volume has inside path: "upper" and "work".
func Furnish(path string) error {
	for _, d := range []struct {
		name string
		mode os.FileMode
	}{{"upper", 0o755}, {"work", 0o700}} {
		switch err := os.Mkdir(path+"/"+d.name, d.mode); {
		case errors.Is(err, fs.ErrExist):
		case err != nil:
			return err
		default:
			// The umask of the daemon must not decide what a guest's root looks like.
			if err := os.Chmod(path+"/"+d.name, d.mode); err != nil {
				return err
			}
		}
	}
	return nil
}

// StillUsed says that a pool cannot go while volumes are left on it.
func StillUsed(ref string, volumes []string) error {
	return &errs.Error{Op: "pool.destroy", Kind: errs.Conflict, Ref: ref,
		Msg:  fmt.Sprintf("%d volumes are left on it, %s among them", len(volumes), volumes[0]),
		Hint: "remove the guests on it first: lodge rm"}
}

// SpaceOf returns the size of the file system that path lies on.
func SpaceOf(path string) (Space, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return Space{}, &fs.PathError{Op: "statfs", Path: path, Err: err}
	}
	unit := uint64(st.Bsize)
	return Space{Total: st.Blocks * unit, Used: (st.Blocks - st.Bfree) * unit, Free: st.Bavail * unit}, nil
}
