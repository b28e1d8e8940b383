package keepd

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
	"lodge/internal/keeper"
)

// launchTime is how long a launcher may take. It makes mounts and namespaces,
// which takes milliseconds; a host that is out of memory takes longer.
const launchTime = 30 * time.Second

// start runs p under name. Any number of starts go on at once.
func (k *daemon) start(name string, p keeper.Program, input []int) error {
	k.gate.RLock()
	defer k.gate.RUnlock()
	kept := &program{starting: true, pidfd: -1, child: true}
	if err := k.reserve(name, kept); err != nil {
		return err
	}
	rec := keeper.Record{State: keeper.State{Name: name, Started: time.Now()}, Boot: k.boot, Console: p.Console, Log: p.Log, LogMax: p.LogMax, Quota: p.Quota}
	s, err := k.launch(p, input)
	if err != nil && p.Launcher {
		k.reapLost()
	}
	if err == nil {
		rec.Pid, rec.Ticks = s.pid, s.ticks
		if p.Quota != nil {
			rec.RootDev = rootDevice(s.pid)
		}
		k.save(rec)
		if s.master >= 0 {
			kept.console, err = k.consoles.add(s.master, k.newRun(name, p))
		}
		if err != nil {
			_ = unix.PidfdSendSignal(s.pidfd, unix.SIGKILL, nil, 0)
			_, _ = unix.Wait4(s.pid, nil, unix.WALL, nil)
			keeper.CloseAll([]int{s.pidfd, s.listener})
			_ = k.erase(name)
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if err != nil {
		delete(k.programs, name)
		return err
	}
	kept.rec, kept.pidfd, kept.starting = rec, s.pidfd, false
	k.tell(packet{m: keeper.Message{Op: keeper.OpHave, Record: copyOf(rec)}, p: kept})
	if s.listener >= 0 {
		k.watch(kept, firstWatch, s.listener, false)
	}
	return k.exits.watch(kept, s.pidfd)
}

// newRun is the log of a program that has just been started and of which nothing
// was read yet.
func (k *daemon) newRun(name string, p keeper.Program) *rotating {
	log := newRotating(p.Log, p.LogMax)
	if err := log.begin(); err != nil {
		k.log.Warn("where the program's output begins is not kept", "program", name, "err", err)
	}
	return log
}

// reserve takes a name.
func (k *daemon) reserve(name string, p *program) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, taken := k.programs[name]; taken {
		return &errs.Error{Kind: errs.Exists, Ref: name, Msg: "a program of that name is kept already"}
	}
	if k.closing {
		return &errs.Error{Kind: errs.Unavailable, Ref: name, Msg: "the keeper is ending"}
	}
	k.programs[name] = p
	return nil
}

// started is a process that runs.
type started struct {
	pid    int
	ticks  uint64
	pidfd  int
	master int // -1 without a console

	listener int // of its seccomp filter, -1 without
}

// firstWatch names the listener that a program began with among those of its
// own.
const firstWatch = "first"

// launch starts the process that is to be kept, with the terminal it asked for.
func (k *daemon) launch(p keeper.Program, input []int) (s started, err error) {
	s = started{pidfd: -1, master: -1, listener: -1}
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return s, err
	}
	defer unix.Close(null)
	stdio := null
	if p.Console {
		master, slave, err := openTerminal()
		if err != nil {
			return s, &errs.Error{Kind: errs.Unavailable, Msg: "no terminal is left on this host", Hint: "raise kernel.pty.max", Err: err}
		}
		defer unix.Close(slave)
		stdio, s.master = slave, master
	}
	if p.Launcher {
		err = k.viaLauncher(p, stdio, input, &s)
	} else {
		s.pid, err = k.fork(p, files(stdio, input, -1), &syscall.SysProcAttr{Setsid: true, Setctty: p.Console, PidFD: &s.pidfd})
	}
	if err == nil {
		var st stat
		st, err = readStat(s.pid)
		s.ticks = st.ticks
	}
	if err != nil {
		keeper.CloseAll([]int{s.master, s.pidfd, s.listener})
		return s, err
	}
	return s, nil
}

const closed = ^uintptr(0) // of a new process' descriptors: none under this number

// files lays out a new process' descriptors: standard input, output and error,
// then what it is given to read, then where a launcher answers.
func files(stdio int, input []int, answer int) []uintptr {
	out := []uintptr{uintptr(stdio), uintptr(stdio), uintptr(stdio)}
	if len(input) > 0 {
		out = append(out, uintptr(input[0]))
	}
	if answer >= 0 {
		if len(input) == 0 {
			out = append(out, closed)
		}
		out = append(out, uintptr(answer))
	}
	return out
}

