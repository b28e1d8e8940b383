package trees

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Options of a copy.
type Options struct {
	// Share lets files have their content in common where the file system can
	// (reflinks); what is written later is each one's own.
	Share bool
	// Told is called now and then with what has been copied so far; may be nil.
	Told func(Size)
}

// Copy makes in the empty folder dst what is in src, and gives dst the
// attributes of src: owners, modes, times, extended attributes (access control
// lists, capabilities and an overlay's marks among them), hard links, holes,
// links, pipes, sockets and device nodes. What cannot be kept is an error.
//
// Left out is what belongs to the file system instead of the file: attributes
// by chattr(1), and extended attributes of the file system's own.
//
// Nothing may change src meanwhile. It needs root.
func Copy(ctx context.Context, src, dst *os.File, o Options) error {
	c := copier{ctx: ctx, o: o, root: int(dst.Fd()), linked: map[inode]place{}, buf: make([]byte, 1<<20)}
	w := walker{ctx: ctx, file: c.file, enter: c.folder, leave: c.dress}
	err := w.walk(int(src.Fd()), c.root)
	if err == nil && o.Told != nil {
		o.Told(c.done)
	}
	return err
}

// place is where the first name of a file with several was made.
type place struct {
	at   *level
	name string
}

type copier struct {
	ctx    context.Context
	o      Options
	root   int
	linked map[inode]place
	buf    []byte
	list   [xattrMost]byte
	value  [xattrMost]byte
	done   Size
	told   Size
}

// folder makes the copy of l, for whoever enters it.
func (c *copier) folder(l *level) error {
	if err := unix.Mkdirat(l.above.dst, l.name, 0o700); err != nil {
		return fmt.Errorf("%q: %w", l.name, err)
	}
	var err error
	if l.dst, err = unix.Openat(l.above.dst, l.name, folderFlags, 0); err != nil {
		return fmt.Errorf("%q: %w", l.name, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(l.dst, &st); err != nil {
		return err
	}
	l.dstID = inodeOf(&st)
	return nil
}

// dress gives a folder its attributes, when all is in it: its times would
// change, and a default access control list would be inherited.
func (c *copier) dress(l *level) error {
	if err := c.attributes(l.src, l.dst, &l.st); err != nil {
		return err
	}
	if err := utimes(l.dst, ".", &l.st); err != nil {
		return err
	}
	c.count(0)
	return nil
}

func (c *copier) count(bytes uint64) {
	c.done.Files++
	c.done.Bytes += bytes
	c.tell()
}

func (c *copier) tell() {
	if c.o.Told != nil && (c.done.Files-c.told.Files >= 500 || c.done.Bytes-c.told.Bytes >= 8<<20) {
		c.told = c.done
		c.o.Told(c.done)
	}
}

// file copies what is not a folder.
func (c *copier) file(at *level, name string, st *unix.Stat_t) error {
	if st.Nlink > 1 {
		if first, ok := c.linked[inodeOf(st)]; ok {
			return c.link(first, at, name)
		}
		c.linked[inodeOf(st)] = place{at, name}
	}
	if st.Mode&unix.S_IFMT == unix.S_IFREG {
		return c.regular(at, name, st)
	}
	if err := c.special(at, name, st); err != nil {
		return err
	}
	c.count(0)
	return nil
}

func (c *copier) special(at *level, name string, st *unix.Stat_t) error {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		n, err := unix.Readlinkat(at.src, name, c.value[:])
		if err != nil {
			return err
		}
		if err := unix.Symlinkat(string(c.value[:n]), at.dst, name); err != nil {
			return err
		}
	case unix.S_IFIFO, unix.S_IFSOCK, unix.S_IFCHR, unix.S_IFBLK:
		if err := unix.Mknodat(at.dst, name, st.Mode&unix.S_IFMT|0o600, int(st.Rdev)); err != nil {
			return err
		}
	default:
		return fmt.Errorf("a file of kind %#o is not known", st.Mode&unix.S_IFMT)
	}
	if err := unix.Fchownat(at.dst, name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		if err := unix.Fchmodat(at.dst, name, st.Mode&0o7777, 0); err != nil {
			return err
		}
	}
	if err := c.xattrs(named{at.src, name}, named{at.dst, name}); err != nil {
		return err
	}
	return utimes(at.dst, name, st)
}

func (c *copier) regular(at *level, name string, st *unix.Stat_t) error {
	const flags = unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	src, err := unix.Openat(at.src, name, unix.O_RDONLY|flags, 0)
	if err != nil {
		return err
	}
	defer unix.Close(src)
	dst, err := unix.Openat(at.dst, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|flags, 0o600)
	if err != nil {
		return err
	}
	defer unix.Close(dst)
	before := c.done.Bytes
	if err := c.content(src, dst, st); err != nil {
		return err
	}
	if err := c.attributes(src, dst, st); err != nil {
		return err
	}
	if err := utimes(at.dst, name, st); err != nil {
		return err
	}
	c.count(0)
	if c.done.Bytes == before {
		c.done.Bytes += uint64(st.Blocks) * 512 // shared, or so small that it lies in its inode
	}
	return nil
}

func (c *copier) content(src, dst int, st *unix.Stat_t) error {
	if c.o.Share {
		err := unix.IoctlFileClone(dst, src)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOTTY), errors.Is(err, unix.EXDEV):
			c.o.Share = false
		case errors.Is(err, unix.EINVAL): // this one cannot be shared: it is kept in another way
		default:
			return err
		}
	}
	if st.Blocks*512 >= st.Size {
		return c.extent(src, dst, 0, st.Size)
	}
	// Holes come back as holes.
	if err := unix.Ftruncate(dst, st.Size); err != nil {
		return err
	}
	for end := int64(0); end < st.Size; {
		start, err := unix.Seek(src, end, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // nothing but a hole is left
		}
		if err != nil {
			return err
		}
		if end, err = unix.Seek(src, start, unix.SEEK_HOLE); err != nil {
			return err
		}
		if err := c.extent(src, dst, start, min(end, st.Size)); err != nil {
			return err
		}
	}
	return nil
}

