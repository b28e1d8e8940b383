package dial

import (
	"io"
	"os"
	"sync"
	"testing"
	"time"

	"lodge/internal/agent"
	"lodge/internal/agent/inside"
)

// TestAnAgentThatFallsSilent is told, without a call to it, and so is that it
// answers again.
func TestAnAgentThatFallsSilent(t *testing.T) {
	host, relayed := pair(t)
	far, guest := pair(t)
	var stall sync.Mutex // held: nothing gets through
	relay := func(to, from *os.File) {
		buf := make([]byte, 4096)
		for {
			n, err := from.Read(buf)
			if err != nil {
				return
			}
			stall.Lock()
			_, err = to.Write(buf[:n])
			stall.Unlock()
			if err != nil {
				return
			}
		}
	}
	go relay(far, relayed)
	go relay(relayed, far)
	a := inside.New(agent.Config{ID: "one", Hostname: "web1"})
	go a.Converse(guest, false)
	changed := make(chan struct{}, 1)
	l := Open(host, Options{Beat: 20 * time.Millisecond, Changed: func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}})
	defer l.Close()
	until := func(what string, is func(State) bool) {
		t.Helper()
		for end := time.After(time.Minute); !is(l.State()); {
			select {
			case <-changed:
			case <-end:
				t.Fatalf("never: %s; it is %+v", what, l.State())
			}
		}
	}
	until("it answers", func(s State) bool { return s.Connected })
	stall.Lock()
	until("it is silent", func(s State) bool { return s.Silent })
	stall.Unlock()
	until("it answers again", func(s State) bool { return !s.Silent })
	if !l.State().Connected {
		t.Error("the session was given up")
	}
}

// TestAnAgentThatWasSilent is told so until it answers.
func TestAnAgentThatWasSilent(t *testing.T) {
	host, guest := pair(t)
	changed := make(chan struct{}, 1)
	l := Open(host, Options{Beat: 20 * time.Millisecond, Booted: true, Silent: true, Changed: func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}})
	defer l.Close()
	for range 2 * beatsMissed {
		if s := l.State(); !s.Silent {
			t.Fatalf("nobody answered, and it is %+v", s)
		}
		time.Sleep(10 * time.Millisecond)
	}
	go inside.New(agent.Config{ID: "one", Hostname: "web1"}).Converse(guest, false)
	for end := time.After(time.Minute); l.State().Silent; {
		select {
		case <-changed:
		case <-end:
			t.Fatalf("it answers, and is %+v", l.State())
		}
	}
}

// TestAnAgentThatIsNotThere is told after a while.
func TestAnAgentThatIsNotThere(t *testing.T) {
	host, guest := pair(t)
	go io.Copy(io.Discard, guest)
	changed := make(chan struct{}, 16)
	l := Open(host, Options{Beat: time.Millisecond, Changed: func() { changed <- struct{}{} }})
	defer l.Close()
	select {
	case <-changed:
	case <-time.After(time.Minute):
	}
	if s := l.State(); !s.Silent || s.Connected {
		t.Errorf("it is %+v", s)
	}
}
