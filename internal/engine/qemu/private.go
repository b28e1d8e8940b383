package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"lodge/internal/base/proc"
	"lodge/internal/engine/qemu/qmp"
	"lodge/internal/launch"
)

// saveBare has QEMU write the devices of a guest whose memory is private. The
// ordinary way would write the memory with them.
func (m *Machine) saveBare(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, saveTime)
	defer cancel()
	return create(path, func(f *os.File) error {
		only, err := os.OpenFile(path, os.O_WRONLY, 0) // QEMU takes no descriptor that can do more
		if err != nil {
			return err
		}
		defer only.Close()
		return m.link.with(ctx, func(ctx context.Context, c *qmp.Client) error {
			set, err := c.AddFile(ctx, fdState, only)
			if err != nil {
				return err
			}
			err = c.Do(ctx, "xen-save-devices-state", map[string]any{"filename": fmt.Sprintf("/dev/fdset/%d", set), "live": false}, nil)
			return errors.Join(err, c.Do(ctx, "remove-fd", map[string]any{"fdset-id": set}, nil))
		})
	})
}

// saveChanged writes the memory of a guest that went on from an image: the image,
// which a file system that can shares with the copy, and what the guest changed.
func (m *Machine) saveChanged(ctx context.Context, path string, size uint64) error {
	image, err := launch.Take(m.held, descriptorOf(memoryAt))
	if err != nil {
		return err
	}
	defer image.Close()
	err = create(path, func(to *os.File) error {
		if unix.IoctlFileClone(int(to.Fd()), int(image.Fd())) != nil {
			if err := copySparse(ctx, to, image); err != nil {
				return err
			}
		}
		return copyChanged(ctx, to, m.held.State().Pid, descriptorOf(memoryAt), size)
	})
	return about("memory of "+m.g.Name, err)
}

// copyChanged writes to to the pages of its own that a process has where it maps
// a file privately, which is open there as descriptor fd: size bytes of it.
func copyChanged(ctx context.Context, to *os.File, pid, fd int, size uint64) error {
	in := func(name string) string { return fmt.Sprintf("/proc/%d/%s", pid, name) }
	file, err := os.Readlink(in(fmt.Sprintf("fd/%d", fd)))
	if err != nil {
		return err
	}
	all, err := mappings(in("maps"), func(a mapping) bool { return a.rights == "rw-p" && a.name == file })
	if err != nil {
		return err
	}
	var sum uint64
	for _, a := range all {
		sum += a.End - a.Start
	}
	if sum != size {
		return fmt.Errorf("QEMU maps %d bytes of it, not %d", sum, size)
	}
	memory, err := os.Open(in("mem"))
	if err != nil {
		return err
	}
	defer memory.Close()
	pages, err := os.Open(in("pagemap"))
	if err != nil {
		return err
	}
	defer pages.Close()
	for _, a := range all {
		if err := a.copyChanged(ctx, to, memory, pages); err != nil {
			return err
		}
	}
	return nil
}

func (a mapping) copyChanged(ctx context.Context, to, memory, pages *os.File) error {
	content := make([]byte, pagesAtOnce*pageSize)
	return a.own(ctx, pages, func(r proc.Range) error {
		run := content[:r.End-r.Start]
		if _, err := memory.ReadAt(run, int64(r.Start)); err != nil {
			return err
		}
		_, err := to.WriteAt(run, int64(r.Start-a.Start+a.offset))
		return err
	})
}
