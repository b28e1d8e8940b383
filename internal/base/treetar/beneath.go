// Package treetar moves trees in and out of tar streams with owners, modes,
// times, extended attributes, hard links and holes, and never follows a path
// out of the folder it was given, even while somebody swaps symbolic links
// below it.
package treetar

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// Bounds of the kernel: longest name of a file and longest path.
const (
	maxName = unix.NAME_MAX
	maxPath = unix.PathMax - 1
)

// ErrEscape marks an entry that names something outside of the folder, itself
// or through a symbolic link.
var ErrEscape = errors.New("it leads outside of the folder")

// Clean is the path of an entry without leading "/" and "./" and without a
// trailing "/", "." for the folder itself. A name with ".." in it, even one
// that stays inside, wraps ErrEscape.
func Clean(name string) (string, error) {
	switch {
	case len(name) > maxPath:
		return "", fmt.Errorf("the name is longer than %d bytes", maxPath)
	case strings.ContainsRune(name, 0):
		return "", errors.New("the name has a zero byte in it")
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", fmt.Errorf("%w: \"..\" in its name", ErrEscape)
		}
		if len(part) > maxName {
			return "", fmt.Errorf("a part of the name is longer than %d bytes", maxName)
		}
	}
	return strings.TrimPrefix(path.Clean("/"+name), "/"), nil
}

// openBeneath opens name, which Clean returned, below dir. Symbolic links on
// the way are followed only as far as they stay below dir.
func openBeneath(dir int, name string, flags uint64) (*os.File, error) {
	if name == "" {
		name = "."
	}
	for {
		fd, err := unix.Openat2(dir, name, &unix.OpenHow{
			Flags:   flags | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS,
		})
		switch {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR): // a rename raced with the look-up
			continue
		case errors.Is(err, unix.EXDEV):
			return nil, ErrEscape
		case err != nil:
			return nil, err
		}
		return os.NewFile(uintptr(fd), name), nil
	}
}

// procPath names base in the folder dir for the calls that have no *at form;
// the folder can't be swapped, and base itself isn't followed by the l* calls.
func procPath(dir int, base string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir, base)
}
