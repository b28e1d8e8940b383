package keepd

import (
	"os"
	"syscall"

	"lodge/internal/keeper"
)

// defaultLogMax is how long a console's log may become when nothing else was
// asked: a long boot is under 100 KiB.
const defaultLogMax = 1 << 20

// rotating is a file that keeps the newest output: at most max bytes, and what
// was before them in a second file of the same name with ".1" added. The zero
// value keeps nothing.
type rotating struct {
	path   string
	max    int64
	file   *os.File // nil until the first write
	size   int64
	failed bool // told once
}

func newRotating(path string, limit int64) *rotating {
	if limit <= 0 {
		limit = defaultLogMax
	}
	return &rotating{path: path, max: limit}
}

// begin notes that another program's output comes now. A failure costs no output,
// but its beginning will not be known.
func (r *rotating) begin() error {
	if r.path == "" {
		return nil
	}
	if err := r.open(); err != nil {
		return err
	}
	defer r.close() // many programs never say anything
	return keeper.MarkRun(r.file)
}

func (r *rotating) write(b []byte) error {
	for len(b) > 0 && r.path != "" {
		if r.file == nil {
			if err := r.open(); err != nil {
				return err
			}
		}
		part := b[:min(int64(len(b)), max(0, r.max-r.size))]
		n, err := r.file.Write(part)
		r.size += int64(n)
		if err != nil {
			return err
		}
		if b = b[n:]; len(b) == 0 {
			return nil
		}
		r.close()
		if err := os.Rename(r.path, r.path+".1"); err != nil {
			return err
		}
	}
	return nil
}

func (r *rotating) open() error {
	f, err := os.OpenFile(r.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return err
	}
	r.file, r.size = f, info.Size()
	return nil
}

func (r *rotating) close() {
	if r.file != nil {
		r.file.Close()
		r.file, r.size = nil, 0
	}
}
