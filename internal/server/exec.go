package server

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/sys/unix"

	"lodge/api"
	"lodge/internal/base/errs"
	"lodge/internal/base/session"
)

const (
	maxMessage = 1 << 20  // bytes of one websocket message that we take
	chunk      = 32 << 10 // bytes of output in one message
	// queued is how many messages of input wait for a program that does not
	// read, before the client is made to wait. Signals and sizes behind them
	// wait with them.
	queued = 64
	// pingEvery is how often a client is tried that says nothing: one that
	// vanished is noticed even while its input waits.
	pingEvery = 15 * time.Second
	// lull is how long the output of a program that has ended must be silent
	// before it is over, when something it left behind holds it open.
	lull = 200 * time.Millisecond
)

func (s *Server) exec(ctx context.Context, in *GuestName, w *streamWriter, r *http.Request) error {
	g, err := s.Tables.Guests.Get(in.Name)
	if err != nil {
		return err
	}
	c, err := upgrade(w, r)
	if err != nil {
		return err
	}
	defer c.CloseNow()
	kind, text, err := c.Read(ctx)
	if err != nil {
		return nil // gone before it asked
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wire := &wireConn{conn: c, ctx: ctx}
	b, err := execRequest(kind, text)
	if err == nil {
		var code int
		b.guest = g.ID
		if code, err = s.run(ctx, cancel, wire, b); err == nil {
			wire.control(api.Control{Exit: &code})
		}
	}
	if err != nil {
		e := s.problem(err, "exec").body
		wire.control(api.Control{Error: &e})
	}
	c.Close(websocket.StatusNormalClosure, "")
	return nil
}

// upgrade takes over the connection; it writes its own refusal.
func upgrade(w *streamWriter, r *http.Request) (*websocket.Conn, error) {
	if !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
		return nil, errs.Bad("Upgrade", "is not websocket", "this route speaks websocket only; lodge exec does")
	}
	w.begun = true
	c, err := websocket.Accept(w.ResponseWriter, r, nil)
	if err != nil {
		return nil, err
	}
	c.SetReadLimit(maxMessage)
	return c, nil
}

// maxPatience bounds how long a guest that boots is waited for.
const maxPatience = time.Hour

// execRequest reads what is to run; in which guest it does not say.
func execRequest(kind websocket.MessageType, text []byte) (beginning, error) {
	if kind != websocket.MessageText {
		return beginning{}, errs.Bad("", "the first message must be text: an ExecRequest", "")
	}
	q, err := decode[api.ExecRequest](text)
	if err != nil {
		return beginning{}, err
	}
	patience := time.Duration(q.Wait) * time.Second
	switch {
	case len(q.Command) == 0 || q.Command[0] == "":
		return beginning{}, errs.Bad("command", "is empty", "give a program and its arguments")
	case patience < 0 || patience > maxPatience:
		return beginning{}, errs.Bad("wait", "is out of range", "give 0 to 3600 seconds")
	case q.NoInput && q.TTY:
		return beginning{}, errs.Bad("no_input", "cannot be with a terminal, which always has input", "leave one of them out")
	}
	return beginning{
		request:  session.Request{Argv: q.Command, Env: q.Env, Dir: q.Cwd, User: q.User, TTY: q.TTY, Rows: q.Rows, Cols: q.Cols},
		noInput:  q.NoInput,
		patience: patience,
	}, nil
}

// beginning is a program that is to run in a guest.
type beginning struct {
	guest    string // id
	request  session.Request
	noInput  bool
	patience time.Duration // for a guest that boots
}

// bootPause is how long a guest that boots is left before it is tried again.
const bootPause = 100 * time.Millisecond

// begin runs a program in a guest, as soon as it answers.
func (s *Server) begin(ctx context.Context, w *wireConn, b beginning) (session.Session, error) {
	for deadline, told := time.Now().Add(b.patience), false; ; told = true {
		program, err := s.Live.Exec(ctx, b.guest, b.request)
		if !errs.Is(err, errs.Busy) || time.Now().After(deadline) {
			return program, err
		}
		if !told {
			w.control(api.Control{Note: personal(err) + "; waiting for it"})
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(bootPause):
		}
	}
}

func personal(err error) string {
	if e, ok := errors.AsType[*errs.Error](err); ok {
		return e.Words()
	}
	return err.Error()
}

// wireConn writes frames. It is safe for concurrent use.
type wireConn struct {
	conn *websocket.Conn
	ctx  context.Context // of the connection: gone with it
}

func (w *wireConn) control(c api.Control) {
	text, err := json.Marshal(c)
	if err != nil {
		return
	}
	// Whoever is gone needs no last word.
	_ = w.conn.Write(w.ctx, websocket.MessageBinary, append([]byte{api.FrameControl}, text...))
}

// send carries r to the client until it ends. before is called ahead of each
// read.
func (w *wireConn) send(frame api.Frame, r io.Reader, before func()) error {
	buf := make([]byte, 1+chunk)
	buf[0] = frame
	for {
		before()
		n, err := r.Read(buf[1:])
		if n > 0 {
			if werr := w.conn.Write(w.ctx, websocket.MessageBinary, buf[:1+n]); werr != nil {
				return werr
			}
		}
		if err != nil {
			return nil
		}
	}
}

// hands is what a client's messages act upon.
type hands struct {
	input  io.Writer
	eof    func() // no more input
	resize func(rows, cols uint16) error
	signal func(os.Signal) error
}