// extent copies the bytes from start to end.
func (c *copier) extent(src, dst int, start, end int64) error {
	for at := start; at < end; {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		n, err := unix.Pread(src, c.buf[:min(int64(len(c.buf)), end-at)], at)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return fmt.Errorf("it became shorter while it was read: %w", io.ErrUnexpectedEOF)
		}
		for wrote := 0; wrote < n; {
			k, err := unix.Pwrite(dst, c.buf[wrote:n], at+int64(wrote))
			if err != nil && !errors.Is(err, unix.EINTR) {
				return err
			}
			wrote += max(k, 0)
		}
		at += int64(n)
		c.done.Bytes += uint64(n)
		c.tell()
	}
	return nil
}

// link gives a file that was copied already another name.
func (c *copier) link(first place, at *level, name string) error {
	var parts []string
	for l := first.at; l.above != nil; l = l.above {
		parts = append(parts, l.name)
	}
	from, opened := c.root, false
	defer func() {
		if opened {
			unix.Close(from)
		}
	}()
	for len(parts) > 0 { // in hops, since a path may be longer than one call takes
		var hop strings.Builder
		for hop.Len() < 2048 && len(parts) > 0 {
			hop.WriteString(parts[len(parts)-1] + "/")
			parts = parts[:len(parts)-1]
		}
		next, err := unix.Openat(from, hop.String(), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		if opened {
			unix.Close(from)
		}
		from, opened = next, true
	}
	return unix.Linkat(from, first.name, at.dst, name, 0)
}

// attributes copies those of an open file or folder, but its times. The order
// matters: a new owner takes set-user-id and capabilities away.
func (c *copier) attributes(src, dst int, st *unix.Stat_t) error {
	if err := unix.Fchown(dst, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Fchmod(dst, st.Mode&0o7777); err != nil {
		return err
	}
	return c.xattrs(open(src), open(dst))
}

func utimes(at int, name string, st *unix.Stat_t) error {
	return unix.UtimesNanoAt(at, name, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
}
