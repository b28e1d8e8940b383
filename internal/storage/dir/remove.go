package dir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"lodge/internal/base/ids"
)

// deepest is how many folders below each other are removed by recursion, each
// holding a descriptor. What a guest nested deeper is first moved up to the
// trash, so that no tree can exhaust the daemon.
const deepest = 200

// cleaner empties a trash directory in the background.
type cleaner struct {
	woken  chan struct{}
	cancel context.CancelFunc
	done   sync.WaitGroup
}

func newCleaner(trash string, log *slog.Logger) *cleaner {
	ctx, cancel := context.WithCancel(context.Background())
	c := &cleaner{woken: make(chan struct{}, 1), cancel: cancel}
	c.wake()
	c.done.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-c.woken:
			}
			if err := emptyTrash(ctx, trash); err != nil && ctx.Err() == nil {
				log.Warn("the trash could not be emptied; it is tried again with the next removal", "trash", trash, "err", err)
			}
		}
	})
	return c
}

func (c *cleaner) wake() {
	select {
	case c.woken <- struct{}{}:
	default:
	}
}

// stop returns when nothing is being removed any more. It may be called twice.
func (c *cleaner) stop() {
	c.cancel()
	c.done.Wait()
}

// emptyTrash removes everything in the folder trash, but not the folder.
func emptyTrash(ctx context.Context, trash string) error {
	t, err := os.Open(trash)
	if err != nil {
		return err
	}
	defer t.Close()
	r := remover{ctx: ctx, trash: int(t.Fd())}
	for again := 0; ; {
		r.moved, r.skipped = false, false
		if err := r.empty(t, 0); err != nil {
			return err
		}
		if !r.moved && !r.skipped {
			return nil
		}
		if !r.moved {
			if again++; again > 10 {
				return fmt.Errorf("somebody keeps writing into %s", trash)
			}
		}
		if _, err := t.Seek(0, io.SeekStart); err != nil {
			return err
		}
	}
}

type remover struct {
	ctx   context.Context
	trash int
	moved bool // a deep folder came up to the trash: it needs another round

	// Something appeared in a folder while it was emptied. Reading a folder
	// while removing from it may also skip an entry on some file systems.
	skipped bool
}

// empty removes all entries of dir. It never follows a symbolic link, since
// the names were made by a guest.
func (r *remover) empty(dir *os.File, depth int) error {
	for {
		if err := r.ctx.Err(); err != nil {
			return err
		}
		names, err := dir.Readdirnames(256)
		for _, name := range names {
			if err := r.remove(int(dir.Fd()), name, depth); err != nil {
				return fmt.Errorf("%s/%s: %w", dir.Name(), name, err)
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

func (r *remover) remove(parent int, name string, depth int) error {
	err := unix.Unlinkat(parent, name, 0)
	if err == nil || err == unix.ENOENT {
		return nil
	}
	if err != unix.EISDIR && err != unix.EPERM {
		return err
	}
	if err := unix.Unlinkat(parent, name, unix.AT_REMOVEDIR); err == nil || err == unix.ENOENT {
		return nil
	} else if err != unix.ENOTEMPTY && err != unix.EEXIST {
		return err
	}
	if depth >= deepest {
		r.moved = true
		return unix.Renameat(parent, name, r.trash, "deep."+ids.New())
	}
	fd, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	sub := os.NewFile(uintptr(fd), name)
	defer sub.Close()
	if err := r.empty(sub, depth+1); err != nil {
		return err
	}
	err = unix.Unlinkat(parent, name, unix.AT_REMOVEDIR)
	if err == unix.ENOTEMPTY || err == unix.EEXIST {
		r.skipped = true
		return nil
	}
	return err
}
