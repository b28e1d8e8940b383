package agent

import (
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"unsafe"
)

// SlotSize is how much a slot of a mailbox holds.
const SlotSize = 1 << 20

// blockSize divides what is read and written where caches are passed by.
const blockSize = 4096

// Mailbox is a device that host and guest share, for what would take too long
// over the line: one writes a slot, says so on the line, and the other reads
// it. Whose a slot is at the moment is agreed on the line too.
type Mailbox struct {
	f     *os.File
	slots int
}

// NewMailbox uses f, whose size counts. Neither end may have a cache between
// itself and the device.
func NewMailbox(f *os.File) (*Mailbox, error) {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	if size < SlotSize {
		return nil, fmt.Errorf("a mailbox of %d bytes is too small", size)
	}
	return &Mailbox{f: f, slots: int(min(size/SlotSize, 1<<10))}, nil
}

// Slots is how many slots there are, numbered from 0.
func (m *Mailbox) Slots() int { return m.slots }

// put writes a slot; p must come from slotBuffer.
func (m *Mailbox) put(slot int, p []byte) error {
	_, err := m.f.WriteAt(p[:roundUp(len(p))], int64(slot)*SlotSize)
	return err
}

// get reads n bytes of a slot into p, which must come from slotBuffer.
func (m *Mailbox) get(slot, n int, p []byte) ([]byte, error) {
	if slot < 0 || slot >= m.slots || n < 0 || n > SlotSize {
		return nil, fmt.Errorf("slot %d of the mailbox cannot hold %d bytes", slot, n)
	}
	if _, err := m.f.ReadAt(p[:roundUp(n)], int64(slot)*SlotSize); err != nil {
		return nil, noEOF(err)
	}
	return p[:n], nil
}

func roundUp(n int) int { return (n + blockSize - 1) / blockSize * blockSize }

// slotBuffer is memory that a device can take directly, as large as a slot.
func slotBuffer() []byte { return aligned(SlotSize) }

func aligned(size int) []byte {
	b := make([]byte, size+blockSize)
	off := int(-uintptr(unsafe.Pointer(unsafe.SliceData(b))) & (blockSize - 1))
	return b[off : off+size : off+size]
}

// slotWorth is from how many bytes on a slot is less work than the line.
const slotWorth = 8 << 10

// Post sends pieces of a program's input, by a slot where one is free and the
// piece is worth it, else over the line.
type Post struct {
	w    io.Writer
	mail *Mailbox
	mine []int
	free chan int
	buf  []byte
}

// NewPost sends on w. slots are its own; none: all goes over the line.
func NewPost(w io.Writer, mail *Mailbox, slots []int) *Post {
	p := &Post{w: w, mail: mail, mine: slots, free: make(chan int, len(slots))}
	for _, s := range slots {
		p.free <- s
	}
	return p
}

// Room is where the next piece is to be put before Send.
func (p *Post) Room() []byte {
	if p.buf == nil && len(p.mine) > 0 {
		p.buf = aligned(ExecWindow)
	} else if p.buf == nil {
		p.buf = make([]byte, ChunkMax)
	}
	return p.buf
}

// Send sends the first n bytes of Room.
func (p *Post) Send(n int) error {
	if n >= slotWorth {
		select {
		case s := <-p.free:
			if err := p.mail.put(s, p.buf[:n]); err != nil {
				return err
			}
			return WriteNumbers(p.w, KindSlot, uint32(s), uint32(n))
		default: // all are under way
		}
	}
	for chunk := range slices.Chunk(p.buf[:n], ChunkMax) {
		if err := WriteFrame(p.w, KindIn, chunk); err != nil {
			return err
		}
	}
	return nil
}

// Freed hears that a slot was emptied; who says so too often gains nothing.
func (p *Post) Freed(payload []byte) {
	n, err := Numbers(payload, 1)
	if err != nil || !slices.Contains(p.mine, int(n[0])) {
		return
	}
	select {
	case p.free <- int(n[0]):
	default:
	}
}

// Letters are the other end of a Post.
type Letters struct {
	w    io.Writer
	mail *Mailbox
	mine []int
	buf  []byte
}

// NewLetters says on w which slots are free again.
func NewLetters(w io.Writer, mail *Mailbox, slots []int) *Letters {
	return &Letters{w: w, mail: mail, mine: slots}
}

// Open hands what a slot holds to take, which must not keep it, and frees the
// slot. It is false for what no sender in his senses says.
func (l *Letters) Open(payload []byte, take func(b []byte) bool) bool {
	n, err := Numbers(payload, 2)
	if err != nil || l.mail == nil || !slices.Contains(l.mine, int(n[0])) || n[1] == 0 || n[1] > ExecWindow {
		return false
	}
	if l.buf == nil {
		l.buf = aligned(ExecWindow)
	}
	b, err := l.mail.get(int(n[0]), int(n[1]), l.buf)
	return err == nil && take(b) && WriteNumbers(l.w, KindFree, n[0]) == nil
}

// Outflow sends a file on a stream, through the mailbox where it pays.
type Outflow struct {
	w    io.Writer
	kind Kind
	mail *Mailbox
	mine []int
	buf  []byte

	free chan int
	once sync.Once
	gone chan struct{}
	why  error
}

