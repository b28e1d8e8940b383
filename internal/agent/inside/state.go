package inside

import (
	"slices"
	"sync"

	"lodge/internal/agent"
)

// addressesMax bounds how many addresses are reported.
const addressesMax = 64

// states is what the host is told of without asking again.
type states struct {
	mu      sync.Mutex
	now     agent.State
	changed chan struct{} // closed with each change
}

func (s *states) init() { s.changed = make(chan struct{}) }

// set changes the state and tells who waits.
func (s *states) set(change func(*agent.State)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.now
	change(&s.now)
	if s.now.Ready == before.Ready && slices.Equal(s.now.Addresses, before.Addresses) {
		return
	}
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *states) get() (agent.State, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now, s.changed
}

// watch tells the state and each change of it until the host hangs up.
func (a *Agent) watch(s *stream) {
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, _, _ = s.frames.Next() // the host has nothing more to say: it can only hang up
	}()
	for {
		now, changed := a.state.get()
		s.result(agent.Result{State: &now}, nil)
		select {
		case <-gone:
			return
		case <-changed:
		}
	}
}

// Ready tells the host that the guest is up.
func (a *Agent) Ready() { a.state.set(func(s *agent.State) { s.Ready = true }) }

func (a *Agent) isReady() bool {
	now, _ := a.state.get()
	return now.Ready
}

// LookUp reads the guest's addresses anew.
func (a *Agent) LookUp() {
	found := reachable()
	a.state.set(func(s *agent.State) { s.Addresses = found })
}
