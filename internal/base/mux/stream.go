package mux

import (
	"io"
	"sync"
	"time"
)

// Stream is one of a session's. Its methods are safe for concurrent use.
type Stream struct {
	s  *Session
	id uint32

	whole sync.Mutex // what is written at once stays together
	order sync.Mutex // frames go out in the order in which they were made

	// The session's lock protects what follows.
	cond        sync.Cond
	in          []byte // arrived and not read, from at
	at          int
	credit      int    // bytes that the other end may send
	window      uint64 // bytes that we may send
	flags       uint16 // that the next frame carries
	closed      bool   // by us
	finished    bool   // by the other end
	reset       bool
	read, write time.Time // until when to wait
	late        *time.Timer
}

// arrived adds data; the session's lock is held.
func (st *Stream) arrived(b []byte) {
	if st.at > 0 {
		st.in = st.in[:copy(st.in, st.in[st.at:])]
		st.at = 0
	}
	st.in = append(st.in, b...)
	st.cond.Broadcast()
}

// settle lets go of a stream that both ends are done with; the session's lock
// is held.
func (st *Stream) settle() {
	if !st.reset && (!st.closed || !st.finished) {
		return
	}
	if st.s.streams[st.id] == st {
		delete(st.s.streams, st.id)
	}
	if st.late != nil {
		st.late.Stop()
	}
}

// wait waits for a change until then; the session's lock is held.
func (st *Stream) wait(until time.Time) error {
	if until.IsZero() {
		st.cond.Wait()
		return nil
	}
	left := time.Until(until)
	if left <= 0 {
		return ErrTimeout
	}
	t := time.AfterFunc(left, func() {
		st.s.mu.Lock()
		defer st.s.mu.Unlock()
		st.cond.Broadcast()
	})
	st.cond.Wait()
	t.Stop()
	return nil
}

// Read returns what arrived, or waits for it. It ends with the other end's
// closing, or with the session.
func (st *Stream) Read(p []byte) (int, error) {
	n, more, err := st.taken(p)
	if more > 0 {
		// If that fails, so will what is read next.
		_ = st.send(typeWindow, 0, uint32(more), nil)
	}
	return n, err
}

// taken is Read, and how many bytes more the other end may be told to send.
func (st *Stream) taken(p []byte) (n, more int, err error) {
	s := st.s
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(st.in) == st.at {
		switch {
		case st.reset:
			return 0, 0, ErrReset
		case st.finished || s.over:
			return 0, 0, io.EOF
		}
		if err := st.wait(st.read); err != nil {
			return 0, 0, err
		}
	}
	n = copy(p, st.in[st.at:])
	st.at += n
	if st.at == len(st.in) {
		st.in, st.at = st.in[:0], 0
		if cap(st.in) > readMax {
			st.in = nil
		}
	}
	more = s.o.Window - (len(st.in) - st.at) - st.credit
	if more < s.o.Window/2 || st.finished || s.over {
		return n, 0, nil
	}
	st.credit += more
	return n, more, nil
}

// Write sends b, as fast as the other end takes it.
func (st *Stream) Write(b []byte) (n int, err error) {
	st.whole.Lock()
	defer st.whole.Unlock()
	for len(b) > 0 {
		k, err := st.room(min(len(b), frameMax))
		if err == nil {
			err = st.send(typeData, 0, uint32(k), b[:k])
		}
		if err != nil {
			return n, err
		}
		n, b = n+k, b[k:]
	}
	return n, nil
}

// room waits until something may be sent, and returns how much, at most n.
func (st *Stream) room(n int) (int, error) {
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	for {
		switch {
		case st.reset:
			return 0, ErrReset
		case st.closed:
			return 0, ErrClosed
		case st.s.over:
			return 0, ErrEnded
		}
		if st.window > 0 {
			break
		}
		if err := st.wait(st.write); err != nil {
			return 0, err
		}
	}
	n = int(min(uint64(n), st.window))
	st.window -= uint64(n)
	return n, nil
}

// send puts a frame on the line.
func (st *Stream) send(kind byte, flags uint16, length uint32, body []byte) error {
	st.order.Lock()
	defer st.order.Unlock()
	st.s.mu.Lock()
	flags |= st.flags
	st.flags = 0
	closed := st.closed
	over := st.s.over
	st.s.mu.Unlock()
	switch {
	case over:
		return ErrEnded
	case flags&flagSYN != 0 && closed: // before the other end heard of it
		return ErrClosed
	}
	return st.s.c.Send(head(kind, flags, st.id, length), body)
}

// Close says that nothing more will be written. What the other end still says
// can be read.
func (st *Stream) Close() error {
	st.s.mu.Lock()
	if st.closed || st.reset || st.s.over {
		st.closed = true
		st.s.mu.Unlock()
		return nil
	}
	st.closed = true
	unheard := st.flags&flagSYN != 0 // by the other end, which has nothing to close
	if unheard {
		st.finished = true
	}
	if st.settle(); !st.finished {
		st.late = time.AfterFunc(closeTime, st.abandon)
	}
	st.cond.Broadcast()
	st.s.mu.Unlock()
	if unheard {
		return nil
	}
	return st.send(typeWindow, flagFIN, 0, nil)
}

// abandon gives up a stream that the other end does not close.
func (st *Stream) abandon() {
	st.s.mu.Lock()
	gone := st.reset || st.finished || st.s.over
	st.reset = true
	st.settle()
	st.cond.Broadcast()
	st.s.mu.Unlock()
	if !gone {
		_ = st.send(typeWindow, flagRST, 0, nil)
	}
}

// SetReadDeadline is until when reading waits; zero is for ever.
func (st *Stream) SetReadDeadline(t time.Time) {
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	st.read = t
	st.cond.Broadcast()
}

// SetWriteDeadline is until when writing waits for the other end to take what
// was written before.
func (st *Stream) SetWriteDeadline(t time.Time) {
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	st.write = t
	st.cond.Broadcast()
}

// SetDeadline sets both.
func (st *Stream) SetDeadline(t time.Time) {
	st.SetReadDeadline(t)
	st.SetWriteDeadline(t)
}
