package dial

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/yamux"

	"lodge/internal/agent"
	"lodge/internal/base/errs"
	"lodge/internal/base/session"
)

// soon is a caller with little patience: what never answers must not keep it.
func soon(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

// everything calls whatever a link can do and returns what came of it.
func everything(t testing.TB, l *Link, ctx context.Context) map[string]error {
	out := map[string]error{}
	_, out["stats"] = l.Stats(ctx)
	_, out["exec"] = l.Exec(ctx, session.Request{Argv: []string{"true"}})
	_, out["terminal"] = l.Exec(ctx, session.Request{Argv: []string{"true"}, TTY: true})
	out["pack"] = l.Pack(ctx, "/etc", io.Discard)
	out["unpack"] = l.Unpack(ctx, "/etc", bytes.NewReader(make([]byte, 1<<20)))
	out["reboot"] = l.plain(ctx, agent.OpOnline)
	_, out["freeze"] = l.Freeze(ctx, time.Second)
	out["renew"] = l.Renew(ctx, agent.Config{})
	_, out["trim"] = l.Trim(ctx)
	_, out["hold"] = l.Hold(ctx, 1<<20, func([]uint32) error { return nil })
	out["password"] = l.SetPassword(ctx, "root", "x")
	out["ready"] = l.Await(ctx)
	return out
}

func TestASilentGuest(t *testing.T) {
	for _, k := range kinds {
		host, _ := pair(t)
		l := Open(host, Options{Credit: k.credit, Patience: 50 * time.Millisecond})
		defer l.Close()
		if _, err := l.Stats(patiently(t)); !errs.Is(err, errs.Busy) || !strings.Contains(err.Error(), "does not answer") {
			t.Error(err)
		}
		for what, err := range everything(t, l, soon(t)) {
			if err == nil {
				t.Errorf("%s: a silent guest did it", what)
			}
		}
		cancelled, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := l.Stats(cancelled); !errs.Is(err, errs.Cancelled) {
			t.Error(err)
		}
	}
}

// TestAGuestThatStopsAtOnce: an end that comes before the answer is the answer.
func TestAGuestThatStopsAtOnce(t *testing.T) {
	host, guest := pair(t)
	go func() {
		l := agent.NewLine(guest, 0, 0)
		defer l.Close()
		var w agent.Word
		for err := error(nil); w.Kind != agent.Go; _, w, err = l.Next() {
			if err != nil {
				return
			}
			if w.Kind == agent.Mark {
				l.Say(agent.Word{Kind: agent.Answer, ID: w.ID})
			}
		}
		l.Say(agent.Word{Kind: agent.Start, ID: w.ID})
		s, err := yamux.Server(l.Session(), multiplex())
		if err != nil {
			return
		}
		for {
			st, err := s.AcceptStream()
			if err != nil {
				return
			}
			if _, payload, err := agent.NewFrames(st).Next(); err == nil {
				if r, _ := agent.ParseRequest(payload); r.Op == agent.OpShutdown {
					return
				}
			}
		}
	}()
	l := Open(host, Options{})
	defer l.Close()
	if err := l.Shutdown(patiently(t)); err != nil {
		t.Error(err)
	}
	<-l.Done()
	if err := l.Shutdown(patiently(t)); !errs.Is(err, errs.Conflict) {
		t.Errorf("a guest that is gone: %v", err)
	}
}

func TestAGuestThatEnds(t *testing.T) {
	host, guest := pair(t)
	l := Open(host, Options{})
	defer l.Close()
	guest.Close()
	<-l.Done()
	for what, err := range everything(t, l, patiently(t)) {
		if !errs.Is(err, errs.Conflict) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestAFlood: what a guest sends while nobody wants anything is read slowly,
// and not kept.
func TestAFlood(t *testing.T) {
	for name, chunk := range map[string][]byte{
		"zeros":   make([]byte, 64<<10),
		"noise":   noise(64 << 10),
		"hellos":  bytes.Repeat(agent.AppendWord(nil, agent.Word{Kind: agent.Hello, ID: agent.Number(0)}), 3000),
		"starts":  bytes.Repeat(agent.AppendWord(nil, agent.Word{Kind: agent.Start, ID: agent.Number(1)}), 3000),
		"escapes": bytes.Repeat([]byte{0xF5, 'x'}, 32<<10),
	} {
		t.Run(name, func(t *testing.T) {
			host, guest := pair(t)
			var sent atomic.Int64
			began := time.Now()
			go func() {
				for {
					n, err := guest.Write(chunk)
					sent.Add(int64(n))
					if err != nil {
						return
					}
				}
			}()
			go io.Copy(io.Discard, guest)
			l := Open(host, Options{Patience: 10 * time.Millisecond})
			defer l.Close()
			for what, err := range everything(t, l, soon(t)) {
				if err == nil {
					t.Errorf("%s: noise did it", what)
				}
			}
			const buffers = 4 << 20 // of the socket and ours
			if most := int64(time.Since(began).Seconds()*junkRate) + junkRate + buffers; sent.Load() > most {
				t.Errorf("%d bytes of noise were read; %d are the most", sent.Load(), most)
			}
		})
	}
}

func noise(n int) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// impostor answers the host's marks and then behaves as it likes.
func impostor(t testing.TB, session func(*agent.Conn)) *Link {
	t.Helper()
	host, guest := pair(t)
	go func() {
		l := agent.NewLine(guest, 0, 0)
		defer l.Close()
		for {
			_, w, err := l.Next()
			if err != nil {
				return
			}
			switch w.Kind {
			case agent.Mark:
				l.Say(agent.Word{Kind: agent.Answer, ID: w.ID})
			case agent.Go:
				l.Say(agent.Word{Kind: agent.Start, ID: w.ID})
				c := l.Session()
				session(c)
				go func() { // so that the next mark is seen
					for {
						if _, err := c.Read(make([]byte, 4096)); err != nil {
							c.Close()
							return
						}
					}
				}()
				c.Wait()
			}
		}
	}()
	l := Open(host, Options{})
	t.Cleanup(func() { l.Close() })
	return l
}

// frame is a frame of the multiplexer's.
func frame(kind byte, flags uint16, id, length uint32, body ...byte) []byte {
	b := []byte{0, kind}
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint32(b, id)
	return append(binary.BigEndian.AppendUint32(b, length), body...)
}

func TestBadMultiplexing(t *testing.T) {
	for name, sent := range map[string][]byte{
		"nothing":         nil,
		"noise":           noise(10 << 10),
		"pings":           bytes.Repeat(frame(2, 1, 0, 7), 10_000),
		"streams":         bytes.Repeat(frame(1, 1, 2, 0), 10_000),
		"a huge frame":    frame(0, 0, 1, 1<<31),
		"a huge window":   bytes.Repeat(frame(1, 0, 1, 1<<31), 10),
		"closed streams":  bytes.Repeat(frame(1, 4, 1, 0), 100_000),
		"data for nobody": bytes.Repeat(frame(0, 0, 77, 4, 1, 2, 3, 4), 100_000),
		"go away":         frame(3, 0, 0, 0),
	} {
		t.Run(name, func(t *testing.T) {
			l := impostor(t, func(c *agent.Conn) { go c.Write(sent) })
			for what, err := range everything(t, l, soon(t)) {
				if err == nil {
					t.Errorf("%s: it worked", what)
				}
			}
		})
	}
}

// multiplex is how a guest shares its line that does not have our agent's way.
func multiplex() *yamux.Config {
	c := yamux.DefaultConfig()
	c.EnableKeepAlive, c.AcceptBacklog, c.MaxStreamWindowSize, c.LogOutput = false, agent.StreamMax, agent.StreamWindow, io.Discard
	return c
}

// theirs is an impostor that speaks the multiplexer's language.
func theirs(t testing.TB, answer func(*yamux.Stream, agent.Request, *agent.Frames)) *Link {
	return impostor(t, func(c *agent.Conn) {
		s, err := yamux.Server(c, multiplex())
		if err != nil {
			return
		}
		for {
			st, err := s.AcceptStream()
			if err != nil {
				return
			}
			go func() {
				f := agent.NewFrames(st)
				_, payload, err := f.Next()
				if err != nil {
					return
				}
				r, _ := agent.ParseRequest(payload)
				answer(st, r, f)
			}()
		}
	})
}

func TestBadAnswers(t *testing.T) {
	result := func(text string) []byte { return agent.AppendFrame(nil, agent.KindResult, []byte(text)) }
	huge := []byte{byte(agent.KindResult), 0xff, 0xff, 0xff, 0xff}
	for name, sent := range map[string][]byte{
		"none":          nil,
		"half":          result(`{"error":{"kind":"busy"}}`)[:9],
		"no JSON":       result("what?"),
		"huge":          huge,
		"another kind":  agent.AppendFrame(nil, agent.KindExit, []byte{1, 2, 3, 4}),
		"nothing known": agent.AppendFrame(nil, '?', []byte("x")),
		"an odd error":  result(`{"error":{"kind":"no-such-kind","msg":"` + strings.Repeat("x", 100_000) + `"}}`),
	} {
		for _, closes := range []bool{true, false} {
			l := theirs(t, func(st *yamux.Stream, r agent.Request, f *agent.Frames) {
				st.Write(sent)
				if closes {
					st.Close()
				}
			})
			for what, err := range everything(t, l, soon(t)) {
				if err == nil {
					t.Errorf("%s: %s did it", name, what)
				} else if len(err.Error()) > 3*4096 {
					t.Errorf("%s: %s: an error of %d bytes", name, what, len(err.Error()))
				}
			}
		}
	}
}

// TestBadPrograms: an agent that lies about a program that it says it started.
func TestBadPrograms(t *testing.T) {
	ok := agent.AppendFrame(nil, agent.KindResult, []byte("{}"))
	out := agent.AppendFrame(nil, agent.KindOut, make([]byte, agent.ChunkMax))
	exit := agent.AppendFrame(nil, agent.KindExit, []byte{7, 0, 0, 0})
	for name, c := range map[string]struct {
		sent []byte
		code int
		bad  bool
	}{
		"more than the window": {bytes.Repeat(out, 100), 0, true},
		"no exit":              {nil, 0, true},
		"a short exit":         {agent.AppendFrame(nil, agent.KindExit, []byte{7}), 0, true},
		"two exits":            {append(bytes.Clone(exit), exit...), 7, false},
		"input for us":         {agent.AppendFrame(nil, agent.KindIn, []byte("x")), 0, true},
		"gives too much":       {append(agent.AppendFrame(nil, agent.KindTaken, bytes.Repeat([]byte{0xff}, 8)), exit...), 7, false},
		"an exit like a flag":  {agent.AppendFrame(nil, agent.KindExit, []byte{0xff, 0xff, 0xff, 0xff}), 255, false},
	} {
		l := theirs(t, func(st *yamux.Stream, r agent.Request, f *agent.Frames) {
			if r.Op == agent.OpExec {
				st.Write(append(bytes.Clone(ok), c.sent...))
				st.Close()
			}
		})
		r, w, err := os.Pipe() // that nobody reads
		must(t, err)
		defer r.Close()
		p, err := l.Exec(patiently(t), session.Request{Argv: []string{"x"}, Stdout: w})
		w.Close()
		must(t, err)
		code, err := p.Wait(patiently(t))
		if (err != nil) != c.bad || code != c.code {
			t.Errorf("%s: %d %v", name, code, err)
		}
	}
	// One that never says how the program ended.
	l := theirs(t, func(st *yamux.Stream, r agent.Request, f *agent.Frames) { st.Write(ok) })
	p, err := l.Exec(patiently(t), session.Request{Argv: []string{"x"}, TTY: true})
	must(t, err)
	if _, err := p.Wait(soon(t)); err != context.DeadlineExceeded {
		t.Error(err)
	}
	if _, err := p.Terminal().Write([]byte("x")); err == nil {
		t.Error("the terminal is still open")
	}
}

// TestBadTransfers: an agent that lies about slots of the mailbox.
func TestBadTransfers(t *testing.T) {
	for name, sent := range map[string][]byte{
		"a slot of another":   numbers(agent.KindSlot, 7, 100),
		"no such slot":        numbers(agent.KindSlot, 1<<31, 100),
		"more than a slot":    numbers(agent.KindSlot, 0, 1<<30),
		"freed and not taken": numbers(agent.KindFree, 0),
		"freed for nobody":    numbers(agent.KindFree, 1<<31),
		"short":               agent.AppendFrame(nil, agent.KindSlot, []byte{1}),
	} {
		host, guest := pair(t)
		h, _ := mailbox(t)
		go imitate(guest, sent)
		l := Open(host, Options{Mailbox: h})
		if err := l.Pack(patiently(t), "/x", io.Discard); err == nil {
			t.Errorf("%s: packed", name)
		}
		if err := l.Unpack(patiently(t), "/x", bytes.NewReader(make([]byte, 10<<20))); err == nil {
			t.Errorf("%s: unpacked", name)
		}
		if n := len(l.slots); n != 8 {
			t.Errorf("%s: %d slots are left of 8", name, n)
		}
		l.Close()
	}
}

func numbers(k agent.Kind, n ...uint32) []byte {
	var b bytes.Buffer
	_ = agent.WriteNumbers(&b, k, n...)
	return b.Bytes()
}

// imitate answers every stream with the same bytes.
func imitate(guest *os.File, sent []byte) {
	l := agent.NewLine(guest, 0, 0)
	defer l.Close()
	for {
		_, w, err := l.Next()
		if err != nil {
			return
		}
		switch w.Kind {
		case agent.Mark:
			l.Say(agent.Word{Kind: agent.Answer, ID: w.ID})
		case agent.Go:
			l.Say(agent.Word{Kind: agent.Start, ID: w.ID})
			c := l.Session()
			s, err := yamux.Server(c, multiplex())
			if err != nil {
				return
			}
			for {
				st, err := s.AcceptStream()
				if err != nil {
					break
				}
				st.Write(sent)
				st.Close()
			}
			c.Wait()
		}
	}
}

// TestNothingIsLeft: after all of that, and calls on a link that closes, no
// goroutine stays behind.
func TestNothingIsLeft(t *testing.T) {
	before := runtime.NumGoroutine()
	for range 5 {
		host, guest := pair(t)
		go imitate(guest, nil)
		l := Open(host, Options{})
		everything(t, l, soon(t))
		l.Close()
		guest.Close()
	}
	deadline := time.Now().Add(time.Minute)
	for runtime.NumGoroutine() > before+2 && time.Now().Before(deadline) {
		time.Sleep(20 * time.Millisecond)
	}
	if n := runtime.NumGoroutine(); n > before+2 {
		b := make([]byte, 1<<20)
		t.Errorf("%d goroutines, %d before:\n%s", n, before, b[:runtime.Stack(b, true)])
	}
}
