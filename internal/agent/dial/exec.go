package dial

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"lodge/internal/agent"
	"lodge/internal/base/errs"
	"lodge/internal/base/session"
)

const (
	// flushTime is how long Wait waits for the last output to be taken.
	flushTime = 2 * time.Second
	// killTime is how long a program that is to be killed has to end.
	killTime = 5 * time.Second
	// lingerTime is how long output is carried of what a program left behind.
	lingerTime = 5 * time.Second
)

// Exec runs a program inside the guest.
func (l *Link) Exec(ctx context.Context, r session.Request) (session.Session, error) {
	if len(r.Argv) == 0 || r.Argv[0] == "" {
		return nil, errs.Bad("argv", "no program was named", "say what to run: lodge exec GUEST -- PROGRAM")
	}
	p, err := newProgram(r)
	if err != nil {
		return nil, err
	}
	// The program outlives the request for it, whose end ends only the asking.
	alive, stop := context.WithCancel(context.WithoutCancel(ctx))
	undo := context.AfterFunc(ctx, stop)
	x := &agent.Exec{Argv: r.Argv, Env: r.Env, Dir: r.Dir, User: r.User, TTY: r.TTY, Rows: r.Rows, Cols: r.Cols, In: r.TTY || p.in != nil}
	var slots []int
	if p.in != nil && !r.TTY && l.mail != nil {
		slots = l.slots.spare()
	}
	c, err := l.begin(alive, agent.Request{Op: agent.OpExec, Exec: x, Slots: slots})
	if err == nil {
		if _, err = c.answer(alive, answerTimeout); err != nil {
			c.end()
		}
	}
	undo()
	if err != nil {
		l.slots.give(slots)
		p.close()
		stop()
		if ctx.Err() != nil && errs.Is(err, errs.Cancelled) {
			err = l.gaveUp(ctx)
		}
		return nil, err
	}
	p.call, p.post = c, agent.NewPost(c, l.mail, slots)
	p.run(func() {
		l.slots.give(slots)
		stop()
	})
	return p, nil
}

// program is one program that runs inside the guest.
type program struct {
	call     *call
	post     *agent.Post
	terminal *os.File // the caller's end, or nil
	in       *os.File
	outs     map[agent.Kind]*output

	window *agent.Window // of input
	exit   chan int      // status; closed when none will come
	taken  sync.WaitGroup
	ended  chan struct{} // closed when all that the program said was taken
	done   sync.Once
	waited chan struct{}
}

// output is where one of the program's streams goes.
type output struct {
	box  *agent.Inbox
	file *os.File // nil: nowhere
}

var _ session.Session = (*program)(nil)

// newProgram makes the host's ends.
func newProgram(r session.Request) (*program, error) {
	p := &program{outs: map[agent.Kind]*output{}, window: agent.NewWindow(agent.ExecWindow), exit: make(chan int, 1),
		ended: make(chan struct{}), waited: make(chan struct{})}
	if r.TTY {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return nil, err
		}
		p.terminal, p.in = os.NewFile(uintptr(pair[0]), "terminal"), os.NewFile(uintptr(pair[1]), "terminal")
		p.outs[agent.KindOut] = &output{agent.NewInbox(), p.in}
		return p, nil
	}
	var err error
	if p.in, err = session.Again(r.Stdin); err != nil {
		return nil, err
	}
	for k, f := range map[agent.Kind]*os.File{agent.KindOut: r.Stdout, agent.KindErr: r.Stderr} {
		mine, err := session.Again(f)
		if err != nil {
			p.close()
			return nil, err
		}
		p.outs[k] = &output{agent.NewInbox(), mine}
	}
	return p, nil
}

// run carries the streams until the program ended and nobody holds them.
func (p *program) run(stop func()) {
	for k, o := range p.outs {
		p.taken.Go(func() { p.pour(k, o) })
	}
	if p.in != nil {
		go p.feed()
	}
	go func() {
		p.listen()
		p.taken.Wait()
		close(p.ended)
	}()
	go func() {
		select {
		case <-p.ended:
		case <-p.waited:
			select {
			case <-p.ended:
			case <-time.After(lingerTime):
			}
		}
		p.window.Close()
		p.call.end()
		p.close()
		stop()
	}()
}

