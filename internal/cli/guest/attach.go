package guest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"syscall"

	"lodge/api/client"
	"lodge/internal/cli"
)

// detachKey is ^], as in telnet and in the consoles of our peers.
const detachKey = 0x1d

// attachment says what of our terminal a session gets.
type attachment struct {
	input  bool // our standard input
	tty    bool // the session is a terminal: raw keys and window size
	detach bool // ^] ends the session
	sized  bool // the size was not told with the request
}

// attach carries a session until it ends, and returns its exit status. The
// terminal is as it was when attach returns.
func attach(ctx context.Context, f *cli.Factory, s *client.Session, a attachment) (int, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if a.tty && a.input {
		restore, err := f.Streams.Raw()
		if err != nil {
			return 0, err
		}
		defer restore()
	}
	signals, release := f.Signals.Take()
	defer release()
	go passSignals(ctx, s, signals)
	if a.tty && (f.Streams.InTTY || f.Streams.OutTTY) {
		resized := make(chan os.Signal, 1)
		signal.Notify(resized, syscall.SIGWINCH)
		defer signal.Stop(resized)
		if a.sized {
			resized <- syscall.SIGWINCH
		}
		go passSize(ctx, f.Streams, s, resized)
	}
	var in io.Reader = bytes.NewReader(nil)
	if a.input {
		in = f.Streams.In
	}
	if a.detach {
		in = &detachable{in: in, detached: func() { cancel(errDetached) }}
	}
	if a.input || !a.detach {
		// What the session no longer reads is nobody's error; how it ended is
		// told by Output.
		go s.CopyInput(ctx, in)
	}
	code, err := s.Output(ctx, f.Streams.Out, f.Streams.Err)
	if errors.Is(err, errDetached) {
		return 0, nil
	}
	return code, err
}

var errDetached = errors.New("detached")

// detachable ends its input at the detach key.
type detachable struct {
	in       io.Reader
	detached func()
}

func (d *detachable) Read(p []byte) (int, error) {
	n, err := d.in.Read(p)
	if i := bytes.IndexByte(p[:n], detachKey); i >= 0 {
		d.detached()
		return i, io.EOF
	}
	return n, err
}

func passSignals(ctx context.Context, s *client.Session, signals <-chan os.Signal) {
	names := map[os.Signal]string{syscall.SIGINT: "INT", syscall.SIGTERM: "TERM", syscall.SIGHUP: "HUP"}
	for {
		select {
		case <-ctx.Done():
			return
		case sig := <-signals:
			if s.Signal(ctx, names[sig]) != nil {
				return
			}
		}
	}
}

func passSize(ctx context.Context, streams *cli.Streams, s *client.Session, resized <-chan os.Signal) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-resized:
			rows, cols := streams.Size()
			if s.Resize(ctx, rows, cols) != nil {
				return
			}
		}
	}
}
