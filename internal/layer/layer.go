// Package layer keeps what a guest changed of its image's tree, in either of
// two forms that hold the same, and turns one into the other: folders "upper"
// and "work" of the host for guests on the host's kernel, and an ext4 file
// system with these two in it, in one file, for guests with a kernel of their
// own.
//
// Which form a layer has is a fact on disk: it is a volume if the file is there.
// A change of form makes the new one whole beside the old one, commits by one
// rename or removal, and clears the old one away last. Whoever looks next sweeps
// what one that was cut off left behind.
//
// What a layer holds was made by a guest and is taken for hostile: an ext4 file
// is checked before the host's kernel sees it, is mounted where no process can
// reach it, and no link in it is followed.
package layer

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
	"lodge/internal/base/fsx"
	"lodge/internal/base/trees"
)

// Form is what a layer is on disk.
type Form string

// The forms.
const (
	Tree   Form = "tree"
	Volume Form = "volume"
)

// File is the name of the ext4 file in a volume's directory.
const File = "root.ext4"

// DefaultSize is how large an ext4 file is made for a guest without a limit.
const DefaultSize = 10 << 30

// fresh ends the names of what is not whole yet, or no longer needed.
const fresh = ".new"

// FormOf looks which form the layer in dir has. It changes nothing.
func FormOf(dir string) (Form, error) {
	st, err := os.Lstat(filepath.Join(dir, File))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Tree, nil
	case err != nil:
		return "", err
	case !st.Mode().IsRegular():
		return "", &errs.Error{Op: "layer", Kind: errs.Internal, Msg: filepath.Join(dir, File) + " is not a file"}
	}
	return Volume, nil
}

// Sweep clears away what a change of form that was cut off left behind, and
// returns the form that holds. Nobody may use the layer meanwhile.
func Sweep(ctx context.Context, dir string) (Form, error) {
	form, err := FormOf(dir)
	if err != nil {
		return "", err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), fresh) {
			if err := remove(ctx, filepath.Join(dir, e.Name())); err != nil {
				return "", err
			}
		}
	}
	if form == Volume {
		return form, discardUpper(ctx, dir)
	}
	return form, makeUpper(dir)
}

// discardUpper empties the folder "upper" of a layer that is a volume: out of
// the way first, so that what takes long can be cut off.
func discardUpper(ctx context.Context, dir string) error {
	upper, old := filepath.Join(dir, "upper"), filepath.Join(dir, "old"+fresh)
	left, err := os.ReadDir(upper)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(left) == 0 {
		return makeUpper(dir)
	}
	if err != nil {
		return err
	}
	if err := os.Rename(upper, old); err != nil {
		return err
	}
	if err := makeUpper(dir); err != nil {
		return err
	}
	return remove(ctx, old)
}

func makeUpper(dir string) error {
	upper := filepath.Join(dir, "upper")
	err := os.Mkdir(upper, 0o755)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return os.Chmod(upper, 0o755)
}

// remove removes a file or a tree, however deep.
func remove(ctx context.Context, path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		return unix.Unlink(path)
	case err != nil:
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	d := os.NewFile(uintptr(fd), path)
	defer d.Close()
	if err := trees.Clear(ctx, d); err != nil {
		return err
	}
	return os.Remove(path)
}

// Facts is what a change of form has to deal with.
type Facts struct {
	Form  Form
	Files uint64
	Bytes uint64 // that its files take
	Needs uint64 // bytes that must be free to change its form
	Size  uint64 // of a volume's file system; 0 for trees
}

// Look tells what a layer holds. It changes nothing.
func Look(ctx context.Context, dir string) (Facts, error) {
	form, err := FormOf(dir)
	if err != nil {
		return Facts{}, err
	}
	if form == Volume {
		s, err := readSuper(filepath.Join(dir, File))
		if err != nil {
			return Facts{}, err
		}
		return Facts{Form: form, Files: s.usedInodes(), Bytes: s.usedBytes(), Needs: s.usedBytes(), Size: s.size()}, nil
	}
	size, err := countUpper(ctx, dir)
	if err != nil {
		return Facts{}, err
	}
	return Facts{Form: form, Files: size.Files, Bytes: size.Bytes, Needs: volumeNeeds(size)}, nil
}

// volumeNeeds is what a volume that holds so much takes: its files, an inode of
// 256 bytes and a piece of a folder for each, a journal, and the tables that
// describe it.
func volumeNeeds(s trees.Size) uint64 { return s.Bytes + s.Files*512 + 32<<20 }

func countUpper(ctx context.Context, dir string) (trees.Size, error) {
	upper, err := openFolder(unix.AT_FDCWD, filepath.Join(dir, "upper"))
	if errors.Is(err, fs.ErrNotExist) {
		return trees.Size{}, nil
	}
	if err != nil {
		return trees.Size{}, err
	}
	defer upper.Close()
	return trees.Count(ctx, upper)
}

func openFolder(at int, path string) (*os.File, error) {
	fd, err := unix.Openat(at, path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// commit makes the change of a name in dir last.
func commit(dir string) error { return fsx.SyncDir(dir) }
