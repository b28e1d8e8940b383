package agent

import (
	"net"
	"testing"
	"time"
)

// TestSaying: stopping waits for a word that is just being said, so that what
// is said next comes after it.
func TestSaying(t *testing.T) {
	here, there := net.Pipe()
	l := NewLine(here, 0, 0)
	defer l.Close()
	defer there.Close()
	s := NewSaying(l, Word{Kind: Hello})
	l.mu.Lock() // holds up what is said
	said, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		s.Say()
		close(said)
	}()
	for end := time.Now().Add(10 * time.Second); s.mu.TryLock(); time.Sleep(time.Millisecond) {
		s.mu.Unlock()
		if time.Now().After(end) {
			l.mu.Unlock()
			t.Fatal("nothing keeps it from being stopped while it is said")
		}
	}
	go func() {
		s.Stop()
		close(stopped)
	}()
	select {
	case <-stopped:
		t.Error("it was stopped while it was said")
	case <-time.After(20 * time.Millisecond):
	}
	l.mu.Unlock()
	<-said
	<-stopped
	s.Stop()
	s.Say()
	l.Say(Word{Kind: Start})
	var words []WordKind
	for r := NewReader(there); len(words) < 2; {
		_, w, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		if w.Kind != 0 {
			words = append(words, w.Kind)
		}
	}
	if words[0] != Hello || words[1] != Start {
		t.Errorf("heard %v", words)
	}
}
