package qemu

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
	"lodge/internal/engine/qemu/qmp"
	"lodge/internal/launch"
)

// Save writes the guest's memory and devices to dir, from which Parts.Memory
// continues it. The guest must be paused.
func (m *Machine) Save(ctx context.Context, dir string) error {
	l := m.link
	l.device.Lock()
	defer l.device.Unlock()
	l.mu.Lock()
	paused := paused(l.status)
	l.mu.Unlock()
	if !paused {
		return &errs.Error{Op: "qemu.save", Kind: errs.Conflict, Ref: m.g.Key().String(), Msg: "it must be paused to be saved", Hint: "lodge pause " + m.g.Name}
	}
	if err := l.saveAgain(ctx); err != nil {
		return m.about(err)
	}
	w, err := l.machine(ctx)
	if err != nil {
		return m.about(err)
	}
	w.Image = newImage()
	devices, ram := filepath.Join(dir, savedDevices), filepath.Join(dir, savedMemory)
	switch {
	case w.Private && w.added():
		// QEMU can leave out all of the memory or none of it, and only what it
		// was started with is an image.
		w.Image = ""
		err = m.saveDevices(ctx, devices, false)
	case w.Private:
		w.Bare = true
		if err = m.saveBare(ctx, devices); err == nil {
			err = m.saveChanged(ctx, ram, w.Memory)
		}
	default:
		if err = m.saveDevices(ctx, devices, true); err == nil {
			err = m.saveMemory(ctx, ram)
		}
	}
	if err != nil {
		return m.about(err)
	}
	w.Private = false // which of its memory is an image shows when it goes on
	text, err := json.Marshal(w)
	if err != nil {
		return err
	}
	if w.Image != "" {
		m.e.images.keep(w.Image, ram)
	}
	// Last of all: without it the rest is nothing.
	return create(filepath.Join(dir, savedMachine), func(f *os.File) error {
		_, err := f.Write(text)
		return err
	})
}

// saveAgain makes a guest that was saved, and stood still since, one that can be
// saved: QEMU says no to that until the guest has run, be it for a moment.
func (l *link) saveAgain(ctx context.Context) error {
	var s struct{ Status string }
	if err := l.do(ctx, "query-status", nil, &s); err != nil || s.Status != "postmigrate" {
		return err
	}
	if err := l.do(ctx, "cont", nil, nil); err != nil {
		return err
	}
	if err := l.do(ctx, "stop", nil, nil); err != nil {
		return err
	}
	l.note(func() { l.status = "paused" })
	return nil
}

// create writes a new file that is on the disk when it returns.
func create(path string, write func(f *os.File) error) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(write(f), f.Sync(), f.Close())
}

// saveTime is how long QEMU may take to write a guest's devices, and, where
// its memory is private, that.
const saveTime = 10 * time.Minute

// saveDevices has QEMU write its state to a file, without the memory if that
// is a file of its own.
func (m *Machine) saveDevices(ctx context.Context, path string, ignoreRAM bool) error {
	ctx, cancel := context.WithTimeout(ctx, saveTime)
	defer cancel()
	return create(path, func(f *os.File) error {
		err := m.link.with(ctx, func(ctx context.Context, c *qmp.Client) error {
			if err := c.Do(ctx, "migrate-set-capabilities", capabilities("x-ignore-shared", ignoreRAM), nil); err != nil {
				return err
			}
			if err := c.Do(ctx, "migrate-set-parameters", map[string]any{"max-bandwidth": noLimit}, nil); err != nil {
				return err
			}
			if err := c.PassFile(ctx, fdState, f); err != nil {
				return err
			}
			return c.Do(ctx, "migrate", map[string]any{"uri": "fd:" + fdState}, nil)
		})
		if err != nil {
			return err
		}
		return m.link.migrated(ctx)
	})
}

// noLimit is more bytes a second than any disk takes.
const noLimit = 1 << 40

// migrated waits until QEMU has written all.
func (l *link) migrated(ctx context.Context) error {
	const pace = 5 * time.Millisecond
	for {
		var s struct {
			Status string `json:"status"`
			Why    string `json:"error-desc"`
		}
		if err := l.do(ctx, "query-migrate", nil, &s); err != nil {
			return err
		}
		switch s.Status {
		case "completed":
			return nil
		case "failed", "cancelled":
			return &errs.Error{Op: "qemu.save", Kind: errs.Internal, Msg: "QEMU could not write the guest's state: " + s.Why}
		}
		select {
		case <-ctx.Done():
			_ = l.do(context.WithoutCancel(ctx), "migrate_cancel", nil, nil)
			return ctx.Err()
		case <-time.After(pace):
		}
	}
}

// about says what an error is of.
func about(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}

// saveMemory copies the guest's memory, without what it never touched.
func (m *Machine) saveMemory(ctx context.Context, path string) error {
	from, err := launch.Take(m.held, descriptorOf(memoryAt))
	if err != nil {
		return err
	}
	defer from.Close()
	err = create(path, func(to *os.File) error { return copySparse(ctx, to, from) })
	return about("memory of "+m.g.Name, err)
}

// copySparse makes to the same as from, with holes where from has holes or
// nothing but zeros.
func copySparse(ctx context.Context, to, from *os.File) error {
	size, err := from.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	if err := to.Truncate(size); err != nil {
		return err
	}
	b := make([]byte, 256<<10)
	for at := int64(0); at < size; {
		if at, err = unix.Seek(int(from.Fd()), at, unix.SEEK_DATA); errors.Is(err, unix.ENXIO) {
			return nil
		}
		if err != nil {
			return err
		}
		end, err := unix.Seek(int(from.Fd()), at, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		for at < end {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			n, err := from.ReadAt(b[:min(int64(len(b)), end-at)], at)
			if n == 0 && err != nil {
				return err
			}
			if err := writePages(to, b[:n], at); err != nil {
				return err
			}
			at += int64(n)
		}
	}
	return nil
}

// pageSize is what zeros are looked for in.
const pageSize = 4096

// writePages writes b but for pages of zeros, in as few calls as that takes.
func writePages(to *os.File, b []byte, at int64) error {
	start := -1 // of what is to be written
	flush := func(end int) error {
		if start < 0 {
			return nil
		}
		_, err := to.WriteAt(b[start:end], at+int64(start))
		start = -1
		return err
	}
	for i := 0; i < len(b); i += pageSize {
		zero := isZero(b[i:min(i+pageSize, len(b))])
		if zero {
			if err := flush(i); err != nil {
				return err
			}
		} else if start < 0 {
			start = i
		}
	}
	return flush(len(b))
}

// zeros is compared with: the library does that many bytes at a time.
var zeros [pageSize]byte

func isZero(b []byte) bool { return bytes.Equal(b, zeros[:len(b)]) }

// Renew makes a guest that was copied from another the one of its record. Of an
// unmodified guest only the clock is Lodge's to set, where it lets somebody.
func (m *Machine) Renew(ctx context.Context) error {
	if err := m.awake(); err != nil {
		return err
	}
	if m.link.agent == nil {
		m.link.theirs.setClock()
		return nil
	}
	return m.about(m.link.agent.Renew(ctx, config(m.g, m.parts)))
}

// restFor is how long a guest's file systems rest at most. It goes on by itself
// when the host forgets it.
const restFor = 10 * time.Second

// Quiesce brings the guest's file systems to rest.
func (m *Machine) Quiesce(ctx context.Context) (release func() error, err error) {
	a, err := m.voice()
	if err != nil {
		return nil, err
	}
	release, err = a.Freeze(ctx, restFor)
	return release, m.about(err)
}
