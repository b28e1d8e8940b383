package trees

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// xattrMost is the most that names, and a value, of extended attributes take
// (XATTR_LIST_MAX, XATTR_SIZE_MAX).
const xattrMost = 64 << 10

// attributed is a file whose extended attributes can be read or set.
type attributed interface {
	listxattr(b []byte) (int, error)
	getxattr(name string, b []byte) (int, error)
	setxattr(name string, b []byte) error
}

// open is an open file or folder.
type open int

func (f open) listxattr(b []byte) (int, error)             { return unix.Flistxattr(int(f), b) }
func (f open) getxattr(name string, b []byte) (int, error) { return unix.Fgetxattr(int(f), name, b) }
func (f open) setxattr(name string, b []byte) error        { return unix.Fsetxattr(int(f), name, b, 0) }

// named is a file that opening would do something to, or that cannot be opened:
// a pipe, a device, a symbolic link.
type named struct {
	at   int
	name string
}

// path leads to the file through the kernel's own link to its folder; that is
// followed, the file never is.
func (f named) path() string { return fmt.Sprintf("/proc/self/fd/%d/%s", f.at, f.name) }

func (f named) listxattr(b []byte) (int, error)             { return unix.Llistxattr(f.path(), b) }
func (f named) getxattr(name string, b []byte) (int, error) { return unix.Lgetxattr(f.path(), name, b) }
func (f named) setxattr(name string, b []byte) error        { return unix.Lsetxattr(f.path(), name, b, 0) }

// ofFile reports whether an extended attribute belongs to the file: others,
// such as "btrfs.compression", say how its file system keeps it.
func ofFile(name string) bool {
	for _, p := range []string{"user.", "trusted.", "security.", "system.posix_acl_"} {
		if strings.HasPrefix(name, p) {
			return true
		}
	}
	return false
}

func (c *copier) xattrs(src, dst attributed) error {
	n, err := src.listxattr(c.list[:])
	if errors.Is(err, unix.EOPNOTSUPP) || err == nil && n == 0 {
		return nil
	}
	if err != nil {
		return fmt.Errorf("its extended attributes: %w", err)
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(c.list[:n]), "\x00"), "\x00") {
		if !ofFile(name) {
			continue
		}
		k, err := src.getxattr(name, c.value[:])
		if err != nil {
			return fmt.Errorf("its extended attribute %s: %w", name, err)
		}
		if err := dst.setxattr(name, c.value[:k]); err != nil {
			return fmt.Errorf("its extended attribute %s: %w", name, err)
		}
	}
	return nil
}
