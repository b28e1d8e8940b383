// Package dial is the host's side of a guest's agent. The agent is the guest's
// and may lie, flood or fall silent: every call returns, what it costs is
// bounded, and nothing is believed that matters to anyone but the guest.
package dial

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"lodge/internal/agent"
	"lodge/internal/base/errs"
	"lodge/internal/base/mux"
	"lodge/internal/base/pace"
)

// Options say what a guest's line is like.
type Options struct {
	Credit   bool          // the line loses what the guest does not read in time (agent.Config.Credit)
	Mailbox  *os.File      // the host's end of agent.Config.Mailbox, or nil; the link closes it
	Changed  func()        // called when State changed, not often; may be nil
	Log      *slog.Logger  // may be nil
	Patience time.Duration // how long a call waits for a guest that boots; 0: a minute
	Beat     time.Duration // how often the agent is asked whether it is there; 0: ten seconds
	Booted   bool          // the guest was up already: its agent answers soon, or does not at all
	Silent   bool          // it did not when it was last heard of: it is taken for silent until it does
}

// State is what is known of the guest without asking.
type State struct {
	Connected bool      // the agent answers
	Since     time.Time // when that last changed
	Silent    bool      // the agent has answered nothing for long, nor has a guest that boots for very long
	Ready     bool      // the guest's init says that it is up
	Addresses []string  // with prefix lengths
}

const (
	patience = time.Minute
	// creditWindow is how much is sent on a line with credit before the guest
	// says that it took some: such a terminal dies of 4 kB that nobody read.
	creditWindow = 2560
	callsMax     = 64 // at once; further ones wait
	// young is how soon a session's end counts as a failure that is not to be
	// repeated at full speed.
	young    = time.Second
	slowest  = 5 * time.Second
	firstGap = 50 * time.Millisecond
)

// Link is the connection to one guest's agent, for as long as the guest runs.
// Its methods are safe for concurrent use.
type Link struct {
	o     Options
	line  *agent.Line
	pace  *pace.Pace // of reading from it
	mail  *agent.Mailbox
	slots slots
	calls chan struct{}
	ended chan struct{} // closed when the line is gone

	mu      sync.Mutex
	session *mux.Session
	state   State
	heard   bool          // the guest is up, or was: there was a session, of this daemon or of one before
	changed chan struct{} // closed with each change
}

// Open takes over a guest's line and looks for the agent on it, now and
// whenever it is lost.
func Open(ch io.ReadWriteCloser, o Options) *Link {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Patience == 0 {
		o.Patience = patience
	}
	window := 0
	if o.Credit {
		window = creditWindow
	}
	l := &Link{o: o, calls: make(chan struct{}, callsMax), ended: make(chan struct{}), changed: make(chan struct{}), heard: o.Booted}
	l.state.Since, l.state.Silent = time.Now(), o.Silent
	if o.Mailbox != nil {
		m, err := agent.NewMailbox(o.Mailbox)
		if err != nil {
			o.Log.Warn("a guest's mailbox cannot be used", "err", err)
		} else {
			l.mail, l.slots = m, newSlots(m.Slots())
		}
	}
	l.pace = pace.New(junkRate, junkRate)
	l.line = agent.NewLine(paced{ch, l.pace}, window, 0)
	odd := pace.New(dullRate, dullRate)
	l.line.Odd = func() {
		select {
		case <-l.line.Closed(): // what was read already holds nobody up
		default:
			odd.Spend(1)
		}
	}
	go l.run()
	go l.pulse(cmp.Or(o.Beat, beat))
	return l
}

// Close lets go of the guest, which runs on. Calls under way fail.
func (l *Link) Close() error {
	err := l.line.Close()
	<-l.ended
	if l.o.Mailbox != nil {
		l.o.Mailbox.Close()
	}
	return err
}

// Done is closed when the line is gone: the guest ended, or Close was called.
func (l *Link) Done() <-chan struct{} { return l.ended }

// State tells what is known.
func (l *Link) State() State {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state
}

// run keeps a session with the agent until the line ends.
func (l *Link) run() {
	defer close(l.ended)
	defer l.line.Close()
	gap := firstGap
	var w agent.Word
	for {
		if err := l.hunt(w); err != nil {
			l.o.Log.Debug("a guest's line ended", "err", err)
			l.lost(nil)
			return
		}
		began := time.Now()
		l.pace.Set(lineRate)
		c := l.line.Session()
		s := mux.Client(newGuard(c), agent.Streams())
		l.found(s)
		go l.watch(s)
		<-s.Ended()
		c.Wait()
		w = c.Last()
		l.pace.Set(junkRate)
		l.lost(s)
		if time.Since(began) > young {
			gap = firstGap
			continue
		}
		select {
		case <-time.After(gap):
		case <-l.line.Closed():
		}
		gap = min(2*gap, slowest)
	}
}

func (l *Link) found(s *mux.Session) {
	l.update(func() {
		l.session, l.heard = s, true
		l.state.Connected, l.state.Since, l.state.Silent = true, time.Now(), false
	})
}

