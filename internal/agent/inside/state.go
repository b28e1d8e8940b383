package inside

import (
	"net"
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

// LookUp reads the guest's addresses anew.
func (a *Agent) LookUp() {
	found := addresses()
	a.state.set(func(s *agent.State) { s.Addresses = found })
}

// addresses are those that others can reach the guest at, with their prefix
// lengths.
func addresses() []string {
	var out []string
	interfaces, _ := net.Interfaces()
	for _, i := range interfaces {
		if i.Flags&net.FlagLoopback != 0 || i.Flags&net.FlagUp == 0 {
			continue
		}
		found, _ := i.Addrs()
		for _, a := range found {
			if ip, ok := a.(*net.IPNet); ok && !ip.IP.IsLinkLocalUnicast() && len(out) < addressesMax {
				out = append(out, ip.String())
			}
		}
	}
	return out
}
