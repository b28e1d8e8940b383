package keepd

import (
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// consoles reads the terminals of all programs with one thread, whether anyone
// looks or not, so that no guest that does not flood its console ever waits for
// it to be read.
type consoles struct {
	epoll int
	log   *slog.Logger

	mu      sync.Mutex
	last    int32
	byID    map[int32]*console
	viewers map[int32]*viewer
}

// console is the keeper's end of one program's terminal.
type console struct {
	id     int32
	queued bool // used by the reading thread alone, as pace
	pace   pace

	mu      sync.Mutex
	master  int // -1 once it is over
	log     *rotating
	viewers []*viewer
}

// viewer is one attachment: a socket that takes output.
type viewer struct {
	id int32
	fd int
	c  *console
}

// chunk is how much of one terminal's output is carried before it is another's
// turn.
const chunk = 64 << 10

func newConsoles(log *slog.Logger) (*consoles, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	return &consoles{epoll: epoll, log: log, byID: map[int32]*console{}, viewers: map[int32]*viewer{}}, nil
}

// openTerminal makes a terminal of the usual size. The master does not block.
func openTerminal() (master, slave int, err error) {
	master, err = unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return -1, -1, err
	}
	err = unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0)
	if err == nil {
		err = unix.IoctlSetWinsize(master, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 80})
	}
	if err == nil {
		fd, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
		if errno == 0 {
			return master, int(fd), nil
		}
		err = errno
	}
	unix.Close(master)
	return -1, -1, err
}

// add begins to read a terminal; master becomes ours. The events are of edges,
// because a terminal that the guest closes on its side reads as hung up until
// the guest opens it again.
func (cs *consoles) add(master int, log *rotating) (*console, error) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.last++
	c := &console{id: cs.last, master: master, log: log}
	err := unix.EpollCtl(cs.epoll, unix.EPOLL_CTL_ADD, master, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET, Fd: c.id})
	if err != nil {
		unix.Close(master)
		return nil, err
	}
	cs.byID[c.id] = c
	return c, nil
}

// attach sends c's output to the socket fd from now on; fd becomes ours. A
// console that is over closes it.
func (cs *consoles) attach(c *console, fd int) error {
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.master < 0 {
		return unix.Close(fd)
	}
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.last++
	v := &viewer{id: cs.last, fd: fd, c: c}
	// Only to learn that it is gone, which is always told.
	if err := unix.EpollCtl(cs.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLRDHUP | unix.EPOLLET, Fd: v.id}); err != nil {
		unix.Close(fd)
		return err
	}
	cs.viewers[v.id] = v
	c.viewers = append(c.viewers, v)
	return nil
}

// detach ends an attachment. Callers hold its console's mu.
func (cs *consoles) detach(v *viewer) {
	cs.mu.Lock()
	delete(cs.viewers, v.id)
	cs.mu.Unlock()
	if i := slices.Index(v.c.viewers, v); i >= 0 {
		v.c.viewers = slices.Delete(v.c.viewers, i, i+1)
		unix.Close(v.fd)
	}
}

// run reads for ever.
func (cs *consoles) run() {
	events := make([]unix.EpollEvent, 256)
	buf := make([]byte, chunk)
	var ready []*console
	for {
		n, err := unix.EpollWait(cs.epoll, events, patience(ready, time.Now()))
		if err != nil && !errors.Is(err, unix.EINTR) {
			panic(err) // the descriptor is ours: this cannot be
		}
		for _, event := range events[:max(n, 0)] {
			cs.mu.Lock()
			c, v := cs.byID[event.Fd], cs.viewers[event.Fd]
			cs.mu.Unlock()
			switch {
			case v != nil:
				v.c.mu.Lock()
				cs.detach(v)
				v.c.mu.Unlock()
			case c != nil && !c.queued:
				c.queued = true
				ready = append(ready, c)
			}
		}
		ready = slices.DeleteFunc(ready, func(c *console) bool {
			now := time.Now()
			if c.pace.wait(now) > 0 {
				return false
			}
			c.mu.Lock()
			defer c.mu.Unlock()
			var carried int
			carried, c.queued = cs.carry(c, buf)
			c.pace.spend(carried, now)
			return !c.queued
		})
	}
}

// patience is how many milliseconds to wait for terminals to have something to
// say while those that are ready have, or -1 for as long as it takes.
func patience(ready []*console, now time.Time) int {
	ms := -1
	for _, c := range ready {
		wait := int((c.pace.wait(now) + time.Millisecond - 1) / time.Millisecond)
		if ms < 0 || wait < ms {
			ms = wait
		}
	}
	return ms
}

// carry takes what a terminal has, as much as buf holds, to the log and to the
// viewers. It returns how much that was and whether there may be more. Callers
// hold c.mu.
func (cs *consoles) carry(c *console, buf []byte) (n int, more bool) {
	more = c.master >= 0
	for more && n < len(buf) {
		got, err := unix.Read(c.master, buf[n:]) // one page at most, whatever is asked
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil || got <= 0:
			more = false // EAGAIN: no more now; EIO: closed on the guest's side
		default:
			n += got
		}
	}
	if n == 0 {
		return n, more
	}
	if err := c.log.write(buf[:n]); err != nil && !c.log.failed {
		c.log.failed = true
		cs.log.Warn("console output is not kept", "err", err)
	}
	for _, v := range slices.Clone(c.viewers) {
		// What a viewer is too slow to take it misses.
		if _, err := unix.Write(v.fd, buf[:n]); err != nil && !errors.Is(err, unix.EAGAIN) {
			cs.detach(v)
		}
	}
	return n, more
}

// lastWords is how much a program may leave behind in its terminal: more than
// the kernel holds there.
const lastWords = 4 * chunk

// finish carries what is left in the terminal of a program that has ended and
// closes it.
func (cs *consoles) finish(c *console) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.master < 0 {
		return
	}
	buf := make([]byte, 8<<10)
	for left, more := lastWords, true; left > 0 && more; left -= len(buf) {
		_, more = cs.carry(c, buf)
	}
	cs.mu.Lock()
	delete(cs.byID, c.id)
	cs.mu.Unlock()
	for _, v := range slices.Clone(c.viewers) {
		cs.detach(v)
	}
	// Closing alone would leave it in the epoll set while the daemon holds a
	// duplicate.
	_ = unix.EpollCtl(cs.epoll, unix.EPOLL_CTL_DEL, c.master, nil)
	unix.Close(c.master)
	c.master = -1
	c.log.close()
}

// duplicate returns a descriptor of the terminal that is the caller's, or -1
// when it is over.
func (c *console) duplicate() (int, error) {
	if c == nil {
		return -1, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.master < 0 {
		return -1, nil
	}
	return unix.FcntlInt(uintptr(c.master), unix.F_DUPFD_CLOEXEC, 0)
}