// lost forgets a session; nil: for good.
func (l *Link) lost(s *mux.Session) {
	l.update(func() {
		if l.session == s || s == nil {
			l.session = nil
			l.state = State{Since: time.Now(), Silent: l.state.Silent && s != nil, Ready: l.state.Ready && s != nil, Addresses: l.state.Addresses}
		}
	})
}

func (l *Link) update(change func()) {
	l.mu.Lock()
	change()
	close(l.changed)
	l.changed = make(chan struct{})
	l.mu.Unlock()
	if l.o.Changed != nil {
		l.o.Changed()
	}
}

// watchRate bounds how often a guest may change its state, in a second.
const watchRate = 5

// watch takes over what the agent tells of itself, which it does by itself.
func (l *Link) watch(s *mux.Session) {
	st, err := s.Open()
	if err == nil {
		defer st.Close()
		err = agent.SendJSON(st, agent.KindRequest, agent.Request{Op: agent.OpWatch})
	}
	if err != nil {
		return // the session ends too
	}
	frames, p := agent.NewFrames(st), pace.New(watchRate, 4*watchRate)
	for {
		r, err := result(frames)
		if err != nil || r.State == nil {
			return
		}
		l.update(func() {
			if l.session == s {
				l.state.Ready, l.state.Addresses = r.State.Ready, few(r.State.Addresses)
			}
		})
		p.Spend(1)
	}
}

// few bounds what a guest says of its addresses.
func few(addresses []string) []string {
	const most, longest = 64, 64
	var out []string
	for _, a := range addresses {
		if len(out) < most && len(a) <= longest {
			out = append(out, a)
		}
	}
	return out
}

// Await waits until the agent says that the guest is up.
func (l *Link) Await(ctx context.Context) error {
	return l.until(ctx, func() bool { return l.state.Ready })
}

// until waits for a state; it fails when the line ended.
func (l *Link) until(ctx context.Context, is func() bool) error {
	for {
		l.mu.Lock()
		ok, changed := is(), l.changed
		l.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-l.ended:
			return gone()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func gone() error {
	return &errs.Error{Op: "agent", Kind: errs.Conflict, Msg: "the guest ended"}
}

// hunt finds the agent on the line. w is a word that was read already.
func (l *Link) hunt(w agent.Word) error {
	for {
		id := newID()
		marks := l.mark(id)
		started, err := l.listen(id, w, marks)
		marks.Stop()
		if err != nil || started {
			return err
		}
		w = agent.Word{}
	}
}

func newID() agent.ID {
	var b [8]byte
	rand.Read(b[:])
	return agent.Number(binary.LittleEndian.Uint64(b[:]))
}

// listen reads until the session begins. It is false when the agent answered
// and then did not go on.
func (l *Link) listen(id agent.ID, w agent.Word, m *marks) (bool, error) {
	answered := false
	for {
		if w.Kind == 0 {
			_, next, err := l.line.Next()
			if err != nil {
				return false, err
			}
			w = next
		}
		switch {
		case w.Kind == agent.Answer && w.ID == id && !answered:
			answered = true
			m.Stop()
			l.line.Restart()
			l.line.Say(agent.Word{Kind: agent.Go, ID: id})
		case w.Kind == agent.Start && w.ID == id && answered:
			return true, nil
		case w.Kind == agent.Hello && answered: // a new agent: the old one's answer counts no more
			return false, nil
		case w.Kind == agent.Hello:
			m.poke()
		}
		w = agent.Word{}
	}
}

// marks says Mark again and again: often at first, because a guest that was
// copied while it ran answers the first, and no longer than the line can hold.
type marks struct {
	*agent.Saying
	hello chan struct{}
}

func (l *Link) mark(id agent.ID) *marks {
	m := &marks{agent.NewSaying(l.line, agent.Word{Kind: agent.Mark, ID: id}), make(chan struct{}, 1)}
	most := marksMax
	if l.o.Credit {
		most = marksCredit
	}
	go func() {
		for n := 0; ; n++ {
			if n < most {
				m.Say()
			}
			select {
			case <-m.Stopped():
				return
			case <-time.After(interval(n)):
			case <-m.hello:
				n = 0
				time.Sleep(helloPace)
			}
		}
	}()
	return m
}

// How many marks may lie on a line that nobody reads.
const (
	marksMax    = 200
	marksCredit = 50
)

// helloPace is how soon after a hello the next mark follows: a guest that says
// nothing else must not keep the host busy.
const helloPace = time.Millisecond * 5

// interval is how long to wait after the nth mark.
func interval(n int) time.Duration {
	switch {
	case n < 20:
		return 25 * time.Millisecond
	case n < 40:
		return 100 * time.Millisecond
	case n < 120:
		return 250 * time.Millisecond
	}
	return time.Second
}

// poke says that the guest has just opened the line.
func (m *marks) poke() {
	select {
	case m.hello <- struct{}{}:
	default:
	}
}
