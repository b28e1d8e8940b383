// Package agent is the small program that engines start inside a guest, in the
// guest's namespaces and as its root, to do what needs the guest's own view:
// moving files in and out, and letting its owner log in.
package agent

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
	"lodge/internal/base/treetar"
)

// Exit statuses of the program.
const (
	Done     = 0
	Failed   = 1
	NotFound = 3
)

const usage = "usage: lodge-agent files pack PATH | files unpack DIR | login password USER | login keys USER"

// buffer of the streams: large enough that the pipe, not the calls, is the limit.
const buffer = 256 << 10

// Main does what args say, arguments without the program's name, and returns
// the exit status. An error is one line on errw.
func Main(ctx context.Context, args []string, in io.Reader, out, errw io.Writer) int {
	err := run(ctx, args, in, out)
	if err == nil {
		return Done
	}
	fmt.Fprintln(errw, "lodge-agent: "+strings.ReplaceAll(words(err), "\n", "; "))
	if errors.Is(err, ErrMissing) || errs.Is(err, errs.NotFound) {
		return NotFound
	}
	return Failed
}

// words is what is wrong, for a person who knows what was asked for.
func words(err error) string {
	if ours, ok := err.(*errs.Error); ok && ours.Kind != errs.Internal && ours.Msg != "" {
		return ours.Msg
	}
	return err.Error()
}

// ErrMissing marks that the path of the request itself does not exist.
var ErrMissing = errors.New("does not exist")

func missing(path string) error { return fmt.Errorf("%q %w", path, ErrMissing) }

func run(ctx context.Context, args []string, in io.Reader, out io.Writer) error {
	if len(args) != 3 {
		return errors.New(usage)
	}
	switch args[0] + " " + args[1] {
	case "files pack":
		return Pack(ctx, args[2], out)
	case "files unpack":
		return Unpack(ctx, args[2], in)
	case "login password":
		text, err := io.ReadAll(io.LimitReader(in, RequestMax))
		if err != nil {
			return err
		}
		return SetPassword(args[2], string(text))
	case "login keys":
		text, err := io.ReadAll(io.LimitReader(in, RequestMax))
		if err != nil {
			return err
		}
		return Authorize(args[2], strings.Split(string(text), "\n"))
	}
	return errors.New(usage)
}

// Pack writes the file or tree at path as a tar whose first entry is the
// path's last element. If that is a symbolic link it is written as one; a path
// that ends in "/" or "/." means what the link points to.
func Pack(ctx context.Context, path string, out io.Writer) error {
	if path == "" {
		return errors.New("the path is empty")
	}
	f, target, err := open(path)
	if errors.Is(err, unix.ENOENT) {
		return missing(path)
	}
	if err != nil {
		return fmt.Errorf("%q: %w", path, err)
	}
	defer f.Close()
	name := filepath.Base(filepath.Clean(path))
	if name == "/" || name == ".." {
		name = "."
	}
	w := bufio.NewWriterSize(out, buffer)
	tw := tar.NewWriter(w)
	err = treetar.Pack(ctx, tw, f, name, target)
	if e := tw.Close(); err == nil {
		err = e
	}
	return errors.Join(err, w.Flush())
}

func open(path string) (f *os.File, target string, err error) {
	if strings.HasSuffix(path, "/") || strings.HasSuffix(path, "/.") {
		f, err = os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY, 0)
		return f, "", err
	}
	return treetar.OpenEntry(unix.AT_FDCWD, path)
}

// Unpack writes a tar below dir, which must exist; dir may be a symbolic link
// to a folder.
func Unpack(ctx context.Context, dir string, in io.Reader) error {
	f, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY, 0)
	switch {
	case errors.Is(err, unix.ENOENT):
		return missing(dir)
	case errors.Is(err, unix.ENOTDIR):
		return fmt.Errorf("%q is not a folder", dir)
	case err != nil:
		return err
	}
	defer f.Close()
	r := bufio.NewReaderSize(in, buffer)
	if err := treetar.Unpack(ctx, tar.NewReader(r), f, nil); err != nil {
		return err
	}
	// Read what pads the end, so that the writer isn't cut off.
	_, err = io.Copy(io.Discard, r)
	return err
}
