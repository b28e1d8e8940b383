package keepd

import (
	"errors"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"lodge/internal/keeper"
)

// exits waits for the end of all programs with one thread.
type exits struct {
	epoll int
	ended func(*program)

	mu   sync.Mutex
	last int32
	byID map[int32]*program
}

func newExits(ended func(*program)) (*exits, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	return &exits{epoll: epoll, ended: ended, byID: map[int32]*program{}}, nil
}

// watch waits for p's end, which is told once. That p has ended already is no
// matter.
func (e *exits) watch(p *program, pidfd int) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.last++ // not the descriptor, which is used again when it was closed
	e.byID[e.last] = p
	return unix.EpollCtl(e.epoll, unix.EPOLL_CTL_ADD, pidfd, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLONESHOT, Fd: e.last})
}

func (e *exits) run() {
	events := make([]unix.EpollEvent, 64)
	for {
		n, err := unix.EpollWait(e.epoll, events, -1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			panic(err) // the descriptor is ours: this cannot be
		}
		for _, event := range events[:max(n, 0)] {
			e.mu.Lock()
			p := e.byID[event.Fd]
			delete(e.byID, event.Fd)
			e.mu.Unlock()
			if p != nil {
				e.ended(p)
			}
		}
	}
}

// ended learns how p ended and tells everyone.
func (k *daemon) ended(p *program) {
	k.gate.RLock()
	defer k.gate.RUnlock()
	k.mu.Lock()
	pidfd, rec, console, child := p.pidfd, p.rec, p.console, p.child
	k.mu.Unlock()
	exit := learn(pidfd, rec, child)
	if console != nil {
		k.consoles.finish(console)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	// The descriptor is not taken out of the epoll set by closing it while
	// the daemon holds a duplicate.
	_ = unix.EpollCtl(k.exits.epoll, unix.EPOLL_CTL_DEL, pidfd, nil)
	unix.Close(pidfd)
	p.pidfd, p.console, p.rec.Exit = -1, nil, &exit
	k.unwatchAll(p)
	k.tell(packet{m: keeper.Message{Op: keeper.OpExit, Record: copyOf(p.rec)}})
	k.save(p.rec)
}

// learn finds out how a process that has ended did so. Of our own child the
// kernel tells, once. Of an adopted one we look at what is left of it: the
// kernel's note (Linux 6.15 and newer) that stays with the descriptor once it
// was reaped, and its entry in /proc until then.
func learn(pidfd int, rec keeper.Record, child bool) keeper.Exit {
	exit := keeper.Exit{At: time.Now()}
	var status unix.WaitStatus
	if child {
		for {
			pid, err := unix.Wait4(rec.Pid, &status, unix.WALL, nil)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err == nil && pid == rec.Pid {
				return describe(exit, status)
			}
			break
		}
	}
	for range 2 { // it may be reaped between the two looks
		if code, ok := pidfdExit(pidfd); ok {
			return describe(exit, unix.WaitStatus(code))
		}
		if s, err := readStat(rec.Pid); err == nil && s.ticks == rec.Ticks && s.ended() {
			return describe(exit, unix.WaitStatus(s.exitCode))
		}
	}
	exit.Unknown = true
	return exit
}

func describe(e keeper.Exit, s unix.WaitStatus) keeper.Exit {
	if s.Signaled() {
		e.Signal = s.Signal()
		return e
	}
	e.Code = s.ExitStatus()
	return e
}