// listen acts upon the client's messages until it goes or misbehaves; gone is
// called then, before input that the program does not take is given up.
func (w *wireConn) listen(h hands, gone func()) {
	feed := make(chan []byte, queued)
	var fed sync.WaitGroup
	defer fed.Wait()
	defer close(feed)
	defer gone()
	fed.Go(func() { pour(feed, h) })
	for {
		kind, p, err := w.conn.Read(w.ctx)
		if err != nil || kind != websocket.MessageBinary || len(p) == 0 {
			return
		}
		switch p[0] {
		case api.FrameIn:
			select {
			case feed <- p[1:]:
			case <-w.ctx.Done():
				return
			}
		case api.FrameControl:
			if act(p[1:], h) != nil {
				return
			}
		}
	}
}

// pour writes input as fast as the program takes it. What comes after the
// program stopped reading is thrown away.
func pour(feed <-chan []byte, h hands) {
	broken := false
	for p := range feed {
		switch {
		case broken:
		case len(p) == 0:
			h.eof()
			broken = true
		default:
			_, err := h.input.Write(p)
			broken = err != nil
		}
	}
}

// act carries out a control message. A signal or size that comes too late is
// no misbehaviour.
func act(text []byte, h hands) error {
	c, err := decode[api.Control](text)
	if err != nil {
		return err
	}
	if c.Resize != nil {
		_ = h.resize(c.Resize.Rows, c.Resize.Cols)
	}
	if c.Signal != "" {
		sig := unix.SignalNum("SIG" + strings.TrimPrefix(strings.ToUpper(c.Signal), "SIG"))
		if sig == 0 {
			return errs.Bad("signal", c.Signal+" is not a signal", "name it as in INT")
		}
		_ = h.signal(sig)
	}
	return nil
}

// watch notices a client that vanished without a word.
func (w *wireConn) watch(gone func()) {
	t := time.NewTicker(pingEvery)
	defer t.Stop()
	for {
		select {
		case <-w.ctx.Done():
			return
		case <-t.C:
		}
		ctx, cancel := context.WithTimeout(w.ctx, pingEvery)
		err := w.conn.Ping(ctx)
		cancel()
		// No answer in time is a client whose input waits: not gone yet.
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			gone()
			return
		}
	}
}

// run runs a program in a guest and carries its streams. cancel ends it when
// the client is gone.
func (s *Server) run(ctx context.Context, cancel func(), w *wireConn, b beginning) (int, error) {
	if b.request.TTY {
		return s.runTerminal(ctx, cancel, w, b)
	}
	var ours, theirs [3]*os.File
	defer func() { closeAll(ours[:]); closeAll(theirs[:]) }()
	for i := range ours {
		if i == 0 && b.noInput {
			continue
		}
		r, wr, err := os.Pipe()
		if err != nil {
			return 0, err
		}
		ours[i], theirs[i] = r, wr
	}
	ours[0], theirs[0] = theirs[0], ours[0]
	b.request.Stdin, b.request.Stdout, b.request.Stderr = theirs[0], theirs[1], theirs[2]
	program, err := s.begin(ctx, w, b)
	closeAll(theirs[:])
	if err != nil {
		return 0, err
	}
	go w.listen(hands{input: ours[0], eof: func() { ours[0].Close() }, resize: program.Resize, signal: program.Signal}, cancel)
	go w.watch(cancel)
	var ended atomic.Bool
	var told sync.WaitGroup
	for i, frame := range []api.Frame{api.FrameOut, api.FrameErr} {
		from := ours[1+i]
		told.Go(func() {
			if w.send(frame, from, func() {
				if ended.Load() {
					from.SetReadDeadline(time.Now().Add(lull))
				}
			}) != nil {
				cancel()
			}
		})
	}
	code, err := program.Wait(ctx)
	ended.Store(true)
	for _, from := range ours[1:] {
		from.SetReadDeadline(time.Now().Add(lull))
	}
	told.Wait()
	return code, err
}

// runTerminal runs a program on a terminal. The terminal ends with the
// program, so everything it said is read before its end is waited for.
func (s *Server) runTerminal(ctx context.Context, cancel func(), w *wireConn, b beginning) (int, error) {
	program, err := s.begin(ctx, w, b)
	if err != nil {
		return 0, err
	}
	terminal := program.Terminal()
	go w.listen(hands{input: terminal, eof: func() {}, resize: program.Resize, signal: program.Signal}, cancel)
	go w.watch(cancel)
	told := make(chan struct{})
	go func() {
		defer close(told)
		if w.send(api.FrameOut, terminal, func() {}) != nil {
			cancel()
		}
	}()
	select {
	case <-told:
	case <-ctx.Done():
	}
	code, err := program.Wait(ctx)
	<-told
	return code, err
}

func closeAll(files []*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}

func (s *Server) console(ctx context.Context, in *GuestName, w *streamWriter, r *http.Request) error {
	g, err := s.Tables.Guests.Get(in.Name)
	if err != nil {
		return err
	}
	console, err := s.Live.Console(ctx, g.ID)
	if err != nil {
		return err
	}
	defer console.Close()
	c, err := upgrade(w, r)
	if err != nil {
		return err
	}
	defer c.CloseNow()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wire := &wireConn{conn: c, ctx: ctx}
	stop := context.AfterFunc(ctx, func() { console.Close() })
	defer stop()
	go wire.listen(hands{input: console, eof: func() {}, resize: console.Resize, signal: func(os.Signal) error { return nil }}, cancel)
	go wire.watch(cancel)
	if wire.send(api.FrameOut, console, func() {}) == nil {
		c.Close(websocket.StatusNormalClosure, "")
	}
	return nil
}
