package daemon

import (
	"errors"
	"log/slog"
	"sync"
	"time"

	"lodge/internal/base/errs"
	"lodge/internal/base/zram"
	"lodge/internal/doctor"
)

// compressedShare is the part of the host's memory whose pages may be kept
// compressed, when nobody says how much: one in so many bytes. To be able to
// costs some 20 bytes of memory for each page, which is why it is not all of it.
const compressedShare = 4

// How long it is not tried again to have swap space where it could not be had,
// and how often what pages that came back have left behind is cleared away.
const (
	compressionRetry = time.Minute
	compactEvery     = time.Minute
)

// compression is the host's compressed swap space, which is made when it is
// needed for the first time: a host without translated guests is left as it is.
type compression struct {
	size uint64 // bytes of pages; 0: none is wanted
	log  *slog.Logger

	mu        sync.Mutex
	swap      *zram.Swap
	tried     time.Time
	compacted time.Time
	err       error // why there is none
}

// openCompression decides how much may be compressed, and holds on to what an
// earlier daemon's guests have there. While everything goes down nothing is.
func (d *daemon) openCompression() (err error) {
	d.compression.log = d.log
	if d.down {
		return nil
	}
	if d.compression.size, err = orShare(d.opt.Compressed, compressedShare); err != nil || d.compression.size == 0 {
		return err
	}
	if d.compression.swap, err = zram.Find(); err != nil {
		d.log.Warn("the host's compressed memory cannot be looked at", "error", err)
	}
	return nil
}

// takes reports whether what is swapped out now is compressed.
func (c *compression) takes() bool {
	if c.size == 0 {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.swap.Takes() {
		if time.Since(c.compacted) > compactEvery {
			c.compacted = time.Now()
			_ = c.swap.Compact()
		}
		return true
	}
	if time.Since(c.tried) < compressionRetry {
		return false
	}
	c.tried = time.Now()
	_ = c.swap.Close() // it was taken away, or is full
	before := c.err
	if c.swap, c.err = zram.Open(c.size); c.err != nil && before == nil {
		c.log.Warn("idle guests keep their memory", "error", c.err)
	}
	return c.swap.Takes()
}

func (c *compression) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.swap.Close()
}

// seen is what the doctor is told.
func (c *compression) seen() doctor.Compression {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := doctor.Compression{Wanted: c.size > 0}
	if e, ok := errors.AsType[*errs.Error](c.err); ok {
		s.Lack, s.Fix = e.Words(), e.Hint
		return s
	}
	if c.err != nil {
		s.Lack = c.err.Error()
		return s
	}
	if u, err := c.swap.Usage(); err == nil {
		s.Usage = u
	}
	return s
}
