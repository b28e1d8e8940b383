package agent

import "sync"

// Saying is a word that one end of a line repeats until it is to stop. What the
// other end then answers begins a session, and the word, said once more, would
// end that: it is not said after Stop returned.
type Saying struct {
	line *Line
	word Word

	mu      sync.Mutex
	over    bool
	stopped chan struct{}
}

// NewSaying makes a word one that can be said on l until it is stopped.
func NewSaying(l *Line, w Word) *Saying {
	return &Saying{line: l, word: w, stopped: make(chan struct{})}
}

// Say says the word, unless Stop was called.
func (s *Saying) Say() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.over {
		s.line.Say(s.word)
	}
}

// Stop is the end of it. It may be called again.
func (s *Saying) Stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.over {
		s.over = true
		close(s.stopped)
	}
}

// Stopped is closed when Stop was called.
func (s *Saying) Stopped() <-chan struct{} { return s.stopped }
