package qemu

import (
	"context"
	"errors"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
	"lodge/internal/base/session"
	"lodge/internal/base/units"
	"lodge/internal/engine"
	"lodge/internal/engine/qemu/qga"
	"lodge/internal/model/guest"
)

// theirVoice is what a guest's QEMU agent does for one caller.
type theirVoice struct {
	a *guestAgent
	g guest.Guest
}

// Freeze brings the guest's file systems to rest, for at most d.
func (v theirVoice) Freeze(ctx context.Context, d time.Duration) (thaw func() error, err error) {
	c, err := v.a.speaker(v.g.Status.Started, "guest-fsfreeze-freeze")
	if err != nil {
		return nil, err
	}
	return v.a.freeze(ctx, c, d)
}

// inputMax is how much input a program may be given, in bytes: it goes along
// with the command.
const inputMax = 1 << 20

// Exec runs a program inside the guest. The agent has no terminals; it takes a
// program's input whole before it starts it, and gives its output whole when it
// has ended.
func (v theirVoice) Exec(_ context.Context, r session.Request) (session.Session, error) {
	switch {
	case r.TTY:
		return nil, &errs.Error{Op: "qga", Kind: errs.Unsupported, Field: "tty", Msg: "the guest's QEMU agent has no terminals",
			Hint: "lodge exec -t=false " + v.g.Name + " -- COMMAND runs without one; lodge console " + v.g.Name + " is one"}
	case len(r.Argv) == 0 || r.Argv[0] == "":
		return nil, errs.Bad("argv", "no program was named", "say what to run: lodge exec GUEST -- PROGRAM")
	}
	c, err := v.a.speaker(v.g.Status.Started, "guest-exec")
	if err != nil {
		return nil, err
	}
	p := &guestProgram{a: v.a, c: c, exit: make(chan struct{})}
	p.life, p.stop = context.WithCancel(v.a.l.life)
	for mine, theirs := range map[**os.File]*os.File{&p.in: r.Stdin, &p.out: r.Stdout, &p.err: r.Stderr} {
		if *mine, err = session.Again(theirs); err != nil {
			p.close()
			return nil, err
		}
	}
	go p.run(r, environment(v.g, r))
	return p, nil
}

func environment(g guest.Guest, r session.Request) []string {
	env := engine.Environment(g)
	var all []string
	for _, k := range slices.Sorted(maps.Keys(env)) {
		all = append(all, k+"="+env[k])
	}
	return append(all, r.Env...)
}

// guestProgram is one program that runs inside the guest.
type guestProgram struct {
	a    *guestAgent
	c    *qga.Client
	life context.Context // until it is to be killed, or the guest has ended
	stop context.CancelFunc

	in, out, err *os.File

	mu      sync.Mutex
	pid     int64         // 0: it does not run yet
	signals []unix.Signal // that came before it ran

	exit   chan struct{} // closed when the rest is known
	status int
	failed error
}

var _ session.Session = (*guestProgram)(nil)

// start is what runs programs as somebody, somewhere: the agent runs them as
// itself in its own folder. Its arguments are user, group, folder, program.
const start = `u=$1 g=$2 d=$3
shift 3
if [ -n "$u" ]; then
	n=$(id -un -- "$u") && i=$(id -u -- "$u") && g=${g:-$(id -g -- "$u")} || exit 126
	eval "HOME=~$n"
	export HOME
	cd -- "${d:-$HOME}" || exit 126
	exec setpriv --reuid "$i" --regid "$g" --init-groups -- "$@"
fi
cd -- "${d:-$HOME}" || exit 126
exec "$@"`

// shell is what guests run scripts with; those that have none run programs only.
const shell = "/bin/sh"

// commands are the ways to have the guest run what was asked for, the best first.
func commands(r session.Request, env []string) []qga.Program {
	user, group, _ := strings.Cut(r.User, ":")
	args := append([]string{"-c", start, "sh", user, group, r.Dir}, r.Argv...)
	all := []qga.Program{{Path: shell, Args: args, Env: env, Capture: true}}
	if r.User == "" && r.Dir == "" {
		plain := qga.Program{Path: r.Argv[0], Args: r.Argv[1:], Capture: true}
		if len(r.Env) > 0 {
			plain.Env = r.Env
		}
		all = append(all, plain)
	}
	return all
}

func (p *guestProgram) run(r session.Request, env []string) {
	defer p.stop()
	defer p.close()
	defer close(p.exit)
	defer context.AfterFunc(p.life, p.close)() // nobody waits for a caller who is gone
	input, err := p.input()
	if err == nil {
		err = p.begin(commands(r, env), input)
	}
	if err == nil {
		err = p.await()
	}
	p.failed = refusal(err)
}

