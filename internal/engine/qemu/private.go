package qemu

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

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
	all, err := mappings(in("maps"), file)
	if err != nil {
		return err
	}
	var sum uint64
	for _, a := range all {
		sum += a.end - a.start
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

// mapping is where a process has a part of a file.
type mapping struct{ start, end, offset uint64 }

// mappings are the private ones of a file that a process can write to.
func mappings(maps, file string) (all []mapping, err error) {
	f, err := os.Open(maps)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		var a mapping
		var rights, device string
		var inode uint64
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x %s %x %s %d", &a.start, &a.end, &rights, &a.offset, &device, &inode); err != nil {
			return nil, fmt.Errorf("%s: %w", maps, err)
		}
		if rights == "rw-p" && strings.HasSuffix(lines.Text(), " "+file) {
			all = append(all, a)
		}
	}
	return all, lines.Err()
}

// Of /proc/PID/pagemap, Documentation/admin-guide/mm/pagemap.rst.
const (
	pageThere   = 1 << 63
	pageSwapped = 1 << 62
	pageOfFile  = 1 << 61
	entrySize   = 8
	// pagesAtOnce is how many entries are read at a time.
	pagesAtOnce = 256
)

// own reports whether an entry is of a page that is the process's own.
func own(entry uint64) bool { return entry&(pageThere|pageSwapped) != 0 && entry&pageOfFile == 0 }

func (a mapping) copyChanged(ctx context.Context, to, memory, pages *os.File) error {
	entries, content := make([]byte, pagesAtOnce*entrySize), make([]byte, pagesAtOnce*pageSize)
	for at := a.start; at < a.end; {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		n := min((a.end-at)/pageSize, pagesAtOnce)
		if _, err := pages.ReadAt(entries[:n*entrySize], int64(at/pageSize*entrySize)); err != nil {
			return err
		}
		for i := uint64(0); i < n; {
			j := i
			for j < n && own(binary.NativeEndian.Uint64(entries[j*entrySize:])) {
				j++
			}
			if j == i {
				i++
				continue
			}
			run, from := content[:(j-i)*pageSize], at+i*pageSize
			if _, err := memory.ReadAt(run, int64(from)); err != nil {
				return err
			}
			if _, err := to.WriteAt(run, int64(from-a.start+a.offset)); err != nil {
				return err
			}
			i = j
		}
		at += n * pageSize
	}
	return nil
}
