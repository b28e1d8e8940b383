package layer

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"lodge/internal/base/trees"
)

// pristine is the extended attribute of a volume that nothing was written to
// since it was copied. Its value is the host's boot: what a host that went down
// had on its disks is anybody's guess.
const pristine = "trusted.lodge.pristine"

// CopyVolume makes the empty layer in dir a volume that is a copy of the ext4
// file in the folder from, which holds nothing else, and marks it as pristine.
// boot is the id of the host's present boot.
func CopyVolume(ctx context.Context, from, dir, boot string) (err error) {
	file := filepath.Join(dir, File)
	tmp := file + fresh
	if err := remove(ctx, tmp); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove(context.WithoutCancel(ctx), tmp)) }()
	if err := os.Mkdir(tmp, 0o700); err != nil {
		return err
	}
	src, err := openFolder(unix.AT_FDCWD, from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := openFolder(unix.AT_FDCWD, tmp)
	if err != nil {
		return err
	}
	defer dst.Close()
	noCopyOnWrite(dst) // for what is made in it
	if err := trees.Copy(ctx, src, dst, trees.Options{}); err != nil {
		return err
	}
	if err := unix.Setxattr(filepath.Join(tmp, File), pristine, []byte(boot), 0); err != nil {
		return &os.PathError{Op: "setxattr", Path: file, Err: err}
	}
	return os.Rename(filepath.Join(tmp, File), file)
}

// Pristine reports whether nothing was written to the volume in dir since
// CopyVolume made it, in this boot of the host.
func Pristine(dir, boot string) bool {
	value := make([]byte, len(boot)+1)
	n, err := unix.Lgetxattr(filepath.Join(dir, File), pristine, value)
	return err == nil && string(value[:n]) == boot
}

// Touch says that the volume in dir is about to be written to. A layer that is
// no volume stays as it is.
func Touch(dir string) error {
	err := unix.Lremovexattr(filepath.Join(dir, File), pristine)
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}
