package inside

import (
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"lodge/internal/agent"
	"lodge/internal/base/errs"
)

// firstChunk is how much of a program's output is read at once until it says more.
const firstChunk = 2 << 10

// linger is how long the output of a program that has ended may go on before
// the host is told of the end, when something it left behind holds it open.
const linger = 100 * time.Millisecond

// exec runs a program and carries its streams.
func (a *Agent) exec(s *stream, r agent.Request) {
	x := r.Exec
	if x == nil || len(x.Argv) == 0 || x.Argv[0] == "" {
		s.result(agent.Result{}, errs.Bad("argv", "no program was named", ""))
		return
	}
	p, err := a.start(*x)
	if err != nil {
		s.result(agent.Result{}, err)
		return
	}
	defer p.close()
	out := &outbox{to: s, delay: saidLate}
	if !x.In && !x.TTY {
		out.delay = saidLatest
	}
	_ = agent.SendJSON(out.slow(), agent.KindResult, agent.Result{})
	t := &traffic{s: s, out: out, p: p, sent: map[agent.Kind]*agent.Window{}, letters: agent.NewLetters(out, a.Mailbox, r.Slots)}
	for k := range p.outs {
		t.sent[k] = agent.NewWindow(agent.ExecWindow)
	}
	go t.listen()
	drained := make(chan struct{})
	var left atomic.Int32
	left.Store(int32(len(p.outs)))
	for k, f := range p.outs {
		go func() {
			t.carry(k, f)
			if left.Add(-1) == 0 {
				close(drained)
			}
		}()
	}
	status := p.wait()
	if !isClosed(drained) {
		select {
		case <-drained:
		case <-time.After(linger):
		}
	}
	s.SetWriteDeadline(time.Now().Add(answerTimeout))
	if agent.WriteNumbers(out, agent.KindExit, status) != nil {
		t.hangUp()
	}
	<-drained
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// traffic is what runs between a program and the host.
type traffic struct {
	s    *stream
	out  *outbox // all that is said on s
	p    *program
	sent map[agent.Kind]*agent.Window

	letters *agent.Letters
	once    sync.Once
}

// hangUp makes who reads and writes for the program stop; its terminal goes,
// or its pipes, and with them as a rule the program.
func (t *traffic) hangUp() {
	t.once.Do(func() {
		for _, w := range t.sent {
			w.Close()
		}
		t.p.close()
	})
}

// carry sends what the program says, no faster than the host takes it.
func (t *traffic) carry(k agent.Kind, from *os.File) {
	buf := make([]byte, firstChunk) // most programs say little
	for {
		room := t.sent[k].Take(len(buf))
		if room == 0 {
			return
		}
		n, err := from.Read(buf[:room])
		t.sent[k].Give(room - max(n, 0))
		if n > 0 && agent.WriteFrame(t.out, k, buf[:n]) != nil {
			t.hangUp()
			return
		}
		if err != nil {
			_ = agent.WriteFrame(t.out.slow(), k, nil)
			return
		}
		if n == len(buf) && n < agent.ChunkMax {
			buf = make([]byte, agent.ChunkMax)
		}
	}
}

// listen does what the host says of the running program. Input is written
// beside it, so that a signal does not wait for a program that does not read.
func (t *traffic) listen() {
	var box *agent.Inbox // most programs get none
	put := func(b []byte) bool {
		if box == nil {
			box = agent.NewInbox()
			go t.feed(box)
		}
		return box.Put(b)
	}
	defer func() {
		if box != nil {
			box.End()
		}
	}()
	defer t.hangUp()
	for {
		kind, payload, err := t.s.frames.Next()
		if err != nil {
			return
		}
		switch kind {
		case agent.KindIn:
			if !put(payload) {
				return // more than it was allowed to send
			}
		case agent.KindSlot:
			if !t.letters.Open(payload, put) {
				return
			}
		case agent.KindTaken:
			t.taken(payload)
		case agent.KindSignal:
			if n, err := agent.Numbers(payload, 1); err == nil && n[0] < 65 {
				t.p.signal(syscall.Signal(n[0]))
			}
		case agent.KindSize:
			if n, err := agent.Numbers(payload, 2); err == nil && t.p.terminal != nil {
				resize(t.p.terminal, uint16(n[0]), uint16(n[1]))
			}
		}
	}
}

// taken hears that the host took output, or wants no more of it.
func (t *traffic) taken(payload []byte) {
	n, err := agent.Numbers(payload, 2)
	if err != nil {
		return
	}
	w, out := t.sent[agent.Kind(n[0])], t.p.outs[agent.Kind(n[0])]
	switch {
	case w == nil:
	case n[1] == 0:
		w.Close()
		out.Close()
	default:
		w.Give(int(min(n[1], agent.ExecWindow)))
	}
}

// feed writes input; what comes after the program stopped reading is dropped.
func (t *traffic) feed(in *agent.Inbox) {
	in.Pour(func(b []byte) error {
		if t.p.in == nil {
			return os.ErrClosed
		}
		_, err := t.p.in.Write(b)
		return err
	}, func(n int) error {
		return agent.WriteNumbers(t.out, agent.KindTaken, uint32(agent.KindIn), uint32(n))
	})
	if t.p.terminal == nil && t.p.in != nil {
		t.p.in.Close()
	}
}
