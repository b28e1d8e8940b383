package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strconv"
	"sync"
	"time"
)

// A line is what bytes run on between host and guest: a serial port of some
// kind, on which bytes are lost while nobody has it open, and which outlives
// both who opened it. So data is escaped, and words stand between it that are
// understood at any point: the host says Mark until the guest answers, then Go;
// the guest says Start, and both begin anew there.

// escape begins what is no data; doubled, it is data. UTF-8 never has it.
const escape = 0xF5

// Word is what one end tells the other between the data.
type Word struct {
	Kind WordKind
	ID   ID
}

// WordKind is what a word says.
type WordKind byte

// The words.
const (
	Mark   WordKind = 'M' // host: who is there? Nothing from before counts
	Answer WordKind = 'A' // guest: I am, and heard this mark
	Go     WordKind = 'G' // host: what follows is a session
	Start  WordKind = 'S' // guest: likewise
	Hello  WordKind = 'H' // guest: I opened the line
	Credit WordKind = 'C' // I took so many bytes more from the line
)

// idLen is how long the tail of a word is: hexadecimal digits.
const idLen = 16

// ID tells the words of one conversation from those of others.
type ID [idLen]byte

// Number makes an ID of a number.
func Number(n uint64) (id ID) {
	copy(id[:], fmt.Sprintf("%0*x", idLen, n))
	return id
}

func (id ID) number() uint64 {
	n, err := strconv.ParseUint(string(id[:]), 16, 64)
	if err != nil {
		return 0
	}
	return n
}

const wordLen = 2 + idLen

// AppendWord writes a word as it is on the line.
func AppendWord(b []byte, w Word) []byte {
	return append(append(b, escape, byte(w.Kind)), w.ID[:]...)
}

// AppendData writes data as it is on the line.
func AppendData(b, p []byte) []byte {
	for {
		i := bytes.IndexByte(p, escape)
		if i < 0 {
			return append(b, p...)
		}
		b = append(append(b, p[:i+1]...), escape)
		p = p[i+1:]
	}
}

// readSize is how much is asked of a line at once.
const readSize = 64 << 10

// Reader tells data from words. It takes anything and fails only as what it
// reads from does.
type Reader struct {
	Odd func() // called for each word and for what means nothing, to slow down who sends many; may be nil

	r        io.Reader
	buf      []byte
	from, to int
}

// NewReader reads from r.
func NewReader(r io.Reader) *Reader { return &Reader{r: r, buf: make([]byte, readSize)} }

// Next returns data, valid until the next call, or a word; data is nil then.
func (r *Reader) Next() (data []byte, w Word, err error) {
	for {
		if r.from == r.to {
			if err := r.fill(); err != nil {
				return nil, w, err
			}
		}
		b := r.buf[r.from:r.to]
		i := bytes.IndexByte(b, escape)
		if i < 0 {
			i = len(b)
		}
		if i > 0 {
			r.from += i
			return b[:i], w, nil
		}
		data, w, err = r.escaped()
		if err != nil || data != nil || w.Kind != 0 {
			return data, w, err
		}
	}
}

// Buffered reports whether Next returns without reading.
func (r *Reader) Buffered() bool {
	b := r.buf[r.from:r.to]
	return len(b) > 0 && (b[0] != escape || len(b) > 1 && b[1] == escape)
}

// escaped reads what an escape begins; nothing is returned for what means
// nothing.
func (r *Reader) escaped() (data []byte, w Word, err error) {
	if err := r.need(2); err != nil {
		return nil, w, err
	}
	k := r.buf[r.from+1]
	if k == escape {
		data = r.buf[r.from : r.from+1]
		r.from += 2
		return data, w, nil
	}
	if r.Odd != nil {
		r.Odd()
	}
	switch WordKind(k) {
	case Mark, Answer, Go, Start, Hello, Credit:
		for n := 3; n <= wordLen; n++ {
			if err := r.need(n); err != nil {
				return nil, w, err
			}
			if r.buf[r.from+n-1] == escape { // the word was cut off, and this is another
				r.from += n - 1
				return nil, w, nil
			}
		}
		w.Kind = WordKind(k)
		copy(w.ID[:], r.buf[r.from+2:])
		r.from += wordLen
		return nil, w, nil
	}
	r.from += 2
	return nil, w, nil
}

// need reads until n bytes are there.
func (r *Reader) need(n int) error {
	if r.from+n > len(r.buf) {
		r.to = copy(r.buf, r.buf[r.from:r.to])
		r.from = 0
	}
	for r.to-r.from < n {
		if err := r.fill(); err != nil {
			return err
		}
	}
	return nil
}

func (r *Reader) fill() error {
	if r.from == r.to {
		r.from, r.to = 0, 0
	}
	for range 100 {
		n, err := r.r.Read(r.buf[r.to:])
		if n > 0 {
			r.to += n
			return nil
		}
		if err != nil {
			return err
		}
	}
	return io.ErrNoProgress
}

