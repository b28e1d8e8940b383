package inside

import (
	"io"
	"time"

	"lodge/internal/agent"
)

// rehearse runs a program that does nothing, all the way that one goes which the
// host wants run. The first to go there takes many times as long as the next:
// nothing of it is in memory, or translated where the processor is made by
// translation. Who waits for a guest to be up is to find that done.
func (a *Agent) rehearse() {
	n := nobody{make(chan struct{})}
	defer close(n.gone)
	done := make(chan struct{})
	go func() {
		defer close(done)
		a.exec(&stream{caller: n, frames: agent.NewFrames(n)}, agent.Request{Op: agent.OpExec, Exec: &agent.Exec{Argv: []string{"true"}}})
	}()
	select {
	case <-done:
	case <-time.After(rehearsalTime): // whatever that guest calls so
	}
}

// rehearsalTime is how long a program may take that does nothing.
const rehearsalTime = 3 * time.Second

// nobody is a host that listens to what is said, and says nothing until it has
// gone.
type nobody struct{ gone chan struct{} }

func (n nobody) Read([]byte) (int, error) {
	<-n.gone
	return 0, io.EOF
}

func (nobody) Write(p []byte) (int, error) { return len(p), nil }

func (nobody) SetDeadline(time.Time)      {}
func (nobody) SetReadDeadline(time.Time)  {}
func (nobody) SetWriteDeadline(time.Time) {}
