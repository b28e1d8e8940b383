package qemu

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"strings"

	"lodge/internal/base/proc"
)

// mapping is a part of a process's memory.
type mapping struct {
	proc.Range
	rights string // as in "rw-p"
	offset uint64 // in the file
	name   string // of the file; empty for memory of no file
}

// mappings are those of a process that wanted says true of, from its
// /proc/PID/maps.
func mappings(maps string, wanted func(mapping) bool) (all []mapping, err error) {
	f, err := os.Open(maps)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		a, err := parseMapping(lines.Text())
		if err != nil {
			return nil, fmt.Errorf("%s: %w", maps, err)
		}
		if wanted(a) {
			all = append(all, a)
		}
	}
	return all, lines.Err()
}

func parseMapping(line string) (a mapping, err error) {
	var device string
	var inode uint64
	if _, err := fmt.Sscanf(line, "%x-%x %s %x %s %d", &a.Start, &a.End, &a.rights, &a.offset, &device, &inode); err != nil {
		return a, err
	}
	if f := strings.SplitN(line, " ", 6); len(f) == 6 { // the name may have spaces
		a.name = strings.TrimLeft(f[5], " ")
	}
	return a, nil
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

// isOwn reports whether an entry is of a page that is the process's own.
func isOwn(entry uint64) bool { return entry&(pageThere|pageSwapped) != 0 && entry&pageOfFile == 0 }

// own tells use of the pages of a mapping that are the process's own, in runs of
// at most pagesAtOnce. pages is its /proc/PID/pagemap.
func (a mapping) own(ctx context.Context, pages *os.File, use func(proc.Range) error) error {
	entries := make([]byte, pagesAtOnce*entrySize)
	for at := a.Start; at < a.End; {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		n := min((a.End-at)/pageSize, pagesAtOnce)
		if _, err := pages.ReadAt(entries[:n*entrySize], int64(at/pageSize*entrySize)); err != nil {
			return err
		}
		for i := uint64(0); i < n; {
			j := i
			for j < n && isOwn(binary.NativeEndian.Uint64(entries[j*entrySize:])) {
				j++
			}
			if j == i {
				i++
				continue
			}
			if err := use(proc.Range{Start: at + i*pageSize, End: at + j*pageSize}); err != nil {
				return err
			}
			i = j
		}
		at += n * pageSize
	}
	return nil
}
