package keeper

import (
	"context"
	"crypto/rand"
	"errors"

	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
)

// listener is a duplicate of a seccomp listener that the keeper answers: as
// long as one is open, who asks waits for the next keeper instead of failing.
type listener struct {
	fd   int
	told bool // a keeper has it, or had it
}

// watched takes in a listener that the keeper tells of; fds become ours.
// Callers hold mu.
func (c *Client) watched(m Message, fds []int) {
	h, ok := c.held[m.Name]
	if !ok || len(fds) != 1 || h.rec.Exit != nil {
		CloseAll(fds)
		return
	}
	if l, known := h.listeners[m.Watch]; known {
		l.told = true
		CloseAll(fds)
		return
	}
	if h.listeners == nil {
		h.listeners = map[string]*listener{}
	}
	h.listeners[m.Watch] = &listener{fd: fds[0], told: true}
}

// unwatch closes a listener. Callers hold mu.
func (c *Client) unwatch(name, id string) {
	h, ok := c.held[name]
	if !ok || h.listeners[id] == nil {
		return
	}
	unix.Close(h.listeners[id].fd)
	delete(h.listeners, id)
}

// unwatchAll closes all listeners. Callers hold mu.
func (h *held) unwatchAll() {
	for _, l := range h.listeners {
		unix.Close(l.fd)
	}
	h.listeners = nil
}

// unlisted closes the listeners that a keeper had and does not tell of any
// more. Callers hold mu.
func (c *Client) unlisted(listed map[string]bool) {
	for name, h := range c.held {
		for id, l := range h.listeners {
			if l.told && !listed[listedWatch(name, id)] {
				c.unwatch(name, id)
			}
		}
	}
}

// listedWatch is how a listener is called among the names of programs, none of
// which has a slash.
func listedWatch(name, id string) string { return name + "/" + id }

// handOverListeners tells the keeper at l of h's listeners.
func (h *held) handOverListeners(ctx context.Context, l *line) error {
	h.c.mu.Lock()
	name, copies := h.rec.Name, map[string]int{}
	for id, l := range h.listeners {
		// A duplicate, because ours may be closed at any time.
		if fd, err := unix.FcntlInt(uintptr(l.fd), unix.F_DUPFD_CLOEXEC, 0); err == nil {
			copies[id] = fd
			l.told = true
		}
	}
	h.c.mu.Unlock()
	var err error
	for id, fd := range copies {
		if err == nil {
			_, err = l.call(ctx, Message{Op: OpWatch, Name: name, Watch: id}, fd)
			if !errors.Is(err, errLost) && ctx.Err() == nil {
				err = nil // refused: it has ended meanwhile, or the keeper is an older one
			}
		}
		unix.Close(fd)
	}
	return err
}

// Watch gives a listener to the keeper. When it cannot be given, it is closed:
// who asks fails at once rather than wait for ever.
func (h *held) Watch(ctx context.Context, fd int) error {
	defer unix.Close(fd)
	ours, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	id := rand.Text()
	h.c.mu.Lock()
	name := h.rec.Name
	if h.rec.Exit != nil {
		h.c.mu.Unlock()
		unix.Close(ours)
		return &errs.Error{Op: "keeper.watch", Kind: errs.Conflict, Ref: name, Msg: "the program has ended"}
	}
	if h.listeners == nil {
		h.listeners = map[string]*listener{}
	}
	h.listeners[id] = &listener{fd: ours}
	h.c.mu.Unlock()
	_, err = h.c.again(ctx, Message{Op: OpWatch, Name: name, Watch: id}, fd)
	h.c.mu.Lock()
	defer h.c.mu.Unlock()
	if l := h.listeners[id]; l != nil && err == nil {
		l.told = true
	}
	if err != nil {
		h.c.unwatch(name, id)
	}
	return err
}
