package layer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
	"lodge/internal/base/trees"
	"lodge/internal/base/units"
)

// Told is called now and then with how many bytes of how many have been copied;
// may be nil.
type Told func(done, total uint64)

// Create makes an empty layer in dir that is a volume of size bytes
// (0: DefaultSize). One that is there already is left as it is.
func Create(ctx context.Context, dir string, size uint64) error {
	form, err := Sweep(ctx, dir)
	if err != nil || form == Volume {
		return err
	}
	return convert{}.toVolume(ctx, dir, size, nil)
}

// ToVolume makes the layer in dir a volume of size bytes (0: DefaultSize).
// Nobody may use the layer meanwhile. If it fails or is cut off, the layer is
// what it was.
func ToVolume(ctx context.Context, dir string, size uint64, told Told) error {
	form, err := Sweep(ctx, dir)
	if err != nil || form == Volume {
		return err
	}
	return convert{}.toVolume(ctx, dir, size, told)
}

// ToTree makes the layer in dir a tree. Nobody may use the layer meanwhile. If
// it fails or is cut off, the layer is what it was.
func ToTree(ctx context.Context, dir string, told Told) error {
	form, err := Sweep(ctx, dir)
	if err != nil || form == Tree {
		return err
	}
	return convert{}.toTree(ctx, dir, told)
}

// convert is one change of form. step is called between any two steps; tests end
// there.
type convert struct {
	step func(done string)
}

func (c convert) did(what string) {
	if c.step != nil {
		c.step(what)
	}
}

func (c convert) toVolume(ctx context.Context, dir string, size uint64, told Told) (err error) {
	if size == 0 {
		size = DefaultSize
	}
	held, err := countUpper(ctx, dir)
	if err != nil {
		return err
	}
	if needs := volumeNeeds(held); size < needs || size < smallest {
		return &errs.Error{Op: "layer", Kind: errs.NoSpace, Field: "disk",
			Msg:  fmt.Sprintf("a disk of %s is too small for the guest's files: they need %s", units.Bytes(size), units.Bytes(max(needs, smallest))),
			Hint: "give it a larger one: lodge set GUEST --disk " + units.Bytes(roundUp(max(needs, smallest)*5/4))}
	}
	file := filepath.Join(dir, File)
	tmp := file + fresh
	defer func() {
		if err != nil {
			err = errs.Also(err, remove(context.WithoutCancel(ctx), tmp))
		}
	}()
	if err := mkfs(ctx, tmp, size&^4095, held.Files); err != nil {
		return err
	}
	c.did("made")
	if err := c.fill(ctx, dir, tmp, held, told); err != nil {
		return err
	}
	c.did("filled")
	if err := os.Rename(tmp, file); err != nil {
		return err
	}
	c.did("renamed")
	if err := commit(dir); err != nil {
		return err
	}
	c.did("committed")
	return discardUpper(ctx, dir)
}

func roundUp(n uint64) uint64 { return (n + 64<<20 - 1) &^ (64<<20 - 1) }

// fill copies the layer into the ext4 file tmp and makes that durable.
func (c convert) fill(ctx context.Context, dir, tmp string, held trees.Size, told Told) error {
	m, err := mount(tmp, false)
	if err != nil {
		return err
	}
	err = c.copyIn(ctx, dir, m.root, held, told)
	if err := errs.Also(err, m.close(context.WithoutCancel(ctx))); err != nil {
		return err
	}
	f, err := os.Open(tmp)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

func (c convert) copyIn(ctx context.Context, dir string, root *os.File, held trees.Size, told Told) error {
	src, err := openFolder(unix.AT_FDCWD, filepath.Join(dir, "upper"))
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := openFolder(int(root.Fd()), "upper")
	if err != nil {
		return err
	}
	defer dst.Close()
	if err := trees.Copy(ctx, src, dst, options(held.Bytes, told)); err != nil {
		return err
	}
	c.did("copied")
	return syncfs(root)
}

func options(total uint64, told Told) trees.Options {
	if told == nil {
		return trees.Options{}
	}
	return trees.Options{Told: func(s trees.Size) { told(min(s.Bytes, total), total) }}
}

func syncfs(f *os.File) error {
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return &os.PathError{Op: "syncfs", Path: f.Name(), Err: err}
	}
	return nil
}

func (c convert) toTree(ctx context.Context, dir string, told Told) (err error) {
	file, upper := filepath.Join(dir, File), filepath.Join(dir, "upper")
	tmp := upper + fresh
	defer func() {
		if err != nil {
			err = errs.Also(err, remove(context.WithoutCancel(ctx), tmp))
		}
	}()
	if err := check(ctx, file); err != nil {
		return err
	}
	c.did("checked")
	if err := c.empty(ctx, file, tmp, told); err != nil {
		return err
	}
	c.did("synced")
	if err := unix.Rename(tmp, upper); err != nil { // over the empty one
		return &os.LinkError{Op: "rename", Old: tmp, New: upper, Err: err}
	}
	c.did("renamed")
	if err := commit(dir); err != nil {
		return err
	}
	c.did("placed")
	if err := os.Remove(file); err != nil { // from here on it is a tree
		return err
	}
	c.did("committed")
	return commit(dir)
}

// empty copies what the ext4 file holds into the new folder tmp and makes that
// durable.
func (c convert) empty(ctx context.Context, file, tmp string, told Told) error {
	s, err := readSuper(file)
	if err != nil {
		return err
	}
	m, err := mount(file, true)
	if err != nil {
		return err
	}
	err = c.copyOut(ctx, m.root, tmp, s.usedBytes(), told)
	return errs.Also(err, m.close(context.WithoutCancel(ctx)))
}

func (c convert) copyOut(ctx context.Context, root *os.File, tmp string, total uint64, told Told) error {
	src, err := openFolder(int(root.Fd()), "upper")
	if errors.Is(err, unix.ENOENT) { // a guest that never ran
		return makeEmpty(tmp)
	}
	if err != nil {
		return err
	}
	defer src.Close()
	if err := os.Mkdir(tmp, 0o700); err != nil {
		return err
	}
	c.did("begun")
	dst, err := openFolder(unix.AT_FDCWD, tmp)
	if err != nil {
		return err
	}
	defer dst.Close()
	if err := trees.Copy(ctx, src, dst, options(total, told)); err != nil {
		return err
	}
	c.did("copied")
	return syncfs(dst)
}

func makeEmpty(path string) error {
	if err := os.Mkdir(path, 0o755); err != nil {
		return err
	}
	return os.Chmod(path, 0o755)
}

// Grow makes the volume in dir size bytes large, if it is smaller (0: it stays
// as it is). Nobody may use it meanwhile. It may be cut off and called again.
func Grow(ctx context.Context, dir string, size uint64) error {
	file := filepath.Join(dir, File)
	s, err := readSuper(file)
	if err != nil {
		return err
	}
	size &^= 4095
	if s.size() >= size {
		return nil
	}
	if err := check(ctx, file); err != nil {
		return err
	}
	st, err := os.Stat(file)
	if err != nil {
		return err
	}
	if uint64(st.Size()) < size {
		if err := os.Truncate(file, int64(size)); err != nil {
			return err
		}
	}
	return tool(ctx, nil, "resize2fs", file)
}
