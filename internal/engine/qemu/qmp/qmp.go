// Package qmp speaks QEMU's machine protocol: commands with replies, events,
// and open files that go along with a command.
//
// What QEMU writes is not trusted: a guest that broke out of its machine
// writes it. Messages have a greatest size, whoever waits for a reply waits as
// long as its context, and what makes no sense ends the session.
package qmp

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"lodge/internal/base/ids"
	"lodge/internal/base/pace"
)

// messageMax is the longest message that is read, in bytes. The longest that
// Lodge asks for, the list of block devices of a guest with many, has some
// tens of thousands.
const messageMax = 4 << 20

// Event is something that happened without being asked for.
type Event struct {
	Name string
	Data json.RawMessage
	At   time.Time // by QEMU's clock, which is its host's
}

// Error is QEMU's refusal of a command.
type Error struct {
	Command string
	Class   string `json:"class"`
	Desc    string `json:"desc"`
}

// Error names the command and QEMU's own words.
func (e *Error) Error() string { return e.Command + ": " + e.Desc }

// Client is one session. Its methods are safe for concurrent use.
type Client struct {
	conn  *net.UnixConn
	event func(Event)
	// patience is how long QEMU may take to read a message.
	patience time.Duration
	run      string // begins the ids of this session's commands: replies to an earlier one are told apart

	write sync.Mutex // one message at a time
	files sync.Mutex // one open file under way: QEMU keeps only the last that came

	mu      sync.Mutex
	last    int
	waiting map[string]chan message
	err     error
	done    chan struct{}
}

// message is anything that QEMU writes.
type message struct {
	Greeting json.RawMessage `json:"QMP"`
	Event    string          `json:"event"`
	Data     json.RawMessage `json:"data"`
	At       struct {
		Seconds int64 `json:"seconds"`
		Micros  int64 `json:"microseconds"`
	} `json:"timestamp"`
	ID     json.RawMessage `json:"id"`
	Return json.RawMessage `json:"return"`
	Error  *Error          `json:"error"`
}

// Open begins a session on a stream socket that QEMU serves a monitor on. An
// earlier session may have used it and ended anywhere, in the middle of a
// command or of a reply. event is called for each event in turn and must not
// wait for a reply; it may be nil. conn becomes the client's.
func Open(ctx context.Context, conn *net.UnixConn, event func(Event)) (*Client, error) {
	c := &Client{conn: conn, event: event, patience: writeTime, run: ids.New(), waiting: map[string]chan message{}, done: make(chan struct{})}
	go c.read()
	if err := c.negotiate(ctx); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// reset makes QEMU's parser forget half a command that an earlier session left
// behind: it is no byte of UTF-8.
const reset = "\xff"

// negotiate leaves the mode in which QEMU takes no command but this one. In a
// session that goes on it did so before, and says so.
func (c *Client) negotiate(ctx context.Context) error {
	if err := c.send([]byte(reset), nil); err != nil {
		return err
	}
	err := c.Do(ctx, "qmp_capabilities", nil, nil)
	if refused, ok := errors.AsType[*Error](err); ok && refused.Class == "CommandNotFound" {
		return nil
	}
	return err
}

// Do has QEMU carry out a command and reads its reply into result, unless that
// is nil. A refusal is an *Error.
func (c *Client) Do(ctx context.Context, command string, args, result any) error {
	return c.do(ctx, command, args, result, nil)
}

// PassFile gives QEMU an open file, which commands then call name. The caller
// keeps its own.
func (c *Client) PassFile(ctx context.Context, name string, f *os.File) error {
	return c.withFile(ctx, "getfd", map[string]any{"fdname": name}, nil, f)
}

// AddFile gives QEMU an open file that block devices find as /dev/fdset/N,
// and returns N. query-fdsets shows it with what it is for.
func (c *Client) AddFile(ctx context.Context, what string, f *os.File) (int, error) {
	var r struct {
		Set int `json:"fdset-id"`
	}
	err := c.withFile(ctx, "add-fd", map[string]any{"opaque": what}, &r, f)
	return r.Set, err
}

func (c *Client) withFile(ctx context.Context, command string, args, result any, f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	c.files.Lock()
	defer c.files.Unlock()
	var sent error
	err = raw.Control(func(fd uintptr) {
		sent = c.do(ctx, command, args, result, unix.UnixRights(int(fd)))
	})
	return errors.Join(err, sent)
}

func (c *Client) do(ctx context.Context, command string, args, result any, rights []byte) error {
	id, reply, err := c.expect()
	if err != nil {
		return err
	}
	defer c.forget(id)
	request := struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        string `json:"id"`
	}{command, args, id}
	text, err := json.Marshal(request)
	if err != nil {
		return err
	}
	if err := c.send(append(text, '\n'), rights); err != nil {
		return err
	}
	select {
	case m := <-reply:
		return m.into(command, result)
	case <-c.done:
		return fmt.Errorf("%s: %w", command, c.Err())
	case <-ctx.Done():
		return fmt.Errorf("%s: no reply: %w", command, ctx.Err())
	}
}

