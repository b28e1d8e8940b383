// Package inside is what the agent does in a guest with a kernel of its own:
// it makes the guest's root out of its disks, hands over to the guest's init,
// and from then on answers the host. The host is trusted no further than any
// caller: what it asks is bounded.
package inside

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"lodge/internal/agent"
	"lodge/internal/base/errs"
	"lodge/internal/base/mux"
)

const (
	requestTimeout = 30 * time.Second // for a request to arrive once its stream began
	answerTimeout  = time.Minute      // for the host to take what is sent
	helloEvery     = time.Second      // while nobody answers
)

// Agent answers the host. Its fields are set before it begins to.
type Agent struct {
	Volume  *os.File       // a folder of the writable layer's file system; nil: that of /
	Mailbox *agent.Mailbox // nil: all goes over the line

	born   time.Time // of the agent, which is that of the guest's init nearly
	mu     sync.Mutex
	config agent.Config

	state    states
	accounts accounts
	starter  starter
	freezer  freezer
	balloon  balloon
	keys     serverKeys
}

// New makes an agent for the guest that c describes.
func New(c agent.Config) *Agent {
	a := &Agent{config: c, born: time.Now(), keys: serverKeys{at: hostKeys}}
	a.state.init()
	return a
}

// Config is what the guest is at the moment.
func (a *Agent) Config() agent.Config {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.config
}

// ackEvery is how many bytes are taken from a line of limited credit before the
// host is told: small requests cost no word of their own.
const ackEvery = 1 << 10

// Converse answers on a line until that ends.
func (a *Agent) Converse(ch io.ReadWriteCloser, credit bool) error {
	ack := 0
	if credit {
		ack = ackEvery
	}
	l := agent.NewLine(ch, 0, ack)
	defer l.Close()
	quiet := a.greet(l)
	defer quiet()
	var w agent.Word
	for {
		for w.Kind == 0 {
			var err error
			if _, w, err = l.Next(); err != nil {
				return err
			}
		}
		quiet()
		switch w.Kind {
		case agent.Mark:
			l.Restart()
			l.Say(agent.Word{Kind: agent.Answer, ID: w.ID})
			w = agent.Word{}
		case agent.Go:
			l.Say(agent.Word{Kind: agent.Start, ID: w.ID})
			c := l.Session()
			mux.Serve(c, agent.Streams(), a.answer)
			c.Wait()
			w = c.Last()
		default:
			w = agent.Word{}
		}
	}
}

// greet says hello until the function it returns is called.
func (a *Agent) greet(l *agent.Line) (quiet func()) {
	hello := agent.NewSaying(l, agent.Word{Kind: agent.Hello, ID: agent.Number(0)})
	go func() {
		t := time.NewTicker(helloEvery)
		defer t.Stop()
		for {
			hello.Say()
			select {
			case <-hello.Stopped():
				return
			case <-t.C:
			}
		}
	}()
	return hello.Stop
}

// stream is one request's way to the host and back.
type stream struct {
	caller
	frames *agent.Frames
}

// caller is whoever a request came from.
type caller interface {
	io.ReadWriter
	SetDeadline(t time.Time)
	SetReadDeadline(t time.Time)
	SetWriteDeadline(t time.Time)
}

// answer does what one stream asks.
func (a *Agent) answer(st *mux.Stream) {
	defer st.Close()
	s := &stream{caller: st, frames: agent.NewFrames(st)}
	st.SetReadDeadline(time.Now().Add(requestTimeout))
	kind, payload, err := s.frames.Next()
	if err != nil || kind != agent.KindRequest {
		return
	}
	r, err := agent.ParseRequest(payload)
	if err != nil {
		s.result(agent.Result{}, errs.Bad("", "the request makes no sense: "+err.Error(), ""))
		return
	}
	st.SetReadDeadline(time.Time{})
	switch r.Op {
	case agent.OpWatch:
		a.watch(s)
	case agent.OpExec:
		a.exec(s, r)
	case agent.OpPack:
		s.result(agent.Result{}, a.pack(s, r))
	case agent.OpUnpack:
		s.result(agent.Result{}, a.unpack(s, r))
	case agent.OpFreeze:
		a.freeze(s, r)
	case agent.OpHold:
		held, err := a.balloon.hold(s, r.Bytes)
		s.result(agent.Result{Bytes: held}, err)
	case agent.OpSqueeze:
		s.result(agent.Result{}, a.balloon.squeeze(s))
	default:
		out, err := a.simple(r)
		s.result(out, err)
	}
}

// simple does what has one answer.
func (a *Agent) simple(r agent.Request) (out agent.Result, err error) {
	switch r.Op {
	case agent.OpStats:
		out.Stats = stats()
	case agent.OpShutdown:
		err = a.stop(false)
	case agent.OpReboot:
		err = a.stop(true)
	case agent.OpRenew:
		out.Kinds, err = a.renew(r)
	case agent.OpServe:
		err = a.keys.take(r.HostKeys)
	case agent.OpOnline:
		err = online(r.CPUs)
	case agent.OpGrow:
		err = a.grow()
	case agent.OpTrim:
		out.Bytes, err = a.trim()
	case agent.OpClock:
		err = setClock(r.Time)
	case agent.OpPassword:
		err = agent.SetPassword(r.User, r.Hash)
	case agent.OpKeys:
		err = agent.Authorize(r.User, r.Keys)
	default:
		err = &errs.Error{Kind: errs.Unsupported, Msg: fmt.Sprintf("the agent does not know %q", r.Op), Hint: "restart the guest: it then gets this host's agent"}
	}
	return out, err
}

// result sends how a request ended. Who hears nothing has gone.
func (s *stream) result(r agent.Result, err error) {
	if err != nil {
		r.Error = agent.ProblemOf(err)
	}
	s.SetWriteDeadline(time.Now().Add(answerTimeout))
	_ = agent.SendJSON(s, agent.KindResult, r)
}

var errHungUp = errors.New("the host hung up")