// NewOutflow sends frames of kind on w. slots are its own; none: all goes over
// the line.
func NewOutflow(w io.Writer, kind Kind, mail *Mailbox, slots []int) *Outflow {
	o := &Outflow{w: w, kind: kind, mail: mail, gone: make(chan struct{})}
	if mail != nil {
		o.mine = slots
	}
	o.free = make(chan int, len(o.mine))
	for _, s := range o.mine {
		o.free <- s
	}
	if len(o.mine) > 0 {
		o.buf = slotBuffer()[:0]
	} else {
		o.buf = make([]byte, 0, ChunkMax)
	}
	return o
}

// Write sends p, or keeps it to be sent with more.
func (o *Outflow) Write(p []byte) (int, error) {
	n := 0
	for len(p) > 0 {
		k := copy(o.buf[len(o.buf):cap(o.buf)], p)
		o.buf, p, n = o.buf[:len(o.buf)+k], p[k:], n+k
		if len(o.buf) == cap(o.buf) {
			if err := o.flush(); err != nil {
				return n, err
			}
		}
	}
	return n, nil
}

func (o *Outflow) flush() error {
	b := o.buf
	o.buf = o.buf[:0]
	if len(o.mine) == 0 || len(b) < slotWorth {
		for chunk := range slices.Chunk(b, ChunkMax) {
			if err := WriteFrame(o.w, o.kind, chunk); err != nil {
				return o.because(err)
			}
		}
		return nil
	}
	select {
	case s := <-o.free:
		if err := o.mail.put(s, b); err != nil {
			return err
		}
		return o.because(WriteNumbers(o.w, KindSlot, uint32(s), uint32(len(b))))
	case <-o.gone:
		return o.why
	}
}

// because prefers why the flow was aborted to what that led to.
func (o *Outflow) because(err error) error {
	select {
	case <-o.gone:
		if err != nil {
			return o.why
		}
	default:
	}
	return err
}

// Finish sends what is left, and the end.
func (o *Outflow) Finish() error {
	if err := o.flush(); err != nil {
		return err
	}
	return o.because(WriteFrame(o.w, o.kind, nil))
}

// Freed hears that a slot was emptied.
func (o *Outflow) Freed(payload []byte) error {
	n, err := Numbers(payload, 1)
	if err != nil || !slices.Contains(o.mine, int(n[0])) {
		return fmt.Errorf("a slot was freed that is not this stream's: %v", n)
	}
	select {
	case o.free <- int(n[0]):
		return nil
	default:
		return fmt.Errorf("slot %d was freed twice", n[0])
	}
}

// Abort makes writing fail with why from now on.
func (o *Outflow) Abort(why error) {
	o.once.Do(func() { o.why = why; close(o.gone) })
}

// Inflow reads a file from a stream.
type Inflow struct {
	w      io.Writer
	frames *Frames
	kind   Kind
	mail   *Mailbox
	mine   []int
	buf    []byte
	rest   []byte
	slot   int // that rest is in, or -1
	ended  bool
	result *Result
	err    error
}

// NewInflow reads frames of kind; slots are its own.
func NewInflow(w io.Writer, frames *Frames, kind Kind, mail *Mailbox, slots []int) *Inflow {
	f := &Inflow{w: w, frames: frames, kind: kind, mail: mail, slot: -1}
	if mail != nil && len(slots) > 0 {
		f.mine, f.buf = slots, slotBuffer()
	}
	return f
}

// Failed reports whether reading ended in an error that was not the reader's.
func (f *Inflow) Failed() bool { return f.err != nil }

// Result is the answer that ended the flow instead of its end, or nil.
func (f *Inflow) Result() *Result { return f.result }

// Read returns data of the file.
func (f *Inflow) Read(p []byte) (int, error) {
	for len(f.rest) == 0 {
		if f.ended {
			return 0, io.EOF
		}
		if err := f.next(); err != nil {
			f.err = noEOF(err)
			return 0, f.err
		}
	}
	n := copy(p, f.rest)
	f.rest = f.rest[n:]
	if len(f.rest) == 0 && f.slot >= 0 {
		s := f.slot
		f.slot = -1
		if err := WriteNumbers(f.w, KindFree, uint32(s)); err != nil {
			return n, err
		}
	}
	return n, nil
}

func (f *Inflow) next() error {
	kind, payload, err := f.frames.Next()
	if err != nil {
		return err
	}
	switch kind {
	case f.kind:
		f.rest, f.ended = payload, len(payload) == 0
	case KindSlot:
		n, err := Numbers(payload, 2)
		if err != nil || !slices.Contains(f.mine, int(n[0])) {
			return fmt.Errorf("a slot was filled that is not this stream's: %v", n)
		}
		f.rest, err = f.mail.get(int(n[0]), int(n[1]), f.buf)
		if err != nil {
			return err
		}
		if f.slot = int(n[0]); len(f.rest) == 0 {
			f.slot = -1
			return WriteNumbers(f.w, KindFree, n[0])
		}
	case KindResult:
		r, err := ParseResult(payload)
		if err != nil {
			return err
		}
		f.result, f.ended = &r, true
	default:
		return fmt.Errorf("a frame of kind %q came between the data", kind)
	}
	return nil
}
