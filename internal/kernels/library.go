package kernels

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"lodge/internal/base/errs"
)

// maxProgram is more than any kernel, module or library has.
const maxProgram = 512 << 20

// libraryFolders are where a loader looks by itself (ld.so(8)), with Debian's
// own on top, from the root of a tree.
var libraryFolders = []string{
	"lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "lib64", "usr/lib64", "lib", "usr/lib",
}

// CopyProgram copies the program at path, which belongs to the tree at root,
// into dir as "kernel", and with it what it needs to run on any host: its
// loader first, then its libraries, and those that the C library loads when it
// ends a thread.
func CopyProgram(root, path, dir string) (support []string, err error) {
	if err := copyFile(path, filepath.Join(dir, "kernel"), 0o755); err != nil {
		return nil, err
	}
	loader, libraries, err := needs(path)
	if err != nil {
		return nil, err
	}
	if loader == "" {
		return nil, nil // static
	}
	if err := os.MkdirAll(filepath.Join(dir, "support"), 0o755); err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	for todo := slices.Concat([]string{filepath.Base(loader)}, libraries, []string{"libgcc_s.so.1"}); len(todo) > 0; todo = todo[1:] {
		name := todo[0]
		if seen[name] {
			continue
		}
		seen[name] = true
		from, err := find(root, name)
		if err != nil {
			return nil, err
		}
		if err := copyFile(from, filepath.Join(dir, "support", name), 0o755); err != nil {
			return nil, err
		}
		support = append(support, filepath.Join("support", name))
		_, more, err := needs(from)
		if err != nil {
			return nil, err
		}
		todo = append(todo, more...)
	}
	return support, nil
}

// needs reads what a program or library wants to have loaded.
func needs(path string) (loader string, libraries []string, err error) {
	f, err := elf.Open(path)
	if err != nil {
		return "", nil, fmt.Errorf("%s: %w", path, err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP && p.Filesz < 4096 {
			b := make([]byte, p.Filesz)
			if _, err := p.ReadAt(b, 0); err != nil {
				return "", nil, fmt.Errorf("%s: %w", path, err)
			}
			loader = string(bytes.TrimRight(b, "\x00"))
		}
	}
	libraries, err = f.ImportedLibraries()
	if err != nil {
		return "", nil, fmt.Errorf("%s: %w", path, err)
	}
	return loader, libraries, nil
}

// find looks for a library in the tree at root.
func find(root, name string) (string, error) {
	for _, d := range libraryFolders {
		path, err := resolve(root, filepath.Join(d, name))
		if err == nil {
			return path, nil
		}
	}
	return "", &errs.Error{Op: "kernel.build", Kind: errs.Unavailable, Msg: "the kernel needs " + name + ", which its packages lack"}
}

// resolve follows the symbolic links of name as one that lives in the tree at
// root would.
func resolve(root, name string) (string, error) {
	in, err := os.OpenRoot(root)
	if err != nil {
		return "", err
	}
	defer in.Close()
	for range 8 {
		target, err := in.Readlink(name)
		if err != nil {
			_, err := in.Stat(name)
			return filepath.Join(root, name), err
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir(name), target)
		}
		name = strings.TrimPrefix(filepath.Clean("/"+target), "/")
	}
	return "", errors.New(name + ": too many symbolic links")
}

func copyFile(from, to string, mode os.FileMode) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	return writeFile(to, in, mode)
}

func writeFile(to string, in io.Reader, mode os.FileMode) error {
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	n, err := io.Copy(out, io.LimitReader(in, maxProgram))
	if err == nil && n == maxProgram {
		err = errors.New(to + " would be too large")
	}
	if err == nil {
		err = out.Chmod(mode) // whatever the umask
	}
	return errors.Join(err, out.Close())
}
