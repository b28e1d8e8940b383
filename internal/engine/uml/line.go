package uml

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"lodge/internal/agent/dial"
	"lodge/internal/engine"
	"lodge/internal/keeper"
	"lodge/internal/launch"
	"lodge/internal/model/guest"
)

// line is what all Machines of one run of a guest share.
type line struct {
	*dial.Link
	pid     int
	started time.Time
	memory  uint64 // that the guest's kernel was given

	mu    sync.Mutex
	cards map[string]engine.NIC // that were plugged while this daemon ran, by name
	held  uint64                // of memory, as far as this daemon knows
	full  string                // disk whose writes wait for space on the host
}

// lines has the line of each guest that runs, from the first Connect until the
// guest's end.
type lines struct {
	mu sync.Mutex
	of map[string]*line // by the guest's id
}

// get returns the guest's line, which it opens if this daemon has none yet: the
// guest's kernel holds the host's end for it.
func (ls *lines) get(e *Engine, g guest.Guest, parts engine.Parts, h keeper.Held) (*line, error) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	state := h.State()
	if l := ls.of[g.ID]; l != nil {
		if l.pid == state.Pid && l.started.Equal(state.Started) && !over(l) {
			return l, nil
		}
		delete(ls.of, g.ID)
	}
	// Descriptors are numbered by what comes before them, which is the same
	// for all guests.
	fixed := launch.Jail{Files: fixedFiles()}
	ch, err := launch.Take(h, fixed.Descriptor(lineFile)+1)
	if err != nil {
		return nil, err
	}
	mailbox, err := launch.Take(h, fixed.Descriptor(mailboxFile))
	if err != nil {
		return nil, errors.Join(err, ch.Close())
	}
	space, err := launch.Take(h, fixed.Descriptor(spaceFile)+1)
	if err != nil {
		return nil, errors.Join(err, ch.Close(), mailbox.Close())
	}
	changed := func() {}
	if e.o.Changed != nil {
		changed = func() { e.o.Changed(g.ID) }
	}
	up, silent := engine.BeforeNow(g, state.Pid)
	l := &line{pid: state.Pid, started: state.Started, memory: bootMemory(state.Pid, g.Spec), cards: map[string]engine.NIC{},
		Link: dial.Open(ch, dial.Options{Credit: true, Mailbox: mailbox, Changed: changed, Booted: up, Silent: silent, Log: e.o.Log.With("guest", g.Name)})}
	ls.of[g.ID] = l
	go ls.forget(g.ID, l)
	go l.followSpace(space, changed)
	go e.slim(l, parts.Cgroup, h)
	return l, nil
}

func over(l *line) bool {
	select {
	case <-l.Done():
		return true
	default:
		return false
	}
}

// forget drops a line whose guest has ended.
func (ls *lines) forget(id string, l *line) {
	<-l.Done()
	ls.mu.Lock()
	if ls.of[id] == l {
		delete(ls.of, id)
	}
	ls.mu.Unlock()
	l.Close()
}

// bootMemory is what the guest's kernel was told it has, in bytes, as its
// command line shows; the record may have changed since.
func bootMemory(pid int, s guest.Spec) uint64 {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
	if err != nil {
		return memoryOf(s)
	}
	for arg := range strings.SplitSeq(string(text), "\x00") {
		kib, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimPrefix(arg, "mem="), "k"), 10, 40)
		if strings.HasPrefix(arg, "mem=") && err == nil {
			return kib << 10
		}
	}
	return memoryOf(s)
}
