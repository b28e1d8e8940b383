package inside

import (
	"fmt"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"lodge/internal/agent"
	"lodge/internal/base/account"
	"lodge/internal/base/proc"
)

// ttyGroup is the group of terminals in every distribution.
const ttyGroup = 5

// program is one that runs on the host's behalf.
type program struct {
	pid      int
	ending   *os.File // can be read once the program ended; nil: nothing tells
	terminal *os.File // our end
	in       *os.File // written to; the terminal, or a pipe
	outs     map[agent.Kind]*os.File

	mu     sync.Mutex
	reaped bool
	kept   []int // the program's ends of outs, which we hold as well
}

// watch has the kernel tell of the program's end beside everything else, so
// that no thread sits and waits for it. Old kernels cannot.
func (p *program) watch() {
	fd, err := unix.PidfdOpen(p.pid, unix.PIDFD_NONBLOCK)
	if err == nil {
		p.ending = os.NewFile(uintptr(fd), "program")
	}
}

// wait returns the program's exit status once it ended. It is called once.
func (p *program) wait() (status uint32) {
	if p.ending != nil {
		defer p.ending.Close()
		raw, err := p.ending.SyscallConn()
		if err == nil && raw.Read(func(uintptr) bool { return p.reap(&status) }) == nil {
			return status
		}
	}
	// It stays to be reaped, so that its number is nobody else's yet.
	for unix.Waitid(unix.P_PID, p.pid, nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
	}
	p.reap(&status)
	return status
}

// reap takes the status of a program that ended; it is false of one that runs.
func (p *program) reap(status *uint32) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	var w syscall.WaitStatus
	pid, err := syscall.Wait4(p.pid, &w, unix.WNOHANG, nil)
	if pid == 0 && err == nil {
		return false
	}
	p.reaped, *status = true, 1
	p.letGo()
	if err == nil {
		*status = exitStatus(w)
	}
	return true
}

func exitStatus(w syscall.WaitStatus) uint32 {
	if w.Signaled() {
		return 128 + uint32(w.Signal())
	}
	return uint32(w.ExitStatus())
}

// signal reaches the program, if it is still that.
func (p *program) signal(sig syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.reaped {
		_ = syscall.Kill(p.pid, sig)
	}
}

// keep holds the program's ends of its output until it ended. That its output
// ends is then no news of its own, a moment before: each is a turn of the
// scheduler away from a program that has not quite ended.
func (p *program) keep(ends []int) { p.kept = ends }

// letGo is keep's end. p.mu must be held.
func (p *program) letGo() {
	shut(p.kept)
	p.kept = nil
}

func (p *program) close() {
	p.mu.Lock()
	p.letGo()
	p.mu.Unlock()
	for _, f := range p.outs {
		f.Close()
	}
	if p.in != nil {
		p.in.Close()
	}
}

// files makes the program's descriptors and ours.
func files(x agent.Exec, who account.Account) (p *program, theirs []int, err error) {
	if x.TTY {
		return onTerminal(x, who)
	}
	p = &program{outs: map[agent.Kind]*os.File{}}
	if err = p.input(x.In, &theirs); err == nil {
		for _, k := range []agent.Kind{agent.KindOut, agent.KindErr} {
			var r, w int
			if r, w, err = pipe(); err != nil {
				break
			}
			p.outs[k], theirs = ourEnd(r, "output"), append(theirs, w)
		}
	}
	if err != nil {
		p.close()
		shut(theirs)
		return nil, nil, err
	}
	return p, theirs, nil
}

// input is what the program reads: a pipe of ours, or nothing.
func (p *program) input(wanted bool, theirs *[]int) error {
	var r, w int
	var err error
	if wanted {
		if r, w, err = pipe(); err == nil {
			p.in = ourEnd(w, "input")
		}
	} else {
		r, err = unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	}
	if err == nil {
		*theirs = append(*theirs, r)
	}
	return err
}

func pipe() (r, w int, err error) {
	var ends [2]int
	err = unix.Pipe2(ends[:], unix.O_CLOEXEC)
	return ends[0], ends[1], err
}

// ourEnd is an end of a pipe that is waited for beside everything else. The
// program's end stays one that waits.
func ourEnd(fd int, name string) *os.File {
	_ = unix.SetNonblock(fd, true)
	return os.NewFile(uintptr(fd), name)
}

// onTerminal makes a terminal of the guest's own, so that it has a name there.
func onTerminal(x agent.Exec, who account.Account) (*program, []int, error) {
	master, err := os.OpenFile("/dev/pts/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("a terminal of the guest: %w", err)
	}
	var slave int
	err = proc.Control(master, func(fd int) error {
		if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
			return err
		}
		n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
		if errno != 0 {
			return errno
		}
		slave = int(n)
		return nil
	})
	if err != nil {
		master.Close()
		return nil, nil, fmt.Errorf("a terminal of the guest: %w", err)
	}
	resize(master, x.Rows, x.Cols)
	_ = unix.Fchown(slave, int(who.UID), ttyGroup)
	p := &program{terminal: master, in: master, outs: map[agent.Kind]*os.File{agent.KindOut: master}}
	return p, []int{slave}, nil
}

func resize(terminal *os.File, rows, cols uint16) {
	_ = proc.Control(terminal, func(fd int) error {
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
	})
}

// three are a program's descriptors as starting one wants them; a terminal is
// all of them.
func three(theirs []int) []uintptr {
	out := make([]uintptr, 3)
	for i := range out {
		out[i] = uintptr(theirs[min(i, len(theirs)-1)])
	}
	return out
}

func shut(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}
