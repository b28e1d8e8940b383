package layer

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
)

// identities are files that make a guest itself, and that it makes anew. systemd
// makes a machine-id at the next boot, and dbus' is that or a link to it.
var identities = []string{"etc/machine-id", "var/lib/dbus/machine-id", "var/lib/systemd/random-seed"}

// Anonymize removes from a layer what tells its guest from others, so that a
// copy of it becomes a guest of its own, and gives it keys of its own where a
// secure shell's server has some: few systems make those anew. Nobody may use
// the layer meanwhile. It may be called again after it was cut off.
func Anonymize(ctx context.Context, dir string) error {
	form, err := Sweep(ctx, dir)
	if err != nil {
		return err
	}
	if form == Tree {
		upper, err := openFolder(unix.AT_FDCWD, filepath.Join(dir, "upper"))
		if err != nil {
			return err
		}
		defer upper.Close()
		return errors.Join(forget(upper), freshKeys(upper))
	}
	file := filepath.Join(dir, File)
	if err := check(ctx, file); err != nil {
		return err
	}
	m, err := mount(file, false)
	if err != nil {
		return err
	}
	upper, err := openFolder(int(m.root.Fd()), "upper")
	switch {
	case errors.Is(err, unix.ENOENT):
		err = nil
	case err == nil:
		err = errors.Join(forget(upper), freshKeys(upper), upper.Close())
	}
	return errs.Also(err, m.close(context.WithoutCancel(ctx)))
}

// forget removes the files below upper. No link on the way is followed; where
// the guest put one, there is no file of ours.
func forget(upper *os.File) error {
	for _, name := range identities {
		parent, err := unix.Openat2(int(upper.Fd()), filepath.Dir(name), &unix.OpenHow{
			Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
		})
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) {
			continue
		}
		if err != nil {
			return &os.PathError{Op: "open", Path: name, Err: err}
		}
		var st unix.Stat_t
		err = unix.Fstatat(parent, filepath.Base(name), &st, unix.AT_SYMLINK_NOFOLLOW)
		if err == nil && st.Mode&unix.S_IFMT == unix.S_IFREG {
			err = unix.Unlinkat(parent, filepath.Base(name), 0)
		}
		unix.Close(parent)
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return &os.PathError{Op: "remove", Path: name, Err: err}
		}
	}
	return nil
}
