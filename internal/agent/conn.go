package agent

import (
	"io"
	"sync"
	"time"

	"lodge/internal/base/mux"
)

// Conn is the data of one session on a line. Reading ends with the session:
// when the other end says a word that begins another.
type Conn struct {
	line *Line
	rest []byte
	last Word

	mu              sync.Mutex
	cond            *sync.Cond
	reading, closed bool
}

// Session begins a session on the line, which must be in nobody else's hands
// until it ended.
func (l *Line) Session() *Conn {
	c := &Conn{line: l}
	c.cond = sync.NewCond(&c.mu)
	return c
}

// Wait returns when the session was closed and nobody reads any more.
func (c *Conn) Wait() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for !c.closed || c.reading {
		c.cond.Wait()
	}
}

// Last is the word that ended the session, once reading ended; its kind is 0
// if none did.
func (c *Conn) Last() Word { return c.last }

// Read returns data of the session.
func (c *Conn) Read(p []byte) (int, error) {
	if !c.begin() {
		return 0, ErrLineClosed
	}
	defer c.end()
	n := 0
	for n < len(p) {
		if len(c.rest) == 0 {
			if n > 0 && !c.line.Buffered() {
				break
			}
			data, w, err := c.line.Next()
			switch {
			case err != nil:
				return n, err
			case w.Kind == Credit:
				c.line.granted(w)
				continue
			case w.Kind != 0:
				c.last = w
				return n, io.EOF
			}
			c.rest = data
		}
		k := copy(p[n:], c.rest)
		n, c.rest = n+k, c.rest[k:]
	}
	return n, nil
}

func (c *Conn) begin() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reading = !c.closed
	return c.reading
}

func (c *Conn) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reading = false
	c.cond.Broadcast()
}

// Write queues data.
func (c *Conn) Write(p []byte) (int, error) {
	if err := c.Send(p, nil); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Send queues data in two pieces that stay together. It is ErrStuck if the line
// takes nothing for long.
func (c *Conn) Send(head, body []byte) error { return c.line.send(head, body, c.live) }

func (c *Conn) live() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return ErrLineClosed
	}
	return nil
}

// Close ends the session. The line lives on, unless somebody reads: there is
// no other way to stop that.
func (c *Conn) Close() error {
	c.mu.Lock()
	c.closed = true
	c.cond.Broadcast()
	reading := c.reading
	c.mu.Unlock()
	if reading {
		return c.line.Close()
	}
	c.line.mu.Lock()
	defer c.line.mu.Unlock()
	c.line.cond.Broadcast()
	return nil
}

// writeTimeout is how long who sends waits for the line to take what was sent
// before.
const writeTimeout = 15 * time.Second

// Streams is how both ends share a line among streams.
func Streams() mux.Options { return mux.Options{Window: StreamWindow, Most: StreamMax} }

// StreamWindow is how much of a stream is on its way and not read.
const StreamWindow = 256 << 10

// StreamMax is how many streams a session has at once.
const StreamMax = 128
