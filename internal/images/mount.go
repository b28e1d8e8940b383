package images

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
)

func (s *Store) mountpoint(digest string) string { return filepath.Join(s.mounts(), digest) }

// mounted reports whether an EROFS is mounted at path, which names a digest:
// whoever mounted it, maybe a daemon before this one, it is the right one.
func mounted(path string) bool {
	var fs unix.Statfs_t
	return unix.Statfs(path, &fs) == nil && uint32(fs.Type) == unix.EROFS_SUPER_MAGIC_V1
}

// Mount mounts an image read-only and returns where. It is mounted once: a
// second call, also by a later daemon, returns the same mount, so that all
// guests of an image share its pages in the page cache.
//
// The mount allows set-user-id programs and execution, because guests' roots
// inherit its flags; device nodes are off, since guests get their own /dev.
func (s *Store) Mount(ctx context.Context, digest string) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	blob, err := s.Open(digest)
	if err != nil {
		return "", err
	}
	defer blob.Close()
	if filepath.Ext(blob.Name()) != tree {
		return "", notTree(digest)
	}
	at := s.mountpoint(digest)
	if mounted(at) {
		return at, nil
	}
	if err := os.Mkdir(at, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return "", fmt.Errorf("mounting an image: %w", err)
	}
	mnt, err := attachable(blob.Name())
	if err != nil {
		return "", &errs.Error{
			Op: "image.mount", Kind: errs.Unsupported, Ref: "image/" + digest[:12], Err: err,
			Msg: "the kernel could not mount the image", Hint: "`lodge doctor` tells whether the kernel has EROFS",
		}
	}
	defer mnt.Close()
	if err := unix.MoveMount(int(mnt.Fd()), "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return "", fmt.Errorf("mounting an image: %w", err)
	}
	return at, nil
}

func notTree(digest string) error {
	return &errs.Error{
		Kind: errs.Unsupported, Ref: "image/" + digest[:12], Msg: "the image is a disk, not a root tree",
		Hint: "guests of model vm boot it; its file is had with `lodge image export --format disk`",
	}
}

// Unmount undoes Mount; an image that isn't mounted is no error. It is Busy
// while a guest uses the mount by its path; guests that run on a clone of it
// are not seen here, and keep what they have.
func (s *Store) Unmount(_ context.Context, digest string) error {
	if err := valid(digest); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	at := s.mountpoint(digest)
	for mounted(at) {
		if err := unix.Unmount(at, unix.UMOUNT_NOFOLLOW); errors.Is(err, unix.EBUSY) {
			return &errs.Error{Op: "image.unmount", Kind: errs.Busy, Ref: "image/" + digest[:12], Msg: "the image is in use", Err: err}
		} else if err != nil {
			return fmt.Errorf("unmounting an image: %w", err)
		}
	}
	if err := os.Remove(at); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("unmounting an image: %w", err)
	}
	return nil
}

// UnmountAll unmounts every image of this store; it tries all and returns what
// failed.
func (s *Store) UnmountAll(ctx context.Context) error {
	entries, err := os.ReadDir(s.mounts())
	if err != nil {
		return fmt.Errorf("image store: %w", err)
	}
	var failed []error
	for _, e := range entries {
		if valid(e.Name()) == nil {
			failed = append(failed, s.Unmount(ctx, e.Name()))
		}
	}
	return errors.Join(failed...)
}

// attachable mounts the EROFS file at path without attaching it anywhere: from
// the file itself where the kernel can (6.12), past the page cache of the file
// so that only the tree's own pages are cached; else from a loop device with
// direct I/O.
func attachable(path string) (*os.File, error) {
	tree, err := erofs(path, "directio")
	if err == nil {
		return tree, nil
	}
	loop, loopErr := attachLoop(path)
	if loopErr != nil {
		return nil, errors.Join(err, loopErr)
	}
	defer loop.Close() // the mount holds the device; it detaches itself with the last user
	return erofs(loop.Name())
}

// erofs makes a detached read-only mount of source with the given flags of
// EROFS; a kernel that doesn't know a flag refuses.
func erofs(source string, flags ...string) (*os.File, error) {
	fs, err := unix.Fsopen("erofs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("fsopen erofs: %w", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigSetString(fs, "source", source); err != nil {
		return nil, fmt.Errorf("erofs: source: %w", err)
	}
	for _, f := range append([]string{"ro"}, flags...) {
		if err := unix.FsconfigSetFlag(fs, f); err != nil {
			return nil, fmt.Errorf("erofs: %s: %w", f, err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("erofs: mount: %w", err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NODEV)
	if err != nil {
		return nil, fmt.Errorf("erofs: fsmount: %w", err)
	}
	return os.NewFile(uintptr(fd), source), nil
}

// attachLoop binds path to a free loop device, read-only, with direct I/O, and
// detached by the kernel when its last user is gone.
func attachLoop(path string) (*os.File, error) {
	backing, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer backing.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("loop device: %w", err)
	}
	defer control.Close()
	for {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("loop device: %w", err)
		}
		dev, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDONLY, 0)
		if err != nil {
			return nil, fmt.Errorf("loop device: %w", err)
		}
		config := unix.LoopConfig{Fd: uint32(backing.Fd())}
		config.Info.Flags = unix.LO_FLAGS_READ_ONLY | unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO
		err = unix.IoctlLoopConfigure(int(dev.Fd()), &config)
		if err == nil {
			return dev, nil
		}
		dev.Close()
		if !errors.Is(err, unix.EBUSY) { // somebody else took it first: the next one
			return nil, fmt.Errorf("loop device: %w", err)
		}
	}
}
