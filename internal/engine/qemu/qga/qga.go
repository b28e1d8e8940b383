// Package qga speaks to QEMU's guest agent, which unmodified guests may have:
// one command at a time, each with a reply, on a line of which the agent may
// come and go. (The protocol: QEMU's docs/interop/qemu-ga.rst.)
//
// The agent is the guest's and may lie, flood or fall silent. Replies have a
// greatest size, every wait ends with its context or before, and what an agent
// says is true of its own guest at most.
package qga

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"time"

	"lodge/internal/base/errs"
)

const (
	// replyMax is the longest reply that is read, in bytes, to commands that
	// carry no data.
	replyMax = 1 << 20
	// staleMax is how much is skipped in search of an answer: an agent may not
	// have got rid of a long reply to somebody who is gone.
	staleMax = 64 << 20
	// commandTime is how long the agent may take for one command.
	commandTime = 20 * time.Second
	// delimiter is what the agent puts before the reply to a sync, and what
	// makes its parser forget half a command: it is no byte of UTF-8.
	delimiter = 0xff
)

// Error is the agent's refusal of a command.
type Error struct {
	Command string
	Class   string `json:"class"`
	Desc    string `json:"desc"`
}

// Error names the command and the agent's own words.
func (e *Error) Error() string { return e.Command + ": " + e.Desc }

// Client is the host's end of one guest's line. Its methods are safe for
// concurrent use; commands take turns.
type Client struct {
	conn   net.Conn
	turn   chan struct{} // held by whoever uses what is below
	r      *bufio.Reader
	synced bool // all that was read belongs to what was asked
}

// New returns a client on a line, which becomes its own. Nothing is written
// before the first command.
func New(conn net.Conn) *Client {
	c := &Client{conn: conn, turn: make(chan struct{}, 1), r: bufio.NewReaderSize(conn, 32<<10)}
	c.turn <- struct{}{}
	return c
}

// Close ends commands under way. The agent hears nothing of it.
func (c *Client) Close() { c.conn.Close() }

// Do has the agent carry out a command and reads its reply into result, unless
// that is nil. A refusal is an *Error; silence is an errs.Error of kind Busy.
func (c *Client) Do(ctx context.Context, command string, args, result any) error {
	return c.do(ctx, command, args, result, replyMax)
}

func (c *Client) do(ctx context.Context, command string, args, result any, most int) error {
	return c.use(ctx, func() error {
		if err := c.write(command, args, false); err != nil {
			return err
		}
		text, err := c.line(most)
		if err != nil {
			return err
		}
		m, err := parse(text)
		if err != nil {
			return err
		}
		return m.into(command, result)
	})
}

// Tell is Do for a command that the agent does not reply to. It is known to
// have been alive the moment before.
func (c *Client) Tell(ctx context.Context, command string, args any) error {
	return c.use(ctx, func() error {
		c.synced = false // a refusal may follow
		if err := c.sync(); err != nil {
			return err
		}
		err := c.write(command, args, false)
		c.synced = false
		return err
	})
}

// use has the line to itself for one command, once it is known that the agent
// listens and what it says belongs to it.
func (c *Client) use(ctx context.Context, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	select {
	case <-c.turn:
	case <-ctx.Done():
		return silent(ctx.Err())
	}
	defer func() { c.turn <- struct{}{} }()
	if err := c.conn.SetDeadline(time.Time{}); err != nil {
		return silent(err)
	}
	undo := context.AfterFunc(ctx, func() { _ = c.conn.SetDeadline(time.Unix(1, 0)) })
	defer undo()
	var err error
	if !c.synced {
		err = c.sync()
	}
	if err == nil {
		err = f()
	}
	if _, refused := errors.AsType[*Error](err); err == nil || refused {
		return err
	}
	c.synced = false
	return silent(err)
}

// silent is what a person is told of an agent that did not answer, or not as
// agents do.
func silent(err error) error {
	return &errs.Error{Op: "qga", Kind: errs.Busy, Msg: "the guest's QEMU agent does not answer",
		Hint: "the guest may be booting, paused or overloaded: look at its console with lodge logs GUEST", Err: err}
}

// message is what the agent writes.
type message struct {
	Return json.RawMessage `json:"return"`
	Error  *Error          `json:"error"`
}

func parse(text []byte) (m message, err error) {
	if err := json.Unmarshal(text, &m); err != nil {
		return m, fmt.Errorf("what the agent says makes no sense: %w", err)
	}
	if m.Error == nil && m.Return == nil {
		return m, errors.New("what the agent says is no reply")
	}
	return m, nil
}

// wordsMax bounds what is taken over of an agent's own words.
const wordsMax = 500

func (m message) into(command string, result any) error {
	if m.Error != nil {
		return &Error{command, cut(m.Error.Class), cut(m.Error.Desc)}
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(m.Return, result); err != nil {
		return fmt.Errorf("%s: the reply makes no sense: %w", command, err)
	}
	return nil
}

// cut bounds a text of the agent's and keeps it from giving orders to a
// terminal.
func cut(s string) string {
	b := []byte(s[:min(len(s), wordsMax)])
	for i, c := range b {
		if c < ' ' || c == 0x7f {
			b[i] = ' '
		}
	}
	return string(bytes.ToValidUTF8(b, []byte("?")))
}

func (c *Client) write(command string, args any, first bool) error {
	text, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{command, args})
	if err != nil {
		return err
	}
	text = append(text, '\n')
	if first {
		text = append([]byte{delimiter}, text...)
	}
	_, err = c.conn.Write(text)
	return err
}

// idMax is what ids of syncs are below: numbers of JSON are exact there.
const idMax = 1 << 53

// sync finds where in what is read the agent's answers to this client begin.
func (c *Client) sync() error {
	id := rand.Int64N(idMax)
	if err := c.write("guest-sync-delimited", map[string]int64{"id": id}, true); err != nil {
		return err
	}
	for left := staleMax; ; {
		n, err := c.skip(left)
		if err != nil {
			return err
		}
		if left -= n; left <= 0 {
			return errTooLong
		}
		text, err := c.line(replyMax)
		if errors.Is(err, errTooLong) {
			left -= replyMax
			continue
		}
		if err != nil {
			return err
		}
		left -= len(text)
		var m struct {
			Return *int64 `json:"return"`
		}
		if json.Unmarshal(text, &m) == nil && m.Return != nil && *m.Return == id {
			c.synced = true
			return nil
		}
	}
}

var errTooLong = errors.New("the agent says more than an agent has to say")

// skip reads up to and with the next delimiter, and returns how much that was.
func (c *Client) skip(most int) (n int, err error) {
	for n <= most {
		b, err := c.r.ReadSlice(delimiter)
		n += len(b)
		if !errors.Is(err, bufio.ErrBufferFull) {
			return n, err
		}
	}
	return n, errTooLong
}

// line reads a line of at most so many bytes. A delimiter in it begins it anew:
// what stood before is the rest of another.
func (c *Client) line(most int) (text []byte, err error) {
	for {
		b, err := c.r.ReadSlice('\n')
		if len(text)+len(b) > most {
			return nil, errTooLong
		}
		text = append(text, b...)
		if errors.Is(err, io.EOF) {
			return nil, io.ErrUnexpectedEOF
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if i := bytes.LastIndexByte(text, delimiter); i >= 0 {
			text = text[i+1:]
		}
		return text, err
	}
}