// input reads all there is for the program.
func (p *guestProgram) input() ([]byte, error) {
	if p.in == nil {
		return nil, nil
	}
	b, err := io.ReadAll(io.LimitReader(p.in, inputMax+1))
	switch {
	case p.life.Err() != nil:
		return nil, p.life.Err()
	case err != nil:
		return nil, err
	case len(b) > inputMax:
		return nil, errs.Bad("stdin", "there is more input than "+units.Bytes(inputMax)+", which is what the guest's QEMU agent takes", "lodge cp it into a file of the guest's first")
	}
	return b, nil
}

// begin starts the first of some programs that the guest has.
func (p *guestProgram) begin(all []qga.Program, input []byte) (err error) {
	for _, x := range all {
		x.Input = input
		pid, e := p.c.Start(p.life, x)
		if e == nil {
			p.mu.Lock()
			p.pid = pid
			early := p.signals
			p.mu.Unlock()
			for _, s := range early {
				_ = p.Signal(s)
			}
			return nil
		}
		err = e
		if refused, ok := errors.AsType[*qga.Error](e); ok {
			err = &errs.Error{Op: "qga", Kind: errs.NotFound, Field: "argv", Msg: x.Path + " does not run in the guest: " + refused.Desc, Err: e}
			continue
		}
		break
	}
	return err
}

const (
	// How often the agent is asked whether a program has ended.
	firstPoll, lastPoll = 5 * time.Millisecond, 500 * time.Millisecond
	// quietMax is how long an agent may be silent while a program runs.
	quietMax = 5 * time.Minute
)

// await waits until the program has ended and hands out what it said.
func (p *guestProgram) await() error {
	pace, heard := firstPoll, time.Now()
	for {
		r, err := p.c.Result(p.life, p.pid)
		switch {
		case p.life.Err() != nil:
			return p.life.Err()
		case errs.Is(err, errs.Busy) && time.Since(heard) < quietMax && p.a.has(p.c):
		case err != nil:
			return err
		case r.Exited:
			p.status = r.Status
			return p.hand(r)
		default:
			heard = time.Now()
		}
		select {
		case <-p.life.Done():
			return p.life.Err()
		case <-time.After(pace):
		}
		pace = min(pace*3/2, lastPoll)
	}
}

// has reports whether a client is still the agent's.
func (a *guestAgent) has(c *qga.Client) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.client == c
}

func (p *guestProgram) hand(r qga.Result) error {
	for f, b := range map[*os.File][]byte{p.out: r.Out, p.err: r.Err} {
		if f == nil || len(b) == 0 {
			continue
		}
		if _, err := f.Write(b); err != nil && !errors.Is(err, unix.EPIPE) {
			return err
		}
	}
	if r.Cut {
		return &errs.Error{Op: "qga", Kind: errs.NoSpace, Msg: "the program said more than the guest's QEMU agent keeps, " + units.Bytes(qga.OutputMax), Hint: "have it write to a file, and lodge cp that"}
	}
	return nil
}

func (p *guestProgram) close() {
	for _, f := range []*os.File{p.in, p.out, p.err} {
		if f != nil {
			f.Close()
		}
	}
}

// Terminal is nil: there are none.
func (p *guestProgram) Terminal() *os.File { return nil }

// Resize does nothing.
func (p *guestProgram) Resize(rows, cols uint16) error { return nil }

// Signal has the guest's shell send a signal to the program, once it runs.
func (p *guestProgram) Signal(sig os.Signal) error {
	n, ok := sig.(unix.Signal)
	if !ok {
		return errs.Bad("signal", sig.String()+" is not a signal", "")
	}
	p.mu.Lock()
	pid := p.pid
	if pid == 0 && len(p.signals) < signalsMax {
		p.signals = append(p.signals, n)
	}
	p.mu.Unlock()
	if pid == 0 {
		return nil
	}
	return p.kill(p.a.l.life, pid, n)
}

// signalsMax bounds what is kept for a program that does not run yet.
const signalsMax = 16

func (p *guestProgram) kill(ctx context.Context, pid int64, n unix.Signal) error {
	select {
	case <-p.exit:
		return nil
	default:
	}
	_, err := p.c.Start(ctx, qga.Program{Path: shell, Args: []string{"-c", "kill -" + strconv.Itoa(int(n)) + " " + strconv.FormatInt(pid, 10)}})
	return refusal(err)
}

// killTime is how long the agent may take to have a program killed that nobody
// waits for any more.
const killTime = 5 * time.Second

// Wait returns the exit status, or 128 plus the signal that ended the program.
func (p *guestProgram) Wait(ctx context.Context) (int, error) {
	select {
	case <-p.exit:
		return p.status, p.failed
	case <-ctx.Done():
	}
	p.mu.Lock()
	pid := p.pid
	p.mu.Unlock()
	if pid != 0 {
		last, cancel := context.WithTimeout(p.a.l.life, killTime)
		defer cancel()
		_ = p.kill(last, pid, unix.SIGKILL)
	}
	p.stop()
	<-p.exit
	return p.status, ctx.Err()
}
