package dial

import (
	"encoding/binary"
	"errors"
	"io"

	"lodge/internal/agent"
	"lodge/internal/base/pace"
)

// What a guest may make the host read in a second.
const (
	lineRate  = 512 << 20 // bytes of any kind: more than any line carries
	junkRate  = 1 << 20   // bytes while no session is
	frameRate = 20_000    // frames of a session
	dullRate  = 2_000     // of these, such as carry no data; and words between them
)

// paced is a line that is read no faster than its pace.
type paced struct {
	io.ReadWriteCloser
	pace *pace.Pace
}

func (p paced) Read(b []byte) (int, error) {
	n, err := p.ReadWriteCloser.Read(b)
	p.pace.Spend(n)
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
	frames *pace.Pace
	dull   *pace.Pace
}

func newGuard(c *agent.Conn) *guard {
	return &guard{Conn: c, frames: pace.New(frameRate, frameRate), dull: pace.New(dullRate, dullRate)}
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
	g.frames.Spend(1)
	if kind == typeData && length > 0 {
		g.body = length
		return nil
	}
	g.dull.Spend(1)
	return nil
}
