package keeper

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
)

// console is one attachment. Output comes through a socket that the keeper
// feeds; input goes straight to the terminal, of which we hold a duplicate.
type console struct {
	h      *held
	master *os.File

	mu     sync.Mutex
	output *os.File
	closed bool
}

// Console attaches to the program's terminal. It fails with errs.Unsupported
// when it has none, and with errs.Conflict when it has ended.
func (h *held) Console(ctx context.Context) (Console, error) {
	h.c.mu.Lock()
	rec, master := h.rec, -1
	var err error
	if h.master >= 0 {
		master, err = unix.FcntlInt(uintptr(h.master), unix.F_DUPFD_CLOEXEC, 0)
	}
	h.c.mu.Unlock()
	switch {
	case err != nil:
		return nil, err
	case !rec.Console:
		return nil, &errs.Error{Op: "keeper.console", Kind: errs.Unsupported, Ref: rec.Name, Msg: "the program has no console"}
	case rec.Exit != nil:
		return nil, &errs.Error{Op: "keeper.console", Kind: errs.Conflict, Ref: rec.Name, Msg: "the program has ended"}
	case master < 0:
		return nil, &errs.Error{Op: "keeper.console", Kind: errs.Unavailable, Ref: rec.Name,
			Msg: "the console was lost with a former keeper", Hint: "it is back when the guest is started again"}
	}
	c := &console{h: h, master: os.NewFile(uintptr(master), "console")}
	if c.output, err = h.attach(ctx); err != nil {
		c.master.Close()
		return nil, err
	}
	return c, nil
}

// attach gives the keeper one end of a socket and returns the other.
func (h *held) attach(ctx context.Context) (*os.File, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	_, err = h.c.again(ctx, Message{Op: OpAttach, Name: h.State().Name}, pair[1])
	unix.Close(pair[1])
	if err != nil {
		unix.Close(pair[0])
		return nil, err
	}
	return os.NewFile(uintptr(pair[0]), "console output"), nil
}

// Read returns output as it comes, and io.EOF when the program has ended. It
// goes on when the keeper was replaced meanwhile.
func (c *console) Read(p []byte) (int, error) {
	for {
		c.mu.Lock()
		output, closed := c.output, c.closed
		c.mu.Unlock()
		if closed {
			return 0, os.ErrClosed
		}
		n, err := output.Read(p)
		if n > 0 || err == nil {
			return n, nil
		}
		if errors.Is(err, os.ErrClosed) {
			return 0, err
		}
		next, err := c.h.attach(c.h.c.life)
		if err != nil {
			return 0, io.EOF
		}
		c.mu.Lock()
		c.output.Close()
		c.output = next
		if c.closed {
			next.Close()
		}
		c.mu.Unlock()
	}
}

// Write types p.
func (c *console) Write(p []byte) (int, error) { return c.master.Write(p) }

// Resize tells the terminal its size, in characters.
func (c *console) Resize(rows, cols uint16) error {
	raw, err := c.master.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) {
		set = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
	})
	return errors.Join(err, set)
}

// Close detaches; the program and other attachments do not notice.
func (c *console) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	return errors.Join(c.output.Close(), c.master.Close())
}
