package trees

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Size is how much a tree holds. Files with several names count once.
type Size struct {
	Files uint64 // of any kind, folders included
	Bytes uint64 // allocated for content
}

// Count walks the tree below dir.
func Count(ctx context.Context, dir *os.File) (Size, error) {
	var s Size
	linked := map[inode]bool{}
	w := walker{ctx: ctx,
		file: func(_ *level, _ string, st *unix.Stat_t) error {
			if st.Nlink > 1 {
				if linked[inodeOf(st)] {
					return nil
				}
				linked[inodeOf(st)] = true
			}
			s.Files++
			s.Bytes += uint64(st.Blocks) * 512 // the unit of st_blocks on every file system
			return nil
		},
		leave: func(l *level) error {
			s.Files++
			s.Bytes += uint64(l.st.Blocks) * 512
			return nil
		},
	}
	err := w.walk(int(dir.Fd()), -1)
	return s, err
}

// Clear removes everything in dir, but not dir. It may be cut off anywhere and
// called again.
func Clear(ctx context.Context, dir *os.File) error {
	w := walker{ctx: ctx,
		file: func(at *level, name string, _ *unix.Stat_t) error {
			return unix.Unlinkat(at.src, name, 0)
		},
		leave: func(l *level) error {
			if l.above == nil {
				return nil
			}
			if err := reopen(l.above, l); err != nil {
				return err
			}
			return unix.Unlinkat(l.above.src, l.name, unix.AT_REMOVEDIR)
		},
	}
	// Reading a folder while removing from it may skip entries on some file
	// systems.
	for range 10 {
		err := w.walk(int(dir.Fd()), -1)
		if err != nil && !errors.Is(err, unix.ENOTEMPTY) {
			return err
		}
		if _, err := dir.Seek(0, io.SeekStart); err != nil {
			return err
		}
		if _, err := dir.Readdirnames(1); errors.Is(err, io.EOF) {
			return nil
		}
	}
	return fmt.Errorf("somebody keeps writing into %s", dir.Name())
}
