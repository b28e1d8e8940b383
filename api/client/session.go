package client

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"

	"github.com/coder/websocket"

	"lodge/api"
)

// Session is the wire to a program in a guest or to a guest's console. Its
// methods may be called from different goroutines.
type Session struct {
	// Note is called with words of the server's for a person; may be nil. It
	// is to be set before Output is called.
	Note func(words string)

	conn *websocket.Conn
}

// maxFrame bounds one message of the server's; it sends far smaller ones.
const maxFrame = 1 << 20

// Exec runs a program in a guest. Its streams are carried by Run.
func (c *Client) Exec(ctx context.Context, guest string, r api.ExecRequest) (*Session, error) {
	s, err := c.dial(ctx, route("guests", guest, "exec"))
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(r)
	if err == nil {
		err = s.conn.Write(ctx, websocket.MessageText, b)
	}
	if err != nil {
		s.Close()
		return nil, c.unreachable(ctx, err)
	}
	return s, nil
}

// Console attaches to a guest's console, which goes on without us.
func (c *Client) Console(ctx context.Context, guest string) (*Session, error) {
	return c.dial(ctx, route("guests", guest, "console"))
}

func (c *Client) dial(ctx context.Context, path string) (*Session, error) {
	h := http.Header{}
	c.authorize(h)
	conn, resp, err := websocket.Dial(ctx, c.base+path, &websocket.DialOptions{HTTPClient: c.http, HTTPHeader: h})
	if err != nil {
		if resp != nil && resp.StatusCode >= 300 {
			return nil, problemOf(resp)
		}
		return nil, c.unreachable(ctx, err)
	}
	conn.SetReadLimit(maxFrame)
	return &Session{conn: conn}, nil
}

// Close ends the session at once. A program that still runs is killed by the
// server.
func (s *Session) Close() { s.conn.CloseNow() }

// Input sends what the program reads; nothing at all ends its input.
func (s *Session) Input(ctx context.Context, p []byte) error {
	return s.write(ctx, api.FrameIn, p)
}

// Resize tells the program's terminal its size.
func (s *Session) Resize(ctx context.Context, rows, cols uint16) error {
	return s.control(ctx, api.Control{Resize: &api.Resize{Rows: rows, Cols: cols}})
}

// Signal sends the program a signal, named as in "INT".
func (s *Session) Signal(ctx context.Context, name string) error {
	return s.control(ctx, api.Control{Signal: name})
}

func (s *Session) control(ctx context.Context, c api.Control) error {
	b, err := json.Marshal(c)
	if err != nil {
		return err
	}
	return s.write(ctx, api.FrameControl, b)
}

func (s *Session) write(ctx context.Context, f api.Frame, p []byte) error {
	return s.conn.Write(ctx, websocket.MessageBinary, append([]byte{f}, p...))
}

// CopyInput sends everything that r gives and then ends the program's input.
// It returns when r ends; closing the session does not wake a blocked r.
func (s *Session) CopyInput(ctx context.Context, r io.Reader) error {
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			if werr := s.Input(ctx, buf[:n]); werr != nil {
				return werr
			}
		}
		if errors.Is(err, io.EOF) {
			return s.Input(ctx, nil)
		}
		if err != nil {
			return err
		}
	}
}

// Output writes what the program writes until it ends, and returns its exit
// status. A console that the server closed in order has the status 0.
func (s *Session) Output(ctx context.Context, stdout, stderr io.Writer) (int, error) {
	for {
		_, p, err := s.conn.Read(ctx)
		if err != nil {
			return 0, s.lost(ctx, err)
		}
		if len(p) == 0 {
			continue
		}
		switch p[0] {
		case api.FrameOut:
			_, err = stdout.Write(p[1:])
		case api.FrameErr:
			_, err = stderr.Write(p[1:])
		case api.FrameControl:
			var c api.Control
			if err = json.Unmarshal(p[1:], &c); err != nil {
				break
			}
			if c.Note != "" && s.Note != nil {
				s.Note(c.Note)
			}
			if c.Error != nil {
				return 0, c.Error
			}
			if c.Exit != nil {
				return *c.Exit, nil
			}
		}
		if err != nil {
			return 0, err
		}
	}
}

func (s *Session) lost(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if websocket.CloseStatus(err) == websocket.StatusNormalClosure {
		return nil
	}
	return &api.Error{Kind: api.KindUnavailable, Detail: "the connection to lodged broke: " + err.Error()}
}
