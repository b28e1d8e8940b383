package dir

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// fresh is how long a count is believed. A count that took long is believed
// twenty times as long as it took, so counting costs at most a twentieth of
// one core and disk, whatever guests put into their volumes.
const fresh = time.Minute

// usageCache remembers what was counted. Volumes are counted one at a time.
type usageCache struct {
	counting chan struct{} // holds one token: who has it counts
	mu       sync.Mutex
	known    map[string]counted
}

type counted struct {
	bytes uint64
	until time.Time
}

func newUsageCache() *usageCache {
	c := &usageCache{counting: make(chan struct{}, 1), known: map[string]counted{}}
	return c
}

func (c *usageCache) look(volume string) (uint64, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k, ok := c.known[volume]
	return k.bytes, ok && time.Now().Before(k.until)
}

func (c *usageCache) forget(volume string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.known, volume)
}

func (c *usageCache) get(ctx context.Context, volume, path string) (uint64, error) {
	if n, ok := c.look(volume); ok {
		return n, nil
	}
	select {
	case c.counting <- struct{}{}:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	defer func() { <-c.counting }()
	if n, ok := c.look(volume); ok { // somebody counted while we waited
		return n, nil
	}
	start := time.Now()
	n, err := count(ctx, path)
	if err != nil {
		return 0, err
	}
	took := time.Since(start)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.known[volume] = counted{bytes: n, until: time.Now().Add(max(fresh, 20*took))}
	return n, nil
}

// count returns the bytes allocated for everything below path. Files with
// several names count once; links are not followed; what vanishes meanwhile
// does not count; folders nested deeper than deepest are not entered.
func count(ctx context.Context, path string) (uint64, error) {
	d, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer d.Close()
	w := walker{ctx: ctx, linked: map[uint64]bool{}}
	err = w.walk(d, 0)
	return w.bytes, err
}

type walker struct {
	ctx    context.Context
	bytes  uint64
	linked map[uint64]bool // inodes with several names that were counted
}

func (w *walker) walk(dir *os.File, depth int) error {
	for {
		if err := w.ctx.Err(); err != nil {
			return err
		}
		names, err := dir.Readdirnames(256)
		for _, name := range names {
			if err := w.entry(int(dir.Fd()), name, depth); err != nil {
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

func (w *walker) entry(parent int, name string, depth int) error {
	var st unix.Stat_t
	err := unix.Fstatat(parent, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == unix.ENOENT {
		return nil
	}
	if err != nil {
		return err
	}
	isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	if !isDir && st.Nlink > 1 {
		if w.linked[st.Ino] {
			return nil
		}
		w.linked[st.Ino] = true
	}
	w.bytes += uint64(st.Blocks) * 512 // st_blocks is in units of 512 bytes on every file system
	if !isDir || depth >= deepest {
		return nil
	}
	fd, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT || err == unix.ENOTDIR || err == unix.ELOOP {
		return nil
	}
	if err != nil {
		return err
	}
	sub := os.NewFile(uintptr(fd), name)
	defer sub.Close()
	return w.walk(sub, depth+1)
}
