package guest

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"lodge/api"
	"lodge/internal/base/treetar"
)

// warner tells of what is left out.
type warner func(format string, args ...any)

// pack writes the file or tree at src as a tar in which it is called name; "."
// is the contents of a directory.
func pack(ctx context.Context, w io.Writer, src, name string, warn warner) error {
	out := tar.NewWriter(w)
	links := map[[2]uint64]string{}
	err := filepath.WalkDir(src, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		rel, err := filepath.Rel(src, p)
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		if fi.Mode()&fs.ModeSocket != 0 {
			warn("%s is a socket and is left out", p)
			return nil
		}
		return packOne(out, p, path.Join(name, filepath.ToSlash(rel)), fi, links)
	})
	if err != nil {
		return err
	}
	return out.Close()
}

func packOne(out *tar.Writer, p, name string, fi fs.FileInfo, links map[[2]uint64]string) error {
	link := ""
	if fi.Mode()&fs.ModeSymlink != 0 {
		var err error
		if link, err = os.Readlink(p); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(fi, link)
	if err != nil {
		return err
	}
	// Owners are numbers: names mean somebody else in the guest.
	h.Name, h.Uname, h.Gname, h.Format = name, "", "", tar.FormatPAX
	if fi.IsDir() {
		h.Name += "/"
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok && fi.Mode().IsRegular() && st.Nlink > 1 {
		key := [2]uint64{st.Dev, st.Ino}
		if first, seen := links[key]; seen {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
		} else {
			links[key] = name
		}
	}
	if !fi.Mode().IsRegular() && !fi.IsDir() {
		return out.WriteHeader(h)
	}
	file, err := os.Open(p)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := errors.Join(treetar.Attributes(file, h), out.WriteHeader(h)); err != nil || h.Typeflag != tar.TypeReg {
		return err
	}
	if _, err = io.CopyN(out, file, h.Size); errors.Is(err, io.EOF) {
		return fmt.Errorf("%s became shorter while it was copied", p)
	}
	return err
}

// unpacker makes a guest's tar into files. The tar is hostile: everything is
// done through root, which no name and no link leads out of.
type unpacker struct {
	root   *os.Root
	base   string // what the tar calls the tree
	name   string // what it is to be called here
	owners bool
	warn   warner
	dirs   []*tar.Header // set last: a read-only one could not be filled
}

// unpack makes the tree whose first entry was read already. It is called name in
// root; "." puts its contents there.
func unpack(ctx context.Context, root *os.Root, name string, first *tar.Header, in *tar.Reader, warn warner) error {
	base, err := clean(first.Name)
	if err != nil {
		return err
	}
	u := &unpacker{root: root, base: base, name: name, owners: os.Geteuid() == 0, warn: warn}
	for h := first; ; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := u.entry(ctx, h, in); err != nil {
			return err
		}
		if h, err = in.Next(); errors.Is(err, io.EOF) {
			return u.finish()
		} else if err != nil {
			return fmt.Errorf("read the guest's files: %w", err)
		}
	}
}

func hostile(name string) error {
	return &api.Error{Kind: api.KindInvalid, Ref: fmt.Sprintf("%q", name), Detail: "the guest sent a path that leads out of what was asked for",
		Hint: "nothing was written there; do not trust this guest"}
}

// clean is the name without "./" and "/" at its ends.
func clean(name string) (string, error) {
	c := path.Clean(name)
	if path.IsAbs(name) && c != "/" || c == ".." || strings.HasPrefix(c, "../") || strings.ContainsRune(name, 0) {
		return "", hostile(name)
	}
	if c == "/" {
		c = "."
	}
	return c, nil
}

// rebase turns a name in the tar into one in root.
func (u *unpacker) rebase(name string) (string, error) {
	c, err := clean(name)
	if err != nil {
		return "", err
	}
	rest, under := strings.CutPrefix(c, u.base+"/")
	switch {
	case c == u.base:
		return u.name, nil
	case u.base == ".":
		rest = c
	case !under:
		return "", hostile(name)
	}
	return path.Join(u.name, rest), nil
}

func (u *unpacker) entry(ctx context.Context, h *tar.Header, in io.Reader) error {
	name, err := u.rebase(h.Name)
	if err != nil {
		return err
	}
	if name == "." && h.Typeflag != tar.TypeDir {
		return hostile(h.Name)
	}
	h.Name = name
	if dir := path.Dir(name); dir != "." {
		if err := u.root.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	switch h.Typeflag {
	case tar.TypeDir:
		return u.dir(h)
	case tar.TypeReg:
		return u.file(ctx, h, in)
	case tar.TypeSymlink:
		if err := u.clear(name); err != nil {
			return err
		}
		if err := u.root.Symlink(h.Linkname, name); err != nil {
			return err
		}
		return u.own(h)
	case tar.TypeLink:
		old, err := u.rebase(h.Linkname)
		if err != nil {
			return err
		}
		if old == name {
			return hostile(h.Linkname)
		}
		if err := u.clear(name); err != nil {
			return err
		}
		return u.root.Link(old, name)
	case tar.TypeXGlobalHeader:
		return nil
	}
	u.warn("%s is a device, pipe or the like and is left out", name)
	return nil
}

// clear makes room for something that is not a directory.
func (u *unpacker) clear(name string) error {
	fi, err := u.root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && fi.IsDir() {
		return bad(name, "is a directory here and something else in the guest")
	}
	if err != nil {
		return err
	}
	return u.root.Remove(name)
}

func (u *unpacker) dir(h *tar.Header) error {
	if h.Name == "." {
		return nil // it was there before, and stays as it was
	}
	err := u.root.Mkdir(h.Name, 0o700)
	if errors.Is(err, fs.ErrExist) {
		fi, err := u.root.Lstat(h.Name)
		if err != nil {
			return err
		}
		if !fi.IsDir() {
			return bad(h.Name, "is a directory in the guest and something else here")
		}
		u.dirs = append(u.dirs, h)
		return nil
	}
	u.dirs = append(u.dirs, h)
	return err
}

func (u *unpacker) file(ctx context.Context, h *tar.Header, in io.Reader) error {
	if err := u.clear(h.Name); err != nil {
		return err
	}
	file, err := u.root.OpenFile(h.Name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := copySparse(ctx, file, in, h.Size); err != nil {
		return err
	}
	if u.owners {
		if err := file.Chown(h.Uid, h.Gid); err != nil {
			return err
		}
	}
	if err := file.Chmod(h.FileInfo().Mode().Perm()); err != nil {
		return err
	}
	if err := file.Close(); err != nil {
		return err
	}
	return u.root.Chtimes(h.Name, time.Time{}, h.ModTime)
}

func (u *unpacker) own(h *tar.Header) error {
	if !u.owners {
		return nil
	}
	return u.root.Lchown(h.Name, h.Uid, h.Gid)
}

// finish gives the directories their modes, the innermost first.
func (u *unpacker) finish() error {
	for i := len(u.dirs) - 1; i >= 0; i-- {
		h := u.dirs[i]
		if err := u.own(h); err != nil {
			return err
		}
		if err := u.root.Chmod(h.Name, h.FileInfo().Mode().Perm()|h.FileInfo().Mode()&fs.ModeSticky); err != nil {
			return err
		}
		if err := u.root.Chtimes(h.Name, time.Time{}, h.ModTime); err != nil {
			return err
		}
	}
	return nil
}

// copySparse leaves holes where there are only zeros, so that a file of zeros
// that a few bytes of tar blow up to does not fill our disk.
func copySparse(ctx context.Context, file *os.File, in io.Reader, size int64) error {
	buf, zeros := make([]byte, 64<<10), make([]byte, 64<<10)
	for at := int64(0); at < size; {
		if ctx.Err() != nil { // a sparse entry may claim to be exabytes
			return context.Cause(ctx)
		}
		part := buf[:min(int64(len(buf)), size-at)]
		if _, err := io.ReadFull(in, part); err != nil {
			return fmt.Errorf("read the guest's files: %w", err)
		}
		if !bytes.Equal(part, zeros[:len(part)]) {
			if _, err := file.WriteAt(part, at); err != nil {
				return err
			}
		}
		at += int64(len(part))
	}
	return file.Truncate(size)
}
