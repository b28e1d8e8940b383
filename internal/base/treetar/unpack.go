package treetar

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Entry is an error about one entry of the stream.
type Entry struct {
	Name string
	Err  error
}

// Error names the entry.
func (e *Entry) Error() string { return fmt.Sprintf("%q: %v", e.Name, e.Err) }

// Unwrap returns what is wrong with it.
func (e *Entry) Unwrap() error { return e.Err }

// Choose is called with each entry, its name cleaned (see Clean), before
// anything is written. It may change the header, leave the entry out, or stop
// everything with an error.
type Choose func(h *tar.Header) (keep bool, err error)

// Unpack writes the entries of r below dir, which must be open for reading.
// What is there already is replaced, except folders, and symbolic links to
// folders below dir where the stream has a folder: both are kept. An error
// about an entry is an *Entry, and what was written before stays.
//
// Device nodes are an error unless choose leaves them out.
func Unpack(ctx context.Context, r *tar.Reader, dir *os.File, choose Choose) error {
	u := unpacker{root: int(dir.Fd()), buf: make([]byte, 64<<10)}
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return u.finish()
		}
		if err != nil {
			return fmt.Errorf("reading the tar: %w", err)
		}
		name := h.Name
		keep, err := Vet(h, choose)
		if err == nil && keep {
			err = u.entry(ctx, h, r)
		}
		if err != nil {
			return &Entry{Name: name, Err: err}
		}
	}
}

// Vet cleans the names in a header and asks choose, which may be nil. It is
// the part of Unpack that writes nothing.
func Vet(h *tar.Header, choose Choose) (keep bool, err error) {
	switch h.Typeflag {
	case tar.TypeXGlobalHeader:
		return false, nil
	case tar.TypeLink:
		if h.Linkname, err = Clean(h.Linkname); err != nil {
			return false, fmt.Errorf("target of the hard link: %w", err)
		}
	case tar.TypeSymlink:
		if len(h.Linkname) > maxPath || h.Linkname == "" || strings.ContainsRune(h.Linkname, 0) {
			return false, errors.New("the target of the symbolic link is empty, too long or has a zero byte in it")
		}
	}
	if h.Name, err = Clean(h.Name); err != nil {
		return false, err
	}
	if h.Uid < 0 || h.Gid < 0 {
		return false, errors.New("its owner is negative")
	}
	if choose == nil {
		return true, nil
	}
	return choose(h)
}

type unpacker struct {
	root int
	buf  []byte
	late []late
}

// late is what a folder gets when all is in it: its time would change, and a
// default ACL would be inherited by what is written there.
type late struct {
	header *tar.Header
	ino    uint64
}

func (u *unpacker) entry(ctx context.Context, h *tar.Header, r io.Reader) error {
	if h.Name == "" {
		if h.Typeflag != tar.TypeDir {
			return errors.New("only a folder can be the root")
		}
		return u.folder(u.root, ".", h)
	}
	parent, err := u.parent(path.Dir(h.Name))
	if err != nil {
		return err
	}
	defer parent.Close()
	at, base := int(parent.Fd()), path.Base(h.Name)
	if h.Typeflag == tar.TypeDir {
		return u.folder(at, base, h)
	}
	if err := clear(at, base); err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeReg:
		return u.file(ctx, at, base, h, r)
	case tar.TypeLink:
		return u.link(at, base, h)
	case tar.TypeSymlink:
		err = unix.Symlinkat(h.Linkname, at, base)
	case tar.TypeFifo:
		err = unix.Mknodat(at, base, unix.S_IFIFO|0o600, 0)
	case tar.TypeChar, tar.TypeBlock:
		err = errors.New("device nodes are not unpacked")
	default:
		err = fmt.Errorf("type %q is not known", h.Typeflag)
	}
	if err != nil {
		return err
	}
	return dress(at, base, h)
}

// parent opens the folder that an entry goes into; a stream need not name it
// first.
func (u *unpacker) parent(name string) (*os.File, error) {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY
	f, err := openBeneath(u.root, strings.TrimPrefix(name, "."), flags)
	if !errors.Is(err, unix.ENOENT) {
		return f, err
	}
	above, err := u.parent(path.Dir(name))
	if err != nil {
		return nil, err
	}
	defer above.Close()
	if err := unix.Mkdirat(int(above.Fd()), path.Base(name), 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, err
	}
	return openBeneath(u.root, name, flags)
}

// clear makes room for a new entry that is not a folder.
func clear(at int, base string) error {
	err := unix.Unlinkat(at, base, 0)
	if errors.Is(err, unix.EISDIR) {
		return errors.New("a folder of that name is there already")
	}
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

func (u *unpacker) folder(at int, base string, h *tar.Header) error {
	f, err := u.openFolder(at, base, h.Name)
	if err != nil {
		return err
	}
	defer f.Close()
	fd := int(f.Fd())
	if err := unix.Fchown(fd, h.Uid, h.Gid); err != nil {
		return owner(h, err)
	}
	if err := unix.Fchmod(fd, uint32(h.Mode)&0o7777); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	u.late = append(u.late, late{h, st.Ino})
	return nil
}

// openFolder opens the folder base, which it makes unless there is one, or a
// symbolic link to one below the root.
func (u *unpacker) openFolder(at int, base, name string) (*os.File, error) {
	err := unix.Mkdirat(at, base, 0o700)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, err
	}
	f, err := openBeneath(u.root, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ENOENT) { // a file, or a link to nothing
		if err = unix.Unlinkat(at, base, 0); err == nil {
			err = unix.Mkdirat(at, base, 0o700)
		}
		if err == nil {
			f, err = openBeneath(u.root, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
		}
	}
	return f, err
}

func (u *unpacker) file(ctx context.Context, at int, base string, h *tar.Header, r io.Reader) error {
	fd, err := unix.Openat(at, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), base)
	defer f.Close()
	if err := u.fill(ctx, f, r); err != nil {
		return err
	}
	return dressFile(f, h)
}

