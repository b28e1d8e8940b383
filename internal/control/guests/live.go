package guests

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"time"

	"lodge/internal/base/errs"
	"lodge/internal/base/session"
	"lodge/internal/engine"
	"lodge/internal/keeper"
	"lodge/internal/model/guest"
)

func cannot(g guest.Guest, what string) error {
	return &errs.Error{Kind: errs.Unsupported, Ref: g.Key().String(), Msg: "its engine cannot " + what, Hint: "lodge engine ls"}
}

// attachTime is how long a daemon that has just started may take to find a
// guest that an earlier one left running.
const attachTime = 5 * time.Second

// live connects to a guest that is up. Unlike machine it attaches nothing: that
// is the reconciler's, which may be taking the guest down this moment.
func (r *Reconciler) live(ctx context.Context, id string) (engine.Machine, guest.Guest, error) {
	for deadline := r.Now().Add(attachTime); ; {
		r.mu.Lock()
		parts := r.attached[id].parts
		r.mu.Unlock()
		g, err := r.Guest(id)
		if err != nil {
			return nil, g, err
		}
		held, err := r.Keepers.Find(id)
		if err != nil || held.State().Exit != nil {
			return nil, g, &errs.Error{Kind: errs.Conflict, Ref: g.Key().String(), Msg: "is not running", Hint: "lodge start " + g.Name}
		}
		if parts != nil {
			e, _, err := r.engine(ctx, g)
			if err != nil {
				return nil, g, err
			}
			m, err := e.Connect(ctx, g, *parts, held)
			return m, g, err
		}
		if r.Now().After(deadline) {
			return nil, g, &errs.Error{Kind: errs.Busy, Ref: g.Key().String(), Msg: "lodged has just started and does not know it yet", Hint: "try again in a moment"}
		}
		select {
		case <-ctx.Done():
			return nil, g, ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Exec runs a program inside a running guest.
func (r *Reconciler) Exec(ctx context.Context, id string, req session.Request) (session.Session, error) {
	m, g, err := r.answering(ctx, id)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	e, ok := m.(engine.Execer)
	if !ok {
		return nil, cannot(g, "run programs in it")
	}
	return e.Exec(ctx, req)
}

// Pack writes a file or tree of a running guest as a tar stream.
func (r *Reconciler) Pack(ctx context.Context, id, path string, w io.Writer) error {
	m, g, err := r.live(ctx, id)
	if err != nil {
		return err
	}
	defer m.Close()
	f, ok := m.(engine.Filer)
	if !ok {
		return cannot(g, "copy files")
	}
	return f.Pack(ctx, path, w)
}

// Unpack makes what a tar stream holds below a directory of a running guest.
func (r *Reconciler) Unpack(ctx context.Context, id, dir string, from io.Reader) error {
	m, g, err := r.live(ctx, id)
	if err != nil {
		return err
	}
	defer m.Close()
	f, ok := m.(engine.Filer)
	if !ok {
		return cannot(g, "copy files")
	}
	return f.Unpack(ctx, dir, from)
}

// Usage returns what a running guest uses, and the bytes its writable layer
// takes.
func (r *Reconciler) Usage(ctx context.Context, id string) (guest.Usage, uint64, error) {
	m, g, err := r.live(ctx, id)
	if err != nil {
		return guest.Usage{}, 0, err
	}
	defer m.Close()
	meter, ok := m.(engine.Meter)
	if !ok {
		return guest.Usage{}, 0, cannot(g, "be measured")
	}
	u, err := meter.Usage(ctx)
	if err != nil {
		return u, 0, err
	}
	pool, err := r.Pools.Get(g.Spec.Pool)
	if err != nil {
		return u, 0, err
	}
	disk, err := pool.Usage(ctx, id)
	return u, disk, err
}

// Console attaches to a running guest's terminal.
func (r *Reconciler) Console(ctx context.Context, id string) (keeper.Console, error) {
	_, g, err := r.live(ctx, id)
	if err != nil {
		return nil, err
	}
	held, err := r.Keepers.Find(g.ID)
	if err != nil {
		return nil, err
	}
	return held.Console(ctx)
}

// logEvery is how often a follower looks for more: a person reads no faster.
const logEvery = 200 * time.Millisecond

// Logs writes the last tail lines (all for a negative tail) of what the guest
// said on its console, and with follow goes on until ctx ends.
func (r *Reconciler) Logs(ctx context.Context, id string, tail int, follow bool, w io.Writer) error {
	g, err := r.Guest(id)
	if err != nil {
		return err
	}
	path := engine.ConsoleLog(r.dir(g.ID))
	offset, err := writeTail(w, path, tail)
	if err != nil || !follow {
		return err
	}
	tick := time.NewTicker(logEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if offset, err = writeMore(w, path, offset); err != nil {
			return err
		}
		if _, err := r.Guest(id); err != nil {
			return nil // it was removed; all it said has been written
		}
	}
}

// writeTail writes the end of the log and returns how much of the present file
// has been written. The file before it counts as its beginning.
func writeTail(w io.Writer, path string, tail int) (int64, error) {
	old, err := os.ReadFile(path + ".1")
	if err != nil && !os.IsNotExist(err) {
		return 0, err
	}
	now, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		return 0, err
	}
	_, err = w.Write(lastLines(append(old, now...), tail))
	return int64(len(now)), err
}

// writeMore writes what was added behind offset. A file shorter than that is a
// new one: the log was rotated, and the rest of the old one comes first.
func writeMore(w io.Writer, path string, offset int64) (int64, error) {
	info, err := os.Stat(path)
	if err != nil {
		return offset, nil // between two files, or the guest never spoke
	}
	if info.Size() < offset {
		if _, err := copyFrom(w, path+".1", offset); err != nil {
			return offset, err
		}
		offset = 0
	}
	n, err := copyFrom(w, path, offset)
	return offset + n, err
}

func copyFrom(w io.Writer, path string, offset int64) (int64, error) {
	f, err := os.Open(filepath.Clean(path))
	if err != nil {
		return 0, nil
	}
	defer f.Close()
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return 0, err
	}
	return io.Copy(w, f)
}

// lastLines returns the last n lines of text; all of it for a negative n.
func lastLines(text []byte, n int) []byte {
	if n < 0 {
		return text
	}
	end := len(text)
	if end > 0 && text[end-1] == '\n' {
		end--
	}
	for i := end - 1; i >= 0; i-- {
		if text[i] != '\n' {
			continue
		}
		if n--; n == 0 {
			return text[i+1:]
		}
	}
	if n <= 0 {
		return nil
	}
	return text
}