func (m message) into(command string, result any) error {
	if m.Error != nil {
		m.Error.Command = command
		return m.Error
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(m.Return, result); err != nil {
		return fmt.Errorf("%s: the reply makes no sense: %w", command, err)
	}
	return nil
}

func (c *Client) expect() (id string, reply chan message, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return "", nil, c.err
	}
	c.last++
	id, reply = c.run+"/"+strconv.Itoa(c.last), make(chan message, 1)
	c.waiting[id] = reply
	return id, reply, nil
}

func (c *Client) forget(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.waiting, id)
}

// writeTime is how long QEMU may take to read a message before it counts as one
// that reads none any more.
const writeTime = 10 * time.Second

// send writes one message whole. Open files go with its first byte. After half a
// message nothing else can be said: the session ends.
func (c *Client) send(text, rights []byte) error {
	c.write.Lock()
	defer c.write.Unlock()
	err := c.conn.SetWriteDeadline(time.Now().Add(c.patience))
	if err == nil {
		err = c.put(text, rights)
	}
	if err != nil {
		c.end(err)
	}
	return err
}

func (c *Client) put(text, rights []byte) error {
	if rights != nil {
		n, _, err := c.conn.WriteMsgUnix(text, rights, nil)
		if err != nil {
			return err
		}
		text = text[n:]
	}
	_, err := c.conn.Write(text)
	return err
}

// What QEMU may make Lodge read in a second: many times what it ever says.
const (
	messageRate = 2_000
	byteRate    = 32 << 20
)

// read takes what comes until the session ends. What comes before the first
// reply of this session may begin in the middle.
func (c *Client) read() {
	lines := bufio.NewScanner(c.conn)
	lines.Buffer(nil, messageMax)
	messages, bulk := pace.New(messageRate, messageRate), pace.New(byteRate, byteRate)
	synced := false
	var err error
	for err == nil && lines.Scan() {
		messages.Spend(1)
		bulk.Spend(len(lines.Bytes()))
		line := bytes.TrimSpace(lines.Bytes())
		if len(line) == 0 {
			continue
		}
		var m message
		if json.Unmarshal(line, &m) != nil {
			if synced {
				err = errors.New("QEMU's monitor says what makes no sense")
			}
			continue
		}
		switch {
		case m.Event != "":
			if c.event != nil {
				c.event(Event{m.Event, m.Data, time.Unix(m.At.Seconds, m.At.Micros*1000)})
			}
		default:
			synced = c.deliver(m) || synced
		}
	}
	c.end(errors.Join(err, lines.Err()))
}

// deliver hands a reply to whoever waits for it. Other sessions' replies, and
// QEMU's complaint about the reset, belong to nobody.
func (c *Client) deliver(m message) bool {
	var id string
	if json.Unmarshal(m.ID, &id) != nil {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	reply, ok := c.waiting[id]
	if ok {
		delete(c.waiting, id)
		reply <- m
	}
	return ok
}

// errClosed is why a session ended that nothing was wrong with.
var errClosed = errors.New("the session with QEMU's monitor is over")

func (c *Client) end(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	if c.err = err; err == nil || errors.Is(err, net.ErrClosed) {
		c.err = errClosed
	}
	close(c.done)
	c.conn.Close()
}

// Err says why the session ended, or nil while it goes on.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Done is closed when the session ends.
func (c *Client) Done() <-chan struct{} { return c.done }

// Close ends the session; the guest runs on.
func (c *Client) Close() { c.end(errClosed) }
