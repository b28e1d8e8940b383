package qga

import (
	"context"
	"errors"
	"io"

	"lodge/internal/base/errs"
)

// ChunkMax is how much of a file one command carries, in bytes.
const ChunkMax = 128 << 10

// File is an open file of the guest.
type File struct {
	c      *Client
	ctx    context.Context
	handle int64
}

// Open opens a file of the guest's; mode is fopen(3)'s: "r", "w". It is used
// until ctx ends, and must be closed.
func (c *Client) Open(ctx context.Context, path, mode string) (*File, error) {
	f := &File{c: c, ctx: ctx}
	return f, c.Do(ctx, "guest-file-open", map[string]string{"path": path, "mode": mode}, &f.handle)
}

// Read reads what comes next.
func (f *File) Read(p []byte) (int, error) {
	var r struct {
		Count int    `json:"count"`
		Data  []byte `json:"buf-b64"`
		EOF   bool   `json:"eof"`
	}
	want := min(len(p), ChunkMax)
	err := f.c.Do(f.ctx, "guest-file-read", map[string]any{"handle": f.handle, "count": want}, &r)
	switch {
	case err != nil:
		return 0, err
	case len(r.Data) > want:
		return 0, silent(errTooLong)
	case len(r.Data) == 0 && r.EOF:
		return 0, io.EOF
	case len(r.Data) == 0:
		return 0, silent(errors.New("it reads nothing, and not the end"))
	}
	return copy(p, r.Data), nil
}

// Write writes all of p.
func (f *File) Write(p []byte) (n int, err error) {
	for n < len(p) {
		var r struct {
			Count int `json:"count"`
		}
		piece := p[n:min(len(p), n+ChunkMax)]
		if err := f.c.Do(f.ctx, "guest-file-write", map[string]any{"handle": f.handle, "buf-b64": piece}, &r); err != nil {
			return n, err
		}
		if r.Count <= 0 || r.Count > len(piece) {
			return n, &errs.Error{Op: "qga", Kind: errs.NoSpace, Msg: "the guest does not take more of the file"}
		}
		n += r.Count
	}
	return n, nil
}

// Close writes what is still on its way and closes the file, also when the
// context has ended.
func (f *File) Close() error {
	return f.c.Do(context.WithoutCancel(f.ctx), "guest-file-close", map[string]int64{"handle": f.handle}, nil)
}
