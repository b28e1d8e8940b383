// Package mux shares a line among streams as yamux has it on the wire
// (github.com/hashicorp/yamux/blob/master/spec.md), at little cost: a guest whose
// processor is made by translation pays for every switch between goroutines, and
// for every instruction that it runs for the first time. So who writes puts his
// frame on the line himself, a stream opens with the first that is written on
// it, and is taken up by the first that is written back.
package mux

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"sync"
	"time"
)

// Carrier is what a session runs on.
type Carrier interface {
	io.ReadCloser
	// Send queues head and body together. It may wait for the other end, but not
	// for ever.
	Send(head, body []byte) error
}

// Options say what a session is like.
type Options struct {
	Window int // bytes of a stream that are on their way and not read: what one that is not read costs
	Most   int // streams that the other end has at once; further ones are refused
}

// The kinds of frames and their flags.
const (
	typeData, typeWindow, typePing, typeGoAway = 0, 1, 2, 3

	flagSYN, flagACK, flagFIN, flagRST = 1, 2, 4, 8
)

const (
	headSize = 12
	// firstWindow is what a stream may send before it was told more.
	firstWindow = 256 << 10
	// frameMax is how much data one frame has: others want the line too.
	frameMax = 64 << 10
	// readMax is how much is taken from the line at once.
	readMax = 32 << 10
	// closeTime is how long a stream that was closed waits for the other end to
	// close it too.
	closeTime = time.Minute
)

// What streams and sessions fail with.
var (
	ErrTimeout  = errors.New("time ran out")
	ErrClosed   = errors.New("the stream is closed")
	ErrReset    = errors.New("the other end gave the stream up")
	ErrEnded    = errors.New("the session ended")
	errProtocol = errors.New("the other end breaks the rules of streams")
)

// Session is one end of a line that is shared.
type Session struct {
	c      Carrier
	o      Options
	answer func(*Stream) // nil: only this end opens streams
	ended  chan struct{}

	mu      sync.Mutex
	streams map[uint32]*Stream
	next    uint32 // of the streams that this end opens
	over    bool
	pings   map[uint32]chan struct{}
	ping    uint32
}

func newSession(c Carrier, o Options) *Session {
	return &Session{c: c, o: o, ended: make(chan struct{}), streams: map[uint32]*Stream{}, next: 1}
}

// Client is the end that opens streams.
func Client(c Carrier, o Options) *Session {
	s := newSession(c, o)
	s.pings = map[uint32]chan struct{}{}
	go s.receive()
	return s
}

// Serve is the end that answers streams, each by a call of answer of its own. It
// returns when the session ended.
func Serve(c Carrier, o Options, answer func(*Stream)) {
	s := newSession(c, o)
	s.answer = answer
	s.receive()
}

// Ended is closed with the session.
func (s *Session) Ended() <-chan struct{} { return s.ended }

// Over reports whether the session ended.
func (s *Session) Over() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.over
}

// Close ends the session and with it all streams.
func (s *Session) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return nil
	}
	s.over = true
	close(s.ended)
	for _, st := range s.streams {
		st.cond.Broadcast()
	}
	return s.c.Close()
}

// Open begins a stream, of which the other end hears with the first that is
// written.
func (s *Session) Open() (*Stream, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over || s.next > math.MaxUint32-2 {
		return nil, ErrEnded
	}
	st := s.stream(s.next, flagSYN)
	s.next += 2
	return st, nil
}

// stream adds a stream; the session's lock is held.
func (s *Session) stream(id uint32, flags uint16) *Stream {
	st := &Stream{s: s, id: id, flags: flags, credit: firstWindow, window: firstWindow}
	st.cond.L = &s.mu
	s.streams[id] = st
	return st
}