// listen sorts what the agent sends until there is nothing more to come, and
// never waits for anybody but the agent.
func (p *program) listen() {
	defer close(p.exit)
	defer func() {
		for _, o := range p.outs {
			o.box.End()
		}
	}()
	exited, open := false, len(p.outs)
	for open > 0 || !exited {
		kind, payload, err := p.call.frames.Next()
		if err != nil {
			return
		}
		switch kind {
		case agent.KindOut, agent.KindErr:
			if o := p.outs[kind]; o == nil || !o.box.Put(payload) {
				return
			}
			if len(payload) == 0 {
				open--
			}
		case agent.KindTaken:
			n, err := agent.Numbers(payload, 2)
			switch {
			case err != nil:
				return
			case n[1] == 0:
				p.window.Close()
			default:
				p.window.Give(int(min(n[1], agent.ExecWindow)))
			}
		case agent.KindFree:
			p.post.Freed(payload)
		case agent.KindExit:
			n, err := agent.Numbers(payload, 1)
			if err != nil || exited {
				return
			}
			exited = true
			p.exit <- int(n[0] & 0xff)
		default:
			return
		}
	}
}

// pour writes one of the program's streams to where it belongs.
func (p *program) pour(k agent.Kind, o *output) {
	o.box.Pour(func(b []byte) error {
		if o.file == nil {
			return nil
		}
		_, err := o.file.Write(b)
		return err
	}, func(n int) error {
		return agent.WriteNumbers(p.call, agent.KindTaken, uint32(k), uint32(n))
	})
	if o.file != nil {
		o.file.Close()
	}
}

// feed sends input.
func (p *program) feed() {
	for {
		buf := p.post.Room()
		room := p.window.Take(len(buf))
		if room == 0 {
			p.in.Close() // whoever writes to it sees that nobody reads
			return
		}
		n, err := p.in.Read(buf[:room])
		p.window.Give(room - max(n, 0))
		if n > 0 && p.post.Send(n) != nil {
			return
		}
		if err != nil {
			if p.terminal == nil {
				_ = agent.WriteFrame(p.call, agent.KindIn, nil)
			}
			return
		}
	}
}

// close closes the host's ends that are not the caller's.
func (p *program) close() {
	if p.in != nil {
		p.in.Close()
	}
	for _, o := range p.outs {
		if o.file != nil {
			o.file.Close()
		}
	}
}

// Terminal is the host's end of the program's terminal.
func (p *program) Terminal() *os.File { return p.terminal }

// Resize tells the program's terminal its new size.
func (p *program) Resize(rows, cols uint16) error {
	if p.terminal == nil {
		return nil
	}
	return p.say(agent.KindSize, uint32(rows), uint32(cols))
}

// Signal sends a signal to the program.
func (p *program) Signal(sig os.Signal) error {
	n, ok := sig.(unix.Signal)
	if !ok {
		return errs.Bad("signal", fmt.Sprintf("%v is not a signal", sig), "")
	}
	return p.say(agent.KindSignal, uint32(n))
}

// say tells the agent; a program that ended has nothing to hear.
func (p *program) say(k agent.Kind, numbers ...uint32) error {
	select {
	case <-p.ended:
		return nil
	default:
	}
	if err := agent.WriteNumbers(p.call, k, numbers...); err != nil {
		return p.call.l.trouble(context.Background(), err)
	}
	return nil
}

// Wait returns the exit status, or 128 plus the signal that ended the program.
func (p *program) Wait(ctx context.Context) (int, error) {
	defer p.done.Do(func() {
		close(p.waited)
		if p.terminal != nil {
			p.terminal.Close()
		}
	})
	select {
	case code, ok := <-p.exit:
		return p.exited(ctx, code, ok)
	case <-ctx.Done():
	}
	go func() { _ = p.Signal(unix.SIGKILL) }() // may have to wait for a line that is stuck
	select {
	case code, ok := <-p.exit:
		if !ok {
			return 0, ctx.Err()
		}
		return code, ctx.Err()
	case <-time.After(killTime):
		return 0, ctx.Err()
	}
}

func (p *program) exited(ctx context.Context, code int, ok bool) (int, error) {
	if !ok {
		return 0, p.call.l.trouble(ctx, errors.New("the program's stream ended early"))
	}
	select {
	case <-p.ended:
	case <-time.After(flushTime):
	case <-ctx.Done():
	}
	return code, nil
}
