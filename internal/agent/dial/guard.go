package dial

import (
	"encoding/binary"
	"errors"
	"io"
	"time"

	"lodge/internal/agent"
)

// What a guest may make the host read in a second.
const (
	lineRate  = 512 << 20 // bytes of any kind: more than any line carries
	junkRate  = 1 << 20   // bytes while no session is
	frameRate = 20_000    // frames of a session
	dullRate  = 2_000     // of these, such as carry no data; and words between them
)

// pace makes who spends more than was earned wait.
type pace struct {
	rate, burst float64
	left        float64
	last        time.Time
}

func newPace(rate, burst float64) *pace {
	return &pace{rate: rate, burst: burst, left: burst, last: time.Now()}
}

// set is for who has the line to himself.
func (p *pace) set(rate float64) {
	p.rate, p.burst, p.left = rate, rate, min(p.left, rate)
}

func (p *pace) spend(n int) {
	if p.left -= float64(n); p.left > 0 {
		return
	}
	now := time.Now()
	p.left = min(p.burst, p.left+now.Sub(p.last).Seconds()*p.rate)
	p.last = now
	if p.left < 0 {
		time.Sleep(time.Duration(-p.left / p.rate * float64(time.Second)))
	}
}

// paced is a line that is read no faster than its pace.
type paced struct {
	io.ReadWriteCloser
	pace *pace
}

func (p paced) Read(b []byte) (int, error) {
	n, err := p.ReadWriteCloser.Read(b)
	p.pace.spend(n)
	return n, err
}

// guard looks at the multiplexer's frames before the multiplexer does
// (github.com/hashicorp/yamux/blob/master/spec.md) and ends a session in which
// the guest does what our agent never does and which would cost the host
// memory or time: open streams, ping (it may answer ours), announce more than a
// window.
type guard struct {
	*agent.Conn
	head   [12]byte
	have   int
	body   uint32 // of the present frame, still to come
	frames *pace
	dull   *pace
}

func newGuard(c *agent.Conn) *guard {
	return &guard{Conn: c, frames: newPace(frameRate, frameRate), dull: newPace(dullRate, dullRate)}
}

// Read returns what may be read.
func (g *guard) Read(p []byte) (int, error) {
	n, err := g.Conn.Read(p)
	if e := g.look(p[:n]); e != nil {
		return 0, e
	}
	return n, err
}

var errMisbehaves = errors.New("the agent does what no agent does")

// Parts of a frame's head.
const (
	typeData, typeWindow, typePing = 0, 1, 2

	flagSYN, flagACK = 1, 2
)

func (g *guard) look(b []byte) error {
	for len(b) > 0 {
		if g.body > 0 {
			k := min(int(g.body), len(b))
			g.body -= uint32(k)
			b = b[k:]
			continue
		}
		k := copy(g.head[g.have:], b)
		g.have += k
		b = b[k:]
		if g.have < len(g.head) {
			return nil
		}
		g.have = 0
		if err := g.frame(); err != nil {
			return err
		}
	}
	return nil
}

func (g *guard) frame() error {
	version, kind := g.head[0], g.head[1]
	flags, length := binary.BigEndian.Uint16(g.head[2:]), binary.BigEndian.Uint32(g.head[8:])
	pong := kind == typePing && flags == flagACK // its length is a number of ours
	if version != 0 || kind > typeWindow && !pong || flags&flagSYN != 0 || length > agent.StreamWindow && !pong {
		return errMisbehaves
	}
	g.frames.spend(1)
	if kind == typeData && length > 0 {
		g.body = length
		return nil
	}
	g.dull.spend(1)
	return nil
}
