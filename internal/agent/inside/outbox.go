package inside

import (
	"io"
	"sync"
	"time"
)

// How much later the host may hear what alone nobody waits for: that a program
// runs, and that an output of it ended. Of a program with input its sender waits.
const (
	saidLate   = 3 * time.Millisecond
	saidLatest = 50 * time.Millisecond
)

// outbox sends what is said of a program to the host in as few pieces as it can:
// each is an interrupt of the guest and of the host. It is safe for concurrent use.
type outbox struct {
	to    io.Writer
	delay time.Duration // saidLate or saidLatest

	mu   sync.Mutex
	held []byte
	late *time.Timer // sends what is held; nil: nothing is
}

// Write sends p, after what is held.
func (o *outbox) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.late != nil {
		o.late.Stop()
		o.late = nil
		p = append(o.held, p...)
		o.held = nil
	}
	return o.to.Write(p)
}

// slow is a way to say what goes with the next that is sent, or soon.
func (o *outbox) slow() io.Writer { return slowly{o} }

type slowly struct{ o *outbox }

func (s slowly) Write(p []byte) (int, error) {
	s.o.mu.Lock()
	defer s.o.mu.Unlock()
	s.o.held = append(s.o.held, p...)
	if s.o.late == nil {
		s.o.late = time.AfterFunc(s.o.delay, func() { _, _ = s.o.Write(nil) }) // who hears nothing has gone
	}
	return len(p), nil
}