// fork starts a process of p. Its OOM score is 0: the kernel copies ours, so
// ours is 0 for the moment of the copy. The process shares our memory until it
// executes p, hence the size of ours does not matter.
func (k *daemon) fork(p keeper.Program, files []uintptr, sys *syscall.SysProcAttr) (int, error) {
	if k.spared {
		k.forking.Lock()
		defer k.forking.Unlock()
		_ = setOOM(0) // a score may always be raised
		defer func() { _ = setOOM(oomScore) }()
	}
	dir := p.Dir
	if dir == "" {
		dir = "/"
	}
	pid, err := syscall.ForkExec(p.Argv[0], p.Argv, &syscall.ProcAttr{Dir: dir, Env: append([]string{}, p.Env...), Files: files, Sys: sys})
	if err != nil {
		return 0, &errs.Error{Kind: errs.Internal, Ref: p.Argv[0], Msg: "cannot be started", Err: err}
	}
	return pid, nil
}

// viaLauncher runs a launcher and takes over the process that it made.
func (k *daemon) viaLauncher(p keeper.Program, stdio int, input []int, s *started) error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := unix.SetNonblock(pair[0], true); err != nil {
		return err
	}
	read := os.NewFile(uintptr(pair[0]), "answer")
	defer read.Close()
	pidfd := -1
	pid, err := k.fork(p, files(stdio, input, pair[1]), &syscall.SysProcAttr{PidFD: &pidfd})
	unix.Close(pair[1])
	if err != nil {
		return err
	}
	defer unix.Close(pidfd)
	if err := read.SetReadDeadline(time.Now().Add(launchTime)); err != nil {
		return err
	}
	answer, failed := s.listen(read)
	if failed != nil {
		_ = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0) // it has ended or hangs
	}
	var status unix.WaitStatus
	for {
		if _, err = unix.Wait4(pid, &status, unix.WALL, nil); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if failed != nil {
		return &errs.Error{Kind: errs.Internal, Ref: p.Argv[0],
			Msg: fmt.Sprintf("the launcher gave no answer (exit status %d, signal %d)", status.ExitStatus(), max(0, int(status.Signal()))), Err: failed}
	}
	if s.pid, err = parseAnswer(answer); err != nil {
		return err
	}
	return s.verify()
}

// verify makes sure that the process is our child, and holds it: as long as we
// do not reap it, its pid is its own.
func (s *started) verify() error {
	st, err := readStat(s.pid)
	if err == nil && st.ppid != os.Getpid() {
		err = fmt.Errorf("process %d is the child of %d", s.pid, st.ppid)
	}
	if err == nil {
		s.pidfd, err = unix.PidfdOpen(s.pid, 0)
	}
	if err != nil {
		return &errs.Error{Kind: errs.Internal, Msg: "the launcher did not make a sibling of its own", Err: err}
	}
	return nil
}

// maxAnswer bounds what a launcher may say.
const maxAnswer = 4096

// listen reads up to the first newline, since the launched process may hold the
// socket open for ever, and takes the listener that comes before it, if any.
func (s *started) listen(r *os.File) (string, error) {
	raw, err := r.SyscallConn()
	if err != nil {
		return "", err
	}
	var line []byte
	buf, oob := make([]byte, maxAnswer), make([]byte, unix.CmsgSpace(4))
	for len(line) < maxAnswer {
		var n, noob int
		var failed error
		err := raw.Read(func(fd uintptr) bool {
			n, noob, _, _, failed = unix.Recvmsg(int(fd), buf, oob, unix.MSG_CMSG_CLOEXEC)
			return !errors.Is(failed, unix.EAGAIN)
		})
		if err = errors.Join(err, failed); err != nil {
			return "", err
		}
		if noob > 0 {
			s.hear(oob[:noob])
			continue
		}
		if n == 0 {
			return "", io.EOF
		}
		line = append(line, buf[:n]...)
		if before, _, found := bytes.Cut(line, []byte("\n")); found {
			return string(before), nil
		}
	}
	return "", errors.New("answer is too long")
}

// hear takes a listener out of a packet.
func (s *started) hear(oob []byte) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(messages) != 1 {
		return
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 || s.listener >= 0 {
		keeper.CloseAll(fds)
		return
	}
	s.listener = fds[0]
}

// parseAnswer reads what a launcher says: a pid, or "error " and a message.
func parseAnswer(line string) (int, error) {
	if msg, failed := strings.CutPrefix(line, "error "); failed {
		return 0, &errs.Error{Kind: errs.Internal, Msg: msg}
	}
	pid, err := strconv.Atoi(line)
	if err != nil || pid <= 1 {
		return 0, &errs.Error{Kind: errs.Internal, Msg: fmt.Sprintf("the launcher answered %q", line)}
	}
	return pid, nil
}
