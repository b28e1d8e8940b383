package guest

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lodge/api"
	"lodge/api/client"
	"lodge/internal/cli"
)

func newCp(f *cli.Factory) *cobra.Command {
	return &cobra.Command{
		Use: "cp SOURCE TARGET", Short: "Copy files into or out of a guest",
		Long: `Copy a file or a tree between here and a guest, written GUEST:PATH, with modes,
times, links and (as root) owners by number.

As with docker cp: a tree goes into a target directory that exists under its own
name, and becomes the target if that does not exist; SOURCE/. is the contents of
SOURCE. "-" is a tar on the standard input or output. Set-user-id bits and devices
are not brought out of a guest.`,
		Example: `  lodge cp site/. web1:/var/www/html
  lodge cp web1:/var/log/syslog .
  lodge cp web1:/etc - | tar t`,
		Args: cli.Named("SOURCE", "TARGET"),
		RunE: func(cmd *cobra.Command, args []string) error {
			from, to := place(args[0]), place(args[1])
			if (from.guest == "") == (to.guest == "") {
				return cli.Usagef(cmd, "one of SOURCE and TARGET must be GUEST:PATH, and only one")
			}
			c, err := f.Client()
			if err != nil {
				return err
			}
			if err := awaitBoot(cmd.Context(), f, c, from.guest+to.guest); err != nil {
				return err
			}
			if from.guest != "" {
				return copyOut(cmd.Context(), f, c, from, to.path)
			}
			return copyIn(cmd.Context(), f, c, from.path, to)
		},
	}
}

// awaitBoot waits on a terminal until a guest that boots says that it is up.
func awaitBoot(ctx context.Context, f *cli.Factory, c *client.Client, guest string) error {
	for deadline, told := time.Now().Add(bootPatience*time.Second), false; f.Streams.ErrTTY && time.Now().Before(deadline); told = true {
		g, err := c.Guest(ctx, guest)
		if err != nil || g.Phase != "running" || g.Ready {
			return err
		}
		if !told {
			f.Streams.Notef("%s is not up yet; waiting for it", guest)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(250 * time.Millisecond):
		}
	}
	return nil
}

// location is a path here, or in a guest.
type location struct{ guest, path string }

// place reads GUEST:PATH. As with docker, a path with a colon is written ./a:b.
func place(s string) location {
	guest, p, ok := strings.Cut(s, ":")
	if !ok || guest == "" || strings.ContainsAny(guest, "/.") {
		return location{path: s}
	}
	if !strings.HasPrefix(p, "/") {
		p = "/" + p
	}
	return location{guest: guest, path: p}
}

// target is where a tree goes: into dir, as name; "." is its contents.
type target struct{ dir, name string }

// found is what is at a path.
type found int

const (
	nothing found = iota
	aFile
	aDir
)

// decide applies docker's rules. source and to are as they were written; base is
// the source's own name.
func decide(source, base string, sourceDir bool, to string, at found) (target, error) {
	contents := sourceDir && (strings.HasSuffix(source, "/.") || source == "." || base == "/" || base == ".")
	whole := strings.TrimRight(to, "/")
	switch {
	case at == aDir && contents:
		return target{to, "."}, nil
	case at == aDir:
		return target{to, base}, nil
	case at == aFile && sourceDir:
		return target{}, bad(to, "is a file and cannot take a directory")
	case strings.HasSuffix(to, "/") && !sourceDir:
		return target{}, bad(to, "is not a directory")
	}
	return target{path.Dir(whole), path.Base(whole)}, nil
}

func bad(ref, detail string) error {
	return &api.Error{Kind: api.KindInvalid, Ref: ref, Detail: detail}
}

// copyOut copies from a guest to here.
func copyOut(ctx context.Context, f *cli.Factory, c *client.Client, from location, to string) error {
	r, err := c.ReadFiles(ctx, from.guest, path.Clean(from.path))
	if err != nil {
		return err
	}
	defer r.Close()
	if to == "-" {
		_, err := io.Copy(f.Streams.Out, r)
		return err
	}
	in := tar.NewReader(r)
	first, err := in.Next()
	if errors.Is(err, io.EOF) {
		return bad(from.guest+":"+from.path, "nothing came")
	}
	if err != nil {
		return fmt.Errorf("read the guest's files: %w", err)
	}
	at := nothing
	if fi, err := os.Stat(to); err == nil {
		at = aFile
		if fi.IsDir() {
			at = aDir
		}
	}
	where, err := decide(from.path, path.Base(path.Clean(from.path)), first.Typeflag == tar.TypeDir, to, at)
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(where.dir)
	if err != nil {
		return err
	}
	defer root.Close()
	return unpack(ctx, root, where.name, first, in, f.Streams.Warnf)
}

// copyIn copies from here into a guest.
func copyIn(ctx context.Context, f *cli.Factory, c *client.Client, from string, to location) error {
	if from == "-" {
		return c.WriteFiles(ctx, to.guest, path.Clean(to.path), f.Streams.In)
	}
	fi, err := os.Lstat(from)
	if err == nil && fi.Mode()&fs.ModeSymlink != 0 && strings.HasSuffix(from, "/") {
		fi, err = os.Stat(from)
	}
	if err != nil {
		return err
	}
	at, err := guestPath(ctx, c, to.guest, path.Clean(to.path))
	if err != nil {
		return err
	}
	absolute, err := filepath.Abs(from)
	if err != nil {
		return err
	}
	where, err := decide(from, filepath.Base(absolute), fi.IsDir(), to.path, at)
	if err != nil {
		return err
	}
	r, w := io.Pipe()
	packed := make(chan error, 1)
	go func() {
		err := pack(ctx, w, absolute, where.name, f.Streams.Warnf)
		w.CloseWithError(err)
		packed <- err
	}()
	err = c.WriteFiles(ctx, to.guest, path.Clean(where.dir), r)
	r.CloseWithError(errStopped) // the packer may still be writing
	if perr := <-packed; perr != nil && !errors.Is(perr, errStopped) {
		return perr // what was wrong here explains what went wrong there
	}
	return err
}

var errStopped = errors.New("lodged took no more")

// guestPath looks what is at a path of a guest: the first entry of its tar says.
func guestPath(ctx context.Context, c *client.Client, guest, p string) (found, error) {
	if p == "/" {
		return aDir, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // only the beginning is wanted
	r, err := c.ReadFiles(ctx, guest, p)
	if isKind(err, api.KindNotFound) {
		if _, err := c.Guest(ctx, guest); err != nil {
			return nothing, err
		}
		return nothing, nil
	}
	if err != nil {
		return nothing, err
	}
	defer r.Close()
	first, err := tar.NewReader(r).Next()
	if err != nil {
		return nothing, fmt.Errorf("read the guest's files: %w", err)
	}
	switch first.Typeflag {
	case tar.TypeDir:
		return aDir, nil
	case tar.TypeSymlink:
		next := first.Linkname
		if !path.IsAbs(next) {
			next = path.Join(path.Dir(p), next)
		}
		return guestLink(ctx, c, guest, path.Clean(next))
	}
	return aFile, nil
}

// guestLink looks behind one symbolic link. A link to a link is taken as a file,
// so that a circle ends.
func guestLink(ctx context.Context, c *client.Client, guest, p string) (found, error) {
	r, err := c.ReadFiles(ctx, guest, p)
	if err != nil {
		return aFile, nil
	}
	defer r.Close()
	if first, err := tar.NewReader(r).Next(); err == nil && first.Typeflag == tar.TypeDir {
		return aDir, nil
	}
	return aFile, nil
}
