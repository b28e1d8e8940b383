package keeper

import (
	"context"
	"errors"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
)

// held is one kept program as the daemon knows it. Its fields are guarded by
// the client's mu.
type held struct {
	c      *Client
	rec    Record
	pidfd  int           // -1: the process was gone before anyone could hold it
	master int           // -1: no console, or it is over
	done   chan struct{} // closed once rec.Exit is set

	listeners map[string]*listener // by the id that both sides know
}

// files returns what another keeper needs to go on. Callers hold the client's
// mu.
func (h *held) files() []int {
	switch {
	case h.pidfd < 0:
		return nil
	case h.master < 0:
		return []int{h.pidfd}
	}
	return []int{h.pidfd, h.master}
}

// have takes in what the keeper tells of one program. Callers hold mu; the
// descriptors become ours. An end that we did not know of is announced, unless
// it is from before we first came here.
func (c *Client) have(r Record, fds []int, announce bool) {
	h, known := c.held[r.Name]
	if known && (h.rec.Pid != r.Pid || h.rec.Ticks != r.Ticks) {
		c.drop(r.Name) // the name was used again while we were away
		known = false
	}
	if !known {
		h = &held{c: c, pidfd: -1, master: -1, done: make(chan struct{})}
		c.held[r.Name] = h
	}
	for i, fd := range fds {
		switch {
		case i == 0 && h.pidfd < 0:
			h.pidfd = fd
		case i == 1 && h.master < 0:
			h.master = fd
		default:
			syscall.Close(fd)
		}
	}
	ended := h.rec.Exit != nil
	h.rec = r
	if r.Exit == nil || ended {
		return
	}
	CloseAll([]int{h.master})
	h.master = -1
	h.unwatchAll()
	close(h.done)
	if !announce {
		return
	}
	for s := range c.exits {
		s.put(r.State)
	}
}

// drop forgets a program. Callers hold mu.
func (c *Client) drop(name string) {
	h, ok := c.held[name]
	if !ok {
		return
	}
	if h.rec.Exit == nil {
		r := h.rec
		r.Exit = &Exit{Unknown: true, At: time.Now()}
		c.have(r, nil, true)
	}
	c.release(h)
	delete(c.held, name)
}

// release closes a program's descriptors. Callers hold mu.
func (c *Client) release(h *held) {
	CloseAll([]int{h.pidfd, h.master})
	h.pidfd, h.master = -1, -1
	h.unwatchAll()
}

// State returns what is known as of now.
func (h *held) State() State {
	h.c.mu.Lock()
	defer h.c.mu.Unlock()
	return h.rec.State
}

// Pidfd returns the process' descriptor, or -1 when there is none any more.
func (h *held) Pidfd() int {
	h.c.mu.Lock()
	defer h.c.mu.Unlock()
	return h.pidfd
}

// Wait returns how the program ended, once it has.
func (h *held) Wait(ctx context.Context) (Exit, error) {
	select {
	case <-h.done:
		return *h.State().Exit, nil
	case <-ctx.Done():
		return Exit{}, &errs.Error{Op: "keeper.wait", Kind: errs.Cancelled, Ref: h.State().Name, Msg: "still runs", Err: ctx.Err()}
	case <-h.c.life.Done():
		return Exit{}, &errs.Error{Op: "keeper.wait", Kind: errs.Unavailable, Ref: h.State().Name, Msg: "the connection to the keeper was closed"}
	}
}

// Signal sends sig to the program's process. One that has ended is
// errs.Conflict.
func (h *held) Signal(_ context.Context, sig syscall.Signal) error {
	h.c.mu.Lock()
	defer h.c.mu.Unlock()
	err := error(unix.ESRCH)
	if h.pidfd >= 0 {
		err = unix.PidfdSendSignal(h.pidfd, sig, nil, 0)
	}
	if errors.Is(err, unix.ESRCH) {
		return &errs.Error{Op: "keeper.signal", Kind: errs.Conflict, Ref: h.rec.Name, Msg: "the program has ended"}
	}
	return err
}

// subscription is one reader of exits. What it was not yet able to take waits.
type subscription struct {
	mu    sync.Mutex
	queue []State
	wake  chan struct{}
}

func (s *subscription) put(st State) {
	s.mu.Lock()
	s.queue = append(s.queue, st)
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *subscription) take() []State {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.queue
	s.queue = nil
	return q
}

// Exits tells of every program that ends, from now on. None is left out,
// however slow the reader.
func (c *Client) Exits(ctx context.Context) <-chan State {
	s := &subscription{wake: make(chan struct{}, 1)}
	c.mu.Lock()
	c.exits[s] = struct{}{}
	c.mu.Unlock()
	out := make(chan State)
	go func() {
		defer close(out)
		defer func() {
			c.mu.Lock()
			delete(c.exits, s)
			c.mu.Unlock()
		}()
		for {
			for _, st := range s.take() {
				select {
				case out <- st:
				case <-ctx.Done():
					return
				}
			}
			select {
			case <-s.wake:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}
