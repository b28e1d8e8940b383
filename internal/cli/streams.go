package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// Streams are where a command reads and writes.
type Streams struct {
	In  *os.File
	Out io.Writer
	Err io.Writer

	InTTY, OutTTY, ErrTTY bool
}

// SystemStreams are the program's own.
func SystemStreams() *Streams {
	return &Streams{
		In: os.Stdin, Out: os.Stdout, Err: os.Stderr,
		InTTY:  term.IsTerminal(int(os.Stdin.Fd())),
		OutTTY: term.IsTerminal(int(os.Stdout.Fd())),
		ErrTTY: term.IsTerminal(int(os.Stderr.Fd())),
	}
}

// Size is the terminal's, or 24 by 80 without one.
func (s *Streams) Size() (rows, cols uint16) {
	for _, w := range []any{s.Out, s.In, s.Err} {
		if f, ok := w.(*os.File); ok {
			if c, r, err := term.GetSize(int(f.Fd())); err == nil && r > 0 && c > 0 {
				return uint16(r), uint16(c)
			}
		}
	}
	return 24, 80
}

// Raw gives every key to the program instead of to the terminal, until restore
// is called. Without a terminal it does nothing.
func (s *Streams) Raw() (restore func(), err error) {
	if !s.InTTY {
		return func() {}, nil
	}
	old, err := term.MakeRaw(int(s.In.Fd()))
	if err != nil {
		return nil, fmt.Errorf("raw terminal: %w", err)
	}
	return func() { term.Restore(int(s.In.Fd()), old) }, nil
}

// NewPassword reads a password: from a terminal twice and unseen, after asking
// for what, otherwise one line.
func (s *Streams) NewPassword(ctx context.Context, what string) (string, error) {
	if !s.InTTY {
		return firstLine(s.In)
	}
	seen, err := s.unseen()
	if err != nil {
		return "", err
	}
	defer seen()
	first, err := s.ask(ctx, what)
	if err != nil {
		return "", err
	}
	again, err := s.ask(ctx, "Again")
	if err == nil && again != first {
		err = errors.New("these are not the same")
	}
	return first, err
}

// unseen has the terminal not show what is typed, from before anything is asked
// for until seen is called.
func (s *Streams) unseen() (seen func(), err error) {
	fd := int(s.In.Fd())
	old, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, err
	}
	quiet := *old
	quiet.Lflag = quiet.Lflag&^unix.ECHO | unix.ICANON | unix.ISIG
	quiet.Iflag |= unix.ICRNL
	return func() { _ = unix.IoctlSetTermios(fd, unix.TCSETS, old) }, unix.IoctlSetTermios(fd, unix.TCSETS, &quiet)
}

// ask reads a line at the terminal. Whoever is interrupted does not have to press
// Enter. The reading goes on then, so it leaves the terminal's settings alone: it
// could change them after they were put back.
func (s *Streams) ask(ctx context.Context, what string) (string, error) {
	defer fmt.Fprintln(s.Err)
	fmt.Fprint(s.Err, what+": ")
	type answer struct {
		text string
		err  error
	}
	typed := make(chan answer, 1)
	go func() {
		text, err := typedLine(s.In)
		typed <- answer{text, err}
	}()
	select {
	case a := <-typed:
		return a.text, a.err
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

// typedLine reads a line and nothing beyond it.
func typedLine(r io.Reader) (string, error) {
	var text []byte
	for one := make([]byte, 1); len(text) < lineMax; {
		n, err := r.Read(one)
		switch {
		case n > 0 && one[0] == '\n':
			return string(text), nil
		case n > 0:
			text = append(text, one[0])
		case err != nil:
			return "", err
		}
	}
	return "", fmt.Errorf("more than %d letters in one line", lineMax)
}

// lineMax bounds what is read where one line should be.
const lineMax = 4096

func firstLine(r io.Reader) (string, error) {
	b, err := io.ReadAll(io.LimitReader(r, lineMax))
	if err != nil {
		return "", err
	}
	line, _, _ := strings.Cut(string(b), "\n")
	return strings.TrimSuffix(line, "\r"), nil
}

// Notef tells a person at a terminal how things go; a script is not bothered.
func (s *Streams) Notef(format string, args ...any) {
	if s.ErrTTY {
		fmt.Fprintf(s.Err, format+"\n", args...)
	}
}

// Warnf tells something that should be known, also in a script's log.
func (s *Streams) Warnf(format string, args ...any) {
	fmt.Fprintf(s.Err, "lodge: warning: "+format+"\n", args...)
}

// ErrInterrupted is the cause of a context that a signal ended.
var ErrInterrupted = errors.New("interrupted")

// Signals ends the context at the first INT, TERM or HUP, unless a command has
// taken them for itself. A second one ends the program.
type Signals struct {
	mu    sync.Mutex
	taker chan<- os.Signal
}

// WatchSignals starts watching, until the program ends: to give the signals
// their default meaning back takes time, which nobody needs who ends anyway.
func WatchSignals(ctx context.Context) (context.Context, *Signals) {
	s := &Signals{}
	ctx, cancel := context.WithCancelCause(ctx)
	ch := make(chan os.Signal, 8)
	signal.Notify(ch, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	go func() {
		for sig := range ch {
			if !s.hand(sig) {
				cancel(ErrInterrupted)
				signal.Stop(ch)
			}
		}
	}()
	return ctx, s
}

func (s *Signals) hand(sig os.Signal) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.taker == nil {
		return false
	}
	select {
	case s.taker <- sig:
	default: // it is busy with those before
	}
	return true
}

// Take leads the signals to the caller until release is called.
func (s *Signals) Take() (_ <-chan os.Signal, release func()) {
	ch := make(chan os.Signal, 8)
	s.set(ch)
	return ch, func() { s.set(nil) }
}

func (s *Signals) set(ch chan<- os.Signal) {
	s.mu.Lock()
	s.taker = ch
	s.mu.Unlock()
}
