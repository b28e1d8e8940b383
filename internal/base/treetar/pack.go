package treetar

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Pack writes the file or tree that f is, under the given name (target is what
// it points to if it is a symbolic link: see OpenEntry); a tree's own
// entries follow, sorted, below that name. Symbolic links below f are written
// as such. Sockets, which tar can't hold, and the content of kernel file
// systems (proc, sysfs, cgroup) are left out. w is not closed.
//
// A file that grows while it is read is cut at the size it had; one that
// shrinks is filled with zeros and makes Pack return an error, after all else
// has been written.
func Pack(ctx context.Context, w *tar.Writer, f *os.File, name, target string) error {
	p := packer{ctx: ctx, w: w, links: map[inode]string{}}
	if err := p.add(f, name, target); err != nil {
		return err
	}
	return errors.Join(p.shrunk...)
}

type inode struct{ dev, ino uint64 }

type packer struct {
	ctx    context.Context
	w      *tar.Writer
	links  map[inode]string // first name of a file that has several
	shrunk []error
}

// add writes one open file (a symbolic link, pipe or device opened with
// O_PATH) and, of a folder, all that is in it.
func (p *packer) add(f *os.File, name, target string) error {
	if err := p.ctx.Err(); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	h, ok := header(&st, name, target)
	if !ok {
		return nil
	}
	if p.linked(h, &st) {
		return p.w.WriteHeader(h)
	}
	if err := Attributes(f, h); err != nil {
		return fmt.Errorf("%q: %w", name, err)
	}
	if err := p.w.WriteHeader(h); err != nil {
		return fmt.Errorf("%q: %w", name, err)
	}
	switch h.Typeflag {
	case tar.TypeReg:
		return p.content(f, h)
	case tar.TypeDir:
		return p.folder(f, strings.TrimSuffix(h.Name, "/"))
	}
	return nil
}

// linked turns the header of a file that was written under another name into a
// hard link to that.
func (p *packer) linked(h *tar.Header, st *unix.Stat_t) bool {
	if h.Typeflag == tar.TypeDir || st.Nlink < 2 {
		return false
	}
	id := inode{st.Dev, st.Ino}
	first, seen := p.links[id]
	if !seen {
		p.links[id] = h.Name
		return false
	}
	h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
	return true
}

// header describes a file; it is false for what tar can't hold.
func header(st *unix.Stat_t, name, target string) (*tar.Header, bool) {
	h := &tar.Header{
		Name: name, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid),
		ModTime: time.Unix(st.Mtim.Unix()), Format: tar.FormatPAX,
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		h.Typeflag, h.Size = tar.TypeReg, st.Size
	case unix.S_IFDIR:
		h.Typeflag, h.Name = tar.TypeDir, strings.TrimSuffix(name, "/")+"/"
	case unix.S_IFLNK:
		h.Typeflag, h.Linkname = tar.TypeSymlink, target
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFCHR:
		h.Typeflag = tar.TypeChar
	case unix.S_IFBLK:
		h.Typeflag = tar.TypeBlock
	default:
		return nil, false
	}
	if h.Typeflag == tar.TypeChar || h.Typeflag == tar.TypeBlock {
		h.Devmajor, h.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	}
	return h, true
}

func (p *packer) content(f *os.File, h *tar.Header) error {
	n, err := io.Copy(p.w, io.LimitReader(f, h.Size))
	if err != nil {
		return fmt.Errorf("%q: %w", h.Name, err)
	}
	if n < h.Size {
		p.shrunk = append(p.shrunk, fmt.Errorf("%q became shorter while it was read", h.Name))
		_, err = io.CopyN(p.w, zeroReader{}, h.Size-n)
	}
	return err
}

type zeroReader struct{}

func (zeroReader) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = 0
	}
	return len(b), nil
}

func (p *packer) folder(f *os.File, name string) error {
	if kernels(f) {
		return nil
	}
	names, err := f.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("%q: %w", name, err)
	}
	slices.Sort(names)
	for _, n := range names {
		child, target, err := OpenEntry(int(f.Fd()), n)
		if errors.Is(err, unix.ENOENT) {
			continue // removed meanwhile
		}
		if err != nil {
			return fmt.Errorf("%q: %w", path.Join(name, n), err)
		}
		err = p.add(child, join(name, n), target)
		child.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// join keeps the leading "." that path.Join would clean away.
func join(folder, name string) string { return folder + "/" + name }

// OpenEntry opens name in the folder at, without following it. Only folders
// and regular files are open for reading: opening a pipe or a device would
// wait, or do something. Of a symbolic link, target is what it points to.
func OpenEntry(at int, name string) (f *os.File, target string, err error) {
	fd, err := unix.Openat(at, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, "", err
	}
	f = os.NewFile(uintptr(fd), name)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		f.Close()
		return nil, "", err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(fd, "", buf)
		if err != nil {
			f.Close()
			return nil, "", err
		}
		return f, string(buf[:n]), nil
	case unix.S_IFREG, unix.S_IFDIR:
		defer f.Close()
		r, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
		return r, "", err
	}
	return f, "", nil
}

// kernels reports whether a folder is in a file system that the kernel makes
// up: its files have no size and no end.
func kernels(f *os.File) bool {
	var fs unix.Statfs_t
	if unix.Fstatfs(int(f.Fd()), &fs) != nil {
		return false
	}
	switch int64(fs.Type) {
	case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC,
		unix.DEBUGFS_MAGIC, unix.TRACEFS_MAGIC, unix.BPF_FS_MAGIC, unix.DEVPTS_SUPER_MAGIC:
		return true
	}
	return false
}

// Attributes adds the portable extended attributes of an open file to its header,
// from where Unpack takes them.
func Attributes(f *os.File, h *tar.Header) error {
	if h.Typeflag != tar.TypeReg && h.Typeflag != tar.TypeDir {
		return nil // the kernel allows none of the portable ones there
	}
	fd := int(f.Fd())
	size, err := unix.Flistxattr(fd, nil)
	if err != nil || size == 0 {
		return ignore(err, unix.ENOTSUP)
	}
	list := make([]byte, size)
	if size, err = unix.Flistxattr(fd, list); err != nil {
		return ignore(err, unix.ERANGE) // they change right now: none then
	}
	for name := range strings.SplitSeq(string(list[:size]), "\x00") {
		if name == "" || !Portable(name) {
			continue
		}
		value := make([]byte, 64<<10) // XATTR_SIZE_MAX
		n, err := unix.Fgetxattr(fd, name, value)
		if err != nil {
			continue // removed meanwhile
		}
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[paxAttr+name] = string(value[:n])
	}
	return nil
}

func ignore(err, known error) error {
	if errors.Is(err, known) {
		return nil
	}
	return err
}
