// Package trees copies, counts and empties trees of files that somebody hostile
// may have made: no link in them is followed, and no depth, number or kind of
// files exhausts more than the time it takes.
package trees

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// mostOpen is how many levels of a tree are open at once. Those above are
// opened again, by "..", on the way back.
const mostOpen = 64

// inode tells files of one or several file systems apart.
type inode struct{ dev, ino uint64 }

func inodeOf(st *unix.Stat_t) inode { return inode{st.Dev, st.Ino} }

// level is a folder on the way from the root to where a walk is.
type level struct {
	above *level
	name  string // in the folder above
	depth int
	src   int // -1 while it is closed
	dst   int // where it is copied to; -1 while it is closed, or if nothing is copied
	st    unix.Stat_t
	dstID inode
	subs  []string // folders in it that are still to be entered
}

// walker visits every file of a tree once. The tree must not change meanwhile.
type walker struct {
	ctx   context.Context
	file  func(at *level, name string, st *unix.Stat_t) error // everything but folders
	enter func(l *level) error                                // may be nil
	leave func(l *level) error                                // when all below it is done
}

// walk goes through what is below the folder src. dst is -1 if nothing is
// copied. Both stay open.
func (w *walker) walk(src, dst int) error {
	root := &level{src: src, dst: dst}
	if err := unix.Fstat(src, &root.st); err != nil {
		return err
	}
	if err := w.read(root); err != nil {
		return err
	}
	for at := root; ; {
		if len(at.subs) > 0 {
			name := at.subs[len(at.subs)-1]
			at.subs = at.subs[:len(at.subs)-1]
			below, err := w.descend(at, name)
			if err != nil {
				return w.abandon(at, err)
			}
			at = below
			continue
		}
		if err := w.leave(at); err != nil {
			return w.abandon(at, err)
		}
		if at == root {
			return nil
		}
		if err := reopen(at.above, at); err != nil {
			return w.abandon(at, err)
		}
		above := at.above
		shut(at)
		at = above
	}
}

// abandon closes what is open and says where the walk ended.
func (w *walker) abandon(at *level, err error) error {
	where := at.path()
	for l := at; l.above != nil; l = l.above {
		shut(l)
	}
	if where == "" || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return fmt.Errorf("in %q: %w", where, err)
}

func shut(l *level) {
	if l.src >= 0 {
		unix.Close(l.src)
	}
	if l.dst >= 0 {
		unix.Close(l.dst)
	}
	l.src, l.dst = -1, -1
}

const folderFlags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC

// descend opens the folder name in at and visits the files in it.
func (w *walker) descend(at *level, name string) (*level, error) {
	l := &level{above: at, name: name, depth: at.depth + 1, src: -1, dst: -1}
	var err error
	if l.src, err = unix.Openat(at.src, name, folderFlags, 0); err != nil {
		return nil, fmt.Errorf("%q: %w", name, err)
	}
	err = unix.Fstat(l.src, &l.st)
	if err == nil && w.enter != nil {
		err = w.enter(l)
	}
	if err == nil {
		err = w.read(l)
	}
	if err != nil {
		shut(l)
		return nil, err
	}
	up := l
	for range mostOpen {
		if up = up.above; up == nil {
			return l, nil
		}
	}
	if up.above != nil { // the root is the caller's
		shut(up)
	}
	return l, nil
}

// reopen opens a folder that was closed on the way down, from one in it.
func reopen(l, below *level) error {
	if l.src >= 0 {
		return nil
	}
	var err error
	if l.src, err = unix.Openat(below.src, "..", folderFlags, 0); err != nil {
		return err
	}
	if err := sameFolder(l.src, inodeOf(&l.st)); err != nil {
		return err
	}
	if below.dst < 0 {
		return nil
	}
	if l.dst, err = unix.Openat(below.dst, "..", folderFlags, 0); err != nil {
		return err
	}
	return sameFolder(l.dst, l.dstID)
}

func sameFolder(fd int, want inode) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if inodeOf(&st) != want {
		return errors.New("the tree was changed meanwhile")
	}
	return nil
}

// read visits the files in l and notes the folders. Of many entries only the
// folders are held in memory.
func (w *walker) read(l *level) error {
	fd, err := unix.Openat(l.src, ".", folderFlags, 0)
	if err != nil {
		return err
	}
	dir := os.NewFile(uintptr(fd), l.name)
	defer dir.Close()
	for {
		if err := w.ctx.Err(); err != nil {
			return err
		}
		names, err := dir.Readdirnames(512)
		for _, name := range names {
			if err := w.visit(l, name); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (w *walker) visit(l *level, name string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(l.src, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("%q: %w", name, err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		l.subs = append(l.subs, name)
		return nil
	}
	if err := w.file(l, name, &st); err != nil {
		return fmt.Errorf("%q: %w", name, err)
	}
	return nil
}

// path is where a folder is below the root, cut to what a person reads.
func (l *level) path() string {
	p := ""
	for ; l != nil && l.above != nil; l = l.above {
		if len(p) > 200 {
			return "..." + p
		}
		p = "/" + l.name + p
	}
	return p
}