// sendMax is how many bytes wait to be sent before who sends has to wait.
const sendMax = 128 << 10

// writeMax is how much is written to a line at once.
const writeMax = 64 << 10

// ErrLineClosed is what a closed line answers.
var ErrLineClosed = errors.New("the line is closed")

// ErrStuck is what a line answers that nobody reads at the other end.
var ErrStuck = errors.New("the line takes nothing")

// Line is one end of a line. One goroutine reads; any number may send. What is
// sent goes out in as few writes as the other end's pace allows.
type Line struct {
	*Reader
	raw    io.ReadWriteCloser
	window int // at most so many bytes that the other end did not say it took; 0: no bound
	ack    int // the other end is told after so many bytes taken; 0: never

	mu     sync.Mutex
	cond   *sync.Cond
	out    []byte
	sent   int // that count against window
	taken  int // not yet told
	closed error
	over   chan struct{}
}

// NewLine takes over raw. window is for the end that must not send faster than
// it is told, ack for the one that tells; both may be 0.
func NewLine(raw io.ReadWriteCloser, window, ack int) *Line {
	l := &Line{raw: raw, window: window, ack: ack, over: make(chan struct{})}
	l.cond = sync.NewCond(&l.mu)
	l.Reader = NewReader(counted{l})
	go l.write()
	return l
}

// counted tells the other end what was taken from the line.
type counted struct{ l *Line }

func (c counted) Read(p []byte) (int, error) {
	n, err := c.l.raw.Read(p)
	if c.l.ack > 0 && n > 0 {
		c.l.took(n)
	}
	return n, err
}

func (l *Line) took(n int) {
	l.mu.Lock()
	l.taken += n
	n = l.taken
	if n >= l.ack {
		l.taken = 0
	}
	l.mu.Unlock()
	if n >= l.ack {
		l.Say(Word{Credit, Number(uint64(n))})
	}
}

// granted hears how much the other end took. One that lies gains no more than
// the window.
func (l *Line) granted(w Word) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := w.ID.number()
	l.sent -= int(min(n, uint64(l.sent)))
	l.cond.Broadcast()
}

// Say sends a word. It does not wait: words that nobody takes are bounded by
// who says them.
func (l *Line) Say(w Word) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if w.Kind == Mark {
		l.out = append(l.out, spacer)
	}
	l.out = AppendWord(l.out, w)
	l.cond.Broadcast()
}

// spacer goes before a mark, so that it is heard even if what was said before
// ended between an escape and what that is to mean.
const spacer = 0

// Restart forgets what was sent and not taken, for a conversation that begins
// anew: the other end has read what came before its answer.
func (l *Line) Restart() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.out, l.sent, l.taken = l.out[:0], 0, 0
	l.cond.Broadcast()
}

// send queues data in two pieces, and waits while too much is queued.
func (l *Line) send(head, body []byte, live func() error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.out) >= sendMax {
		stuck := false
		t := time.AfterFunc(writeTimeout, func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			stuck = true
			l.cond.Broadcast()
		})
		defer t.Stop()
		for len(l.out) >= sendMax && l.closed == nil && live() == nil && !stuck {
			l.cond.Wait()
		}
		if stuck {
			return ErrStuck
		}
	}
	if l.closed != nil {
		return l.closed
	}
	if err := live(); err != nil {
		return err
	}
	l.out = AppendData(AppendData(l.out, head), body)
	l.cond.Broadcast()
	return nil
}

// write sends what is queued until the line is closed.
func (l *Line) write() {
	var b []byte
	yielded := false
	for {
		l.mu.Lock()
		for l.closed == nil && (len(l.out) == 0 || l.window > 0 && l.sent >= l.window) {
			l.cond.Wait()
		}
		if l.closed != nil {
			l.mu.Unlock()
			return
		}
		if !yielded { // who is about to say more does it first
			yielded = true
			l.mu.Unlock()
			runtime.Gosched()
			continue
		}
		yielded = false
		n := min(len(l.out), writeMax)
		if l.window > 0 {
			n = min(n, l.window-l.sent)
			l.sent += n
		}
		b = append(b[:0], l.out[:n]...)
		l.out = l.out[:copy(l.out, l.out[n:])]
		l.cond.Broadcast()
		l.mu.Unlock()
		if _, err := l.raw.Write(b); err != nil {
			l.fail(err)
			return
		}
	}
}

func (l *Line) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed == nil {
		l.closed = err
		close(l.over)
	}
	l.cond.Broadcast()
}

// Closed is closed with the line.
func (l *Line) Closed() <-chan struct{} { return l.over }

// Close ends the line for good.
func (l *Line) Close() error {
	l.fail(ErrLineClosed)
	return l.raw.Close()
}