// Ping waits for the other end's answer, for at most so long.
func (s *Session) Ping(within time.Duration) error {
	answered := make(chan struct{})
	s.mu.Lock()
	id := s.ping
	s.ping++
	s.pings[id] = answered
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.pings, id)
		s.mu.Unlock()
	}()
	if err := s.c.Send(head(typePing, flagSYN, 0, id), nil); err != nil {
		return err
	}
	t := time.NewTimer(within)
	defer t.Stop()
	select {
	case <-answered:
		return nil
	case <-s.ended:
		return ErrEnded
	case <-t.C:
		return ErrTimeout
	}
}

func head(kind byte, flags uint16, id, length uint32) []byte {
	b := make([]byte, 0, headSize)
	b = binary.BigEndian.AppendUint16(append(b, 0, kind), flags)
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(b, id), length)
}

// frame is the head of one.
type frame struct {
	kind       byte
	flags      uint16
	id, length uint32
}

// receive does what the other end says until the session ends.
func (s *Session) receive() {
	defer s.Close()
	r := bufio.NewReaderSize(s.c, 4<<10)
	b := make([]byte, headSize, 1<<10)
	for {
		if _, err := io.ReadFull(r, b[:headSize]); err != nil {
			return
		}
		f := frame{b[1], binary.BigEndian.Uint16(b[2:]), binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint32(b[8:])}
		if b[0] != 0 {
			return
		}
		var err error
		switch f.kind {
		case typeData, typeWindow:
			err = s.take(r, &b, f)
		case typePing:
			err = s.pinged(f)
		default: // farewell, or what nobody knows
			return
		}
		if err != nil {
			return
		}
	}
}

func (s *Session) pinged(f frame) error {
	if f.flags&flagSYN != 0 {
		return s.c.Send(head(typePing, flagACK, 0, f.length), nil)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if answered := s.pings[f.length]; answered != nil {
		close(answered)
		delete(s.pings, f.length)
	}
	return nil
}

// take does what a frame of a stream says. b is room to read into.
func (s *Session) take(r *bufio.Reader, b *[]byte, f frame) error {
	st, err := s.heard(f)
	if err != nil {
		return err
	}
	if f.kind == typeData {
		if err := s.data(r, b, st, int(f.length)); err != nil {
			return err
		}
	}
	if st == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.flags&flagFIN != 0 {
		st.finished = true
	}
	if f.flags&flagRST != 0 {
		st.reset = true
	}
	st.settle()
	st.cond.Broadcast()
	return nil
}

// heard finds a frame's stream, and holds the other end to what it may do; nil
// is one that is gone.
func (s *Session) heard(f frame) (*Stream, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.streams[f.id]
	if f.flags&flagSYN != 0 {
		switch {
		case st != nil || s.answer == nil || f.id == 0:
			return nil, errProtocol
		case len(s.streams) >= s.o.Most:
			s.mu.Unlock()
			err := s.c.Send(head(typeWindow, flagRST, f.id, 0), nil)
			s.mu.Lock()
			return nil, err
		}
		st = s.stream(f.id, flagACK)
		go s.answer(st)
	}
	if st == nil {
		return nil, nil
	}
	if f.kind == typeWindow {
		if st.window += uint64(f.length); st.window > math.MaxUint32 {
			return nil, errProtocol
		}
		return st, nil
	}
	if int64(f.length) > int64(st.credit) {
		return nil, errProtocol
	}
	st.credit -= int(f.length)
	return st, nil
}

// data hands over what arrives as it does; nowhere if there is no stream.
func (s *Session) data(r *bufio.Reader, b *[]byte, st *Stream, left int) error {
	for left > 0 {
		if left > cap(*b) && cap(*b) < readMax {
			*b = make([]byte, min(readMax, left))
		}
		n, err := r.Read((*b)[:min(left, cap(*b))])
		left -= n
		if n > 0 && st != nil {
			s.mu.Lock()
			st.arrived((*b)[:n])
			s.mu.Unlock()
		}
		if err != nil {
			return err
		}
	}
	return nil
}
