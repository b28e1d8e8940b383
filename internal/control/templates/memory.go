package templates

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// shown is the folder by which engines are given a template's memory.
func (t *Templates) shown(key string) string { return filepath.Join(t.RunDir, key) }

// use makes a template's memory ready to be mapped and returns the folder to
// hand to an engine. Callers hold mu.
func (t *Templates) use(h *template) (string, error) {
	at := t.shown(h.key)
	if h.ram != nil {
		return at, nil
	}
	from, err := os.Open(filepath.Join(t.memory(h.key), ramFile))
	if errors.Is(err, os.ErrNotExist) {
		return t.memory(h.key), nil
	}
	if err != nil {
		return "", err
	}
	defer from.Close()
	ram, err := sealed(from)
	if err != nil {
		return "", fmt.Errorf("reading a template's memory: %w", err)
	}
	if err := t.show(h.key, ram); err != nil {
		return "", errors.Join(err, ram.Close())
	}
	h.ram = ram
	return at, nil
}

// show makes a folder that holds what the template's does, but the sealed file
// for its memory.
func (t *Templates) show(key string, ram *os.File) error {
	at := t.shown(key)
	if err := os.RemoveAll(at); err != nil {
		return err
	}
	if err := os.MkdirAll(at, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(t.memory(key))
	if err != nil {
		return err
	}
	for _, e := range entries {
		target := filepath.Join(t.memory(key), e.Name())
		if e.Name() == ramFile {
			target = filepath.Join("/proc", strconv.Itoa(os.Getpid()), "fd", strconv.Itoa(int(ram.Fd())))
		}
		if err := os.Symlink(target, filepath.Join(at, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// sealed returns a file in memory with the content of from that nobody can
// change any more. Private mappings of it can still be written to: each writer
// gets pages of its own.
func sealed(from *os.File) (*os.File, error) {
	st, err := from.Stat()
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("lodge-template", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, err
	}
	to := os.NewFile(uintptr(fd), "template")
	err = to.Truncate(st.Size())
	if err == nil {
		err = copyData(to, from, st.Size())
	}
	if err == nil {
		_, err = unix.FcntlInt(to.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
	}
	if err != nil {
		return nil, errors.Join(err, to.Close())
	}
	return to, nil
}

// copyData copies what from holds and leaves its holes out.
func copyData(to, from *os.File, size int64) error {
	for at := int64(0); at < size; {
		start, err := unix.Seek(int(from.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil
		}
		if err != nil {
			return err
		}
		end, err := unix.Seek(int(from.Fd()), start, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.NewOffsetWriter(to, start), io.NewSectionReader(from, start, end-start)); err != nil {
			return err
		}
		at = end
	}
	return nil
}

// allocated is how many bytes of a file take space.
func allocated(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, err
	}
	return uint64(st.Blocks) * 512, nil
}
