package dial

import "time"

const (
	// beat is how often an agent is asked whether it is there. It costs a guest
	// next to nothing, and is how one that hangs is noticed.
	beat = 10 * time.Second
	// An agent is silent when it did not answer that often in a row, and one
	// that was never heard of when it should long be there: boots take their
	// time on a busy host.
	beatsMissed = 3
	bootBeats   = 18
)

// pulse finds out whether the agent answers, until the line ends.
func (l *Link) pulse(every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for missed := 0; ; {
		select {
		case <-l.ended:
			return
		case <-tick.C:
		}
		if missed++; l.beats(every) {
			missed = 0
			l.silent(false)
			continue
		}
		l.mu.Lock()
		limit := bootBeats
		if l.heard {
			limit = beatsMissed
		}
		l.mu.Unlock()
		if missed >= limit {
			l.silent(true)
		}
	}
}

// pingTime is how long an answer may still come that counts for nobody.
const pingTime = 15 * time.Second

// beats reports whether the agent answers within a time.
func (l *Link) beats(within time.Duration) bool {
	l.mu.Lock()
	s := l.session
	l.mu.Unlock()
	if s == nil {
		return false
	}
	answered := make(chan bool, 1)
	go func() { // which ends by itself
		answered <- s.Ping(pingTime) == nil
	}()
	select {
	case is := <-answered:
		return is
	case <-time.After(within):
	case <-l.ended:
	}
	return false
}

func (l *Link) silent(is bool) {
	l.mu.Lock()
	was := l.state.Silent
	l.mu.Unlock()
	if is != was {
		l.update(func() { l.state.Silent = is })
	}
}

// Revive takes a guest that was paused for one that answers: it is asked anew.
func (l *Link) Revive() { l.silent(false) }