// fill copies r to f and leaves holes where r has zeros only.
func (u *unpacker) fill(ctx context.Context, f *os.File, r io.Reader) error {
	var size int64
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := io.ReadFull(r, u.buf)
		if n > 0 && !zeros(u.buf[:n]) {
			if _, err := f.WriteAt(u.buf[:n], size); err != nil {
				return err
			}
		}
		size += int64(n)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) && n < len(u.buf) && ended(r) {
			return f.Truncate(size)
		}
		if err != nil {
			return fmt.Errorf("reading the tar: %w", err)
		}
	}
}

// ended tells the end of an entry from the end of a stream that was cut off:
// the tar reader says io.EOF only for the former.
func ended(r io.Reader) bool {
	n, err := r.Read(make([]byte, 1))
	return n == 0 && errors.Is(err, io.EOF)
}

func zeros(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

func (u *unpacker) link(at int, base string, h *tar.Header) error {
	from, err := openBeneath(u.root, strings.TrimPrefix(path.Dir(h.Linkname), "."), unix.O_PATH|unix.O_DIRECTORY)
	if err == nil {
		defer from.Close()
		err = unix.Linkat(int(from.Fd()), path.Base(h.Linkname), at, base, 0)
	}
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("its hard link's target %q is not in the tar before it", h.Linkname)
	}
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", h.Linkname, err)
	}
	return nil
}

// finish gives the folders their attributes and times, the innermost first. A
// folder that somebody replaced meanwhile is not ours any more.
func (u *unpacker) finish() error {
	for i := len(u.late) - 1; i >= 0; i-- {
		h := u.late[i].header
		f, err := openBeneath(u.root, h.Name, unix.O_RDONLY|unix.O_DIRECTORY)
		if err != nil {
			continue
		}
		var st unix.Stat_t
		err = unix.Fstat(int(f.Fd()), &st)
		if err == nil && st.Ino == u.late[i].ino {
			err = setFolder(f, h)
		}
		f.Close()
		if err != nil {
			return &Entry{Name: h.Name, Err: err}
		}
	}
	return nil
}

func setFolder(f *os.File, h *tar.Header) error {
	err := eachAttr(h, func(name string, value []byte) error { return unix.Fsetxattr(int(f.Fd()), name, value, 0) })
	if err != nil {
		return err
	}
	return setTime(int(f.Fd()), "", h, unix.AT_EMPTY_PATH)
}

// dressFile sets what a regular file has besides content: the mode after the
// owner, whose change clears set-user-id, and capabilities after both.
func dressFile(f *os.File, h *tar.Header) error {
	fd := int(f.Fd())
	if err := unix.Fchown(fd, h.Uid, h.Gid); err != nil {
		return owner(h, err)
	}
	if err := unix.Fchmod(fd, uint32(h.Mode)&0o7777); err != nil {
		return err
	}
	return setFolder(f, h)
}

// dress does the same for what can't be opened: links, pipes.
func dress(at int, base string, h *tar.Header) error {
	if err := unix.Fchownat(at, base, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return owner(h, err)
	}
	if h.Typeflag == tar.TypeFifo {
		// Only a pipe may get a mode: if it was swapped for a link meanwhile, the call refuses.
		if err := unix.Fchmodat(at, base, uint32(h.Mode)&0o7777, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
	}
	err := eachAttr(h, func(name string, value []byte) error {
		return unix.Lsetxattr(procPath(at, base), name, value, 0)
	})
	if err != nil {
		return err
	}
	return setTime(at, base, h, unix.AT_SYMLINK_NOFOLLOW)
}

func setTime(at int, base string, h *tar.Header, flags int) error {
	if h.ModTime.IsZero() {
		h.ModTime = time.Unix(0, 0)
	}
	mtime, err := unix.TimeToTimespec(h.ModTime)
	if err != nil {
		return err
	}
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, mtime}
	return unix.UtimesNanoAt(at, base, times, flags)
}

func owner(h *tar.Header, err error) error {
	if errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("owner %d:%d does not exist here", h.Uid, h.Gid)
	}
	return err
}

// paxAttr is how GNU tar and libarchive name extended attributes in a header.
const paxAttr = "SCHILY.xattr."

// Portable reports whether an extended attribute means the same wherever the
// file is: capabilities, ACLs, and the user's own. Others belong to the file
// system or the security module of one host (trusted.overlay.* would even
// redirect what an overlay shows), and are neither packed nor unpacked.
func Portable(name string) bool {
	switch name {
	case "security.capability", "system.posix_acl_access", "system.posix_acl_default":
		return true
	}
	return strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, "user.overlay.")
}

// eachAttr calls set with the portable attributes of an entry; a file system
// that has none of that kind loses them.
func eachAttr(h *tar.Header, set func(name string, value []byte) error) error {
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, paxAttr)
		if !ok || !Portable(name) {
			continue
		}
		if err := set(name, []byte(value)); err != nil && !errors.Is(err, unix.ENOTSUP) {
			return fmt.Errorf("extended attribute %s: %w", name, err)
		}
	}
	return nil
}
