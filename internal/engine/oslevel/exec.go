package oslevel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"lodge/internal/base/cgroup"
	"lodge/internal/base/errs"
	"lodge/internal/base/proc"
	"lodge/internal/base/session"
	"lodge/internal/launch"
	"lodge/internal/launch/plan"
)

// entry is a program to be run inside a running guest.
type entry struct {
	argv  []string
	env   map[string]string
	dir   string
	must  bool // dir was asked for: it is an error when it cannot be entered
	who   account
	agent string // a program of the host to be run instead of one of the guest's
	ask   bool   // the guest has a quota
	tty   bool
	rows  uint16
	cols  uint16
}

// The descriptors that the helper is started with, beside the program's own.
const (
	guestFD = plan.Imm(5) // process 1 of the guest, a pidfd
)

// execGroup is the control group, below the guest's, of programs run from
// outside: an init that manages groups has no processes in the guest's own, and
// there v2 allows none.
const execGroup = "lodge-exec"

// Failures of an exec that have words of their own.
const (
	whatRun   = "run"
	whatDir   = "enter"
	whatClone = "make the process"
)

// compile writes the plan that joins the guest and runs x there.
//
// The user namespace is entered with all others in one call, the cgroup
// namespace only by the child: what is born into a group from outside must not
// look at it from inside yet. Nothing of the helper can be read by the guest
// until its own program runs, because the process is not dumpable.
func (x entry) compile(join cgroup.JoinPaths, bpf filters) ([]byte, error) {
	s := newScript()
	s.Numeric = true
	s.Hide()
	for _, tasks := range join.Tasks {
		s.WriteFile(tasks, "0")
	}
	group := filepath.Join(join.Dir, execGroup)
	s.Ignore(unix.SYS_MKDIRAT, cwd, s.Text(group), plan.Imm(0o755))
	leaf := s.Open(group, unix.O_RDONLY|unix.O_DIRECTORY)
	s.resources()
	var agent plan.Reg
	if x.agent != "" {
		agent = s.Open(x.agent, unix.O_PATH)
	}
	const all = unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWNET
	s.Do("enter the guest", unix.SYS_SETNS, guestFD, plan.Imm(all))
	s.Hide()
	c := s.NewClone(0, leaf)
	child := s.Mark()
	s.Spawn(whatClone, c.Args, child)
	s.Pass(s.Load(c.Pidfd), "process")
	s.AwaitCleared(c.TID)
	s.End()

	s.Here(child)
	s.Do("enter the guest", unix.SYS_SETNS, guestFD, plan.Imm(unix.CLONE_NEWCGROUP))
	s.become(account{})
	s.Do("new session", unix.SYS_SETSID)
	if x.tty {
		s.terminal(x)
	}
	s.tidy()
	s.confine(bpf, x.ask)
	s.become(x.who)
	s.enter(x)
	env := environ(x.env)
	if x.agent != "" {
		r := s.Try(unix.SYS_EXECVEAT, agent, s.Text(""), s.Vector(x.argv), s.Vector(env), empty)
		s.Fail(whatRun, r)
	}
	s.Execute(whatRun, x.argv, env, strings.Split(x.env["PATH"], ":"))
	return s.Compile()
}

// become takes on an account's ids. A new identity makes a process readable
// again where the host is set to that, so it is hidden anew.
func (s script) become(a account) {
	ids := make([]byte, 0, 4*len(a.groups))
	for _, g := range a.groups {
		ids = binary.LittleEndian.AppendUint32(ids, g)
	}
	s.Do("groups", unix.SYS_SETGROUPS, plan.Imm(len(a.groups)), s.Bytes(append(ids, 0, 0, 0, 0)))
	gid, uid := plan.Imm(a.gid), plan.Imm(a.uid)
	s.Do("group", unix.SYS_SETRESGID, gid, gid, gid)
	s.Do("user", unix.SYS_SETRESUID, uid, uid, uid)
	s.Hide()
}

// enter goes to the directory, as the user that the program runs as.
func (s script) enter(x entry) {
	if x.must {
		s.Do(whatDir, unix.SYS_CHDIR, s.Text(x.dir))
		return
	}
	s.Do("enter /", unix.SYS_CHDIR, s.Text("/"))
	s.Ignore(unix.SYS_CHDIR, s.Text(x.dir))
}

// terminal makes a terminal of the guest's own, so that it has a name there,
// hands its other end to the daemon and makes it the program's. A guest that
// puts something else in its place makes the call fail that only works on
// terminals.
func (s script) terminal(x entry) {
	const what = "terminal of the guest"
	master := s.Sys(what, unix.SYS_OPENAT2, cwd, s.Text("/dev/pts/ptmx"), s.How(unix.O_RDWR|unblocked, 0, unix.RESOLVE_NO_SYMLINKS), launch.HowSize)
	unlocked := s.Space(8)
	s.Do(what, unix.SYS_IOCTL, master, plan.Imm(unix.TIOCSPTLCK), unlocked)
	slave := s.Sys(what, unix.SYS_IOCTL, master, plan.Imm(unix.TIOCGPTPEER), plan.Imm(unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC))
	size := binary.LittleEndian.AppendUint16(binary.LittleEndian.AppendUint16(nil, x.rows), x.cols)
	s.Ignore(unix.SYS_IOCTL, slave, plan.Imm(unix.TIOCSWINSZ), s.Bytes(append(size, 0, 0, 0, 0)))
	s.Ignore(unix.SYS_FCHOWN, slave, plan.Imm(x.who.uid), plan.Imm(ttyGroup))
	for fd := range 3 {
		s.Do(what, unix.SYS_DUP3, slave, plan.Imm(fd), zero)
	}
	s.Do(what, unix.SYS_IOCTL, zero, plan.Imm(unix.TIOCSCTTY), zero)
	s.Pass(master, "terminal")
	s.Close(master, slave)
}

// Exec runs a program inside the guest.
func (m *Machine) Exec(ctx context.Context, r session.Request) (session.Session, error) {
	if len(r.Argv) == 0 || r.Argv[0] == "" {
		return nil, errs.Bad("argv", "no program was named", "say what to run: lodge exec GUEST -- PROGRAM")
	}
	who, err := m.account(r.User)
	if err != nil {
		return nil, err
	}
	x := entry{argv: r.Argv, env: environment(m.g), dir: who.home, who: who, tty: r.TTY, rows: r.Rows, cols: r.Cols}
	maps.Copy(x.env, map[string]string{"HOME": who.home, "USER": who.name, "LOGNAME": who.name, "SHELL": who.shell})
	for _, kv := range r.Env {
		k, v, _ := strings.Cut(kv, "=")
		x.env[k] = v
	}
	if r.Dir != "" {
		x.dir, x.must = r.Dir, true
	}
	return m.enter(ctx, x, r.Stdin, r.Stdout, r.Stderr)
}

// enter runs x inside the guest; nil files are /dev/null.
func (m *Machine) enter(ctx context.Context, x entry, stdin, stdout, stderr *os.File) (*process, error) {
	if frozen, err := m.e.o.Tree.Frozen(m.parts.Cgroup); err == nil && frozen {
		return nil, &errs.Error{Op: "oslevel.exec", Kind: errs.Conflict, Ref: "guest/" + m.g.Name, Msg: "the guest is paused", Hint: "resume it first"}
	}
	bpf, err := m.e.filter()
	if err != nil {
		return nil, err
	}
	x.ask = m.parts.Root.Limit != ""
	input, err := x.compile(m.e.o.Tree.Join(m.parts.Cgroup), bpf)
	if err != nil {
		return nil, err
	}
	said, err := m.help(ctx, input, stdin, stdout, stderr)
	if err != nil {
		kind := errs.Internal
		if ctx.Err() != nil {
			kind = errs.Cancelled
		}
		said.close()
		return nil, &errs.Error{Op: "oslevel.exec", Kind: kind, Ref: "guest/" + m.g.Name, Msg: "the launch helper did not finish", Err: err}
	}
	m.watch(said.listener)
	p := said.take()
	switch {
	case said.failure != "":
		err = m.failure(x, said.failure)
	case p == nil:
		err = &errs.Error{Op: "oslevel.exec", Kind: errs.Conflict, Ref: "guest/" + m.g.Name, Msg: "the guest ended"}
	default:
		return p, nil
	}
	if p != nil { // it was made and failed before its program ran
		p.discard()
	}
	return nil, err
}

// watch lets the keeper answer what a program asks, as it does for the guest's
// own: the program may leave behind what outlives the daemon. Only who asks has
// to wait for it.
func (m *Machine) watch(listener int) {
	if listener == 0 {
		return
	}
	go func() {
		if err := m.held.Watch(context.Background(), listener); err != nil && m.e.o.Log != nil {
			m.e.o.Log.Debug("a program is not shown the guest's quota", "guest", m.g.Name, "err", err)
		}
	}()
}

// help runs the launch helper and collects what it says.
func (m *Machine) help(ctx context.Context, input []byte, stdin, stdout, stderr *os.File) (said statement, err error) {
	fd, err := unix.MemfdCreate("plan", unix.MFD_CLOEXEC)
	if err != nil {
		return said, err
	}
	in := os.NewFile(uintptr(fd), "plan")
	defer in.Close()
	if _, err := in.WriteAt(input, 0); err != nil {
		return said, err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return said, err
	}
	theirs := os.NewFile(uintptr(pair[1]), "status")
	pidfd, err := unix.FcntlInt(uintptr(m.held.Pidfd()), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return said, errors.Join(err, unix.Close(pair[0]), theirs.Close())
	}
	guest := os.NewFile(uintptr(pidfd), "guest")
	cmd := exec.Command(m.e.o.Launch)
	cmd.Env, cmd.Dir = []string{}, "/"
	cmd.ExtraFiles = []*os.File{in, theirs, guest}
	// A nil *os.File in an io.Reader would not be nil.
	if stdin != nil {
		cmd.Stdin = stdin
	}
	if stdout != nil {
		cmd.Stdout = stdout
	}
	if stderr != nil {
		cmd.Stderr = stderr
	}
	err = cmd.Start()
	theirs.Close()
	guest.Close()
	if err != nil {
		return said, errors.Join(err, unix.Close(pair[0]))
	}
	// Who gives up must not kill the helper, which alone knows what it made:
	// it fails to report and ends that itself.
	hungUp := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = unix.Shutdown(pair[0], unix.SHUT_RDWR)
		close(hungUp)
	})
	err = said.listen(pair[0])
	if !stop() {
		<-hungUp // the number must not be somebody else's by then
	}
	unix.Close(pair[0])
	if ctx.Err() != nil {
		said.close()
		said, err = statement{}, ctx.Err()
	}
	// How the helper ended adds nothing to what it said.
	_ = cmd.Wait()
	return said, err
}

// statement is what a helper told before it was done.
type statement struct {
	failure  string
	process  int // descriptors, or 0
	terminal int
	listener int
}

// listen reads until nobody can say more: the helper is gone and the guest's
// program runs.
func (s *statement) listen(fd int) error {
	var text [600]byte
	var oob [64]byte
	for {
		n, oobn, _, _, err := unix.Recvmsg(fd, text[:], oob[:], unix.MSG_CMSG_CLOEXEC)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return nil
		}
		s.hear(string(text[:n]), oob[:oobn])
	}
}

func (s *statement) hear(text string, oob []byte) {
	if what, ok := strings.CutPrefix(text, "error "); ok {
		s.failure = strings.TrimSpace(what)
		return
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(messages) != 1 {
		return
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return
	}
	switch text {
	case "process":
		s.process = fds[0]
	case "terminal":
		s.terminal = fds[0]
	case "listener":
		s.listener = fds[0]
	}
}

func (s *statement) close() {
	if s.listener != 0 {
		unix.Close(s.listener)
	}
	if p := s.take(); p != nil {
		p.discard()
	}
}

// take makes a process of what was said; nil if none was made.
func (s *statement) take() *process {
	if s.process == 0 {
		return nil
	}
	// Descriptors that do not block are waited for without a thread.
	_ = unix.SetNonblock(s.process, true)
	p := &process{file: os.NewFile(uintptr(s.process), "process")}
	if s.terminal != 0 {
		_ = unix.SetNonblock(s.terminal, true)
		p.terminal = os.NewFile(uintptr(s.terminal), "terminal")
	}
	return p
}

// failure turns "NUMBER WHAT: WHY" into an error for the person who asked.
func (m *Machine) failure(x entry, said string) error {
	number, rest, _ := strings.Cut(said, " ")
	what, why, _ := strings.Cut(rest, ": ")
	n, _ := strconv.Atoi(number)
	e := &errs.Error{Op: "oslevel.exec", Kind: errs.Internal, Ref: "guest/" + m.g.Name, Msg: rest, Err: unix.Errno(n)}
	switch errno := unix.Errno(n); {
	case what == whatRun && errno == unix.ENOENT:
		e.Kind, e.Field, e.Msg = errs.NotFound, "argv", x.argv[0]+": not found in guest"
		e.Hint = "install it in the guest, or give its full path"
	case what == whatRun:
		e.Kind, e.Field, e.Msg = errs.Denied, "argv", x.argv[0]+": "+why
	case what == whatDir:
		e.Kind, e.Field, e.Msg = errs.NotFound, "dir", x.dir+": "+why
	case errno == unix.EAGAIN:
		e.Kind, e.Msg, e.Hint = errs.Busy, "the guest has as many processes as it may", "end some, or raise its limit: lodge set GUEST --processes N"
	case errno == unix.ENOMEM:
		e.Kind, e.Msg, e.Hint = errs.Busy, "the guest has no memory left", "end some of its programs, or raise its limit: lodge set GUEST --memory SIZE"
	case unix.PidfdSendSignal(m.held.Pidfd(), 0, nil, 0) != nil:
		e.Kind, e.Msg = errs.Conflict, "the guest ended"
	}
	return e
}

// process is one program that runs inside a guest, a child of the daemon.
type process struct {
	file     *os.File // pidfd
	terminal *os.File
}

var _ session.Session = (*process)(nil)

// Terminal is the host's end of the program's terminal.
func (p *process) Terminal() *os.File { return p.terminal }

// Resize tells the program's terminal its new size.
func (p *process) Resize(rows, cols uint16) error {
	if p.terminal == nil {
		return nil
	}
	return proc.Control(p.terminal, func(fd int) error {
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
	})
}

// Signal sends a signal to the program.
func (p *process) Signal(sig os.Signal) error {
	n, ok := sig.(unix.Signal)
	if !ok {
		return errs.Bad("signal", fmt.Sprintf("%v is not a signal", sig), "")
	}
	err := proc.Control(p.file, func(fd int) error { return unix.PidfdSendSignal(fd, n, nil, 0) })
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// Wait returns the exit status, or 128 plus the signal that ended the program.
func (p *process) Wait(ctx context.Context) (int, error) {
	stop := context.AfterFunc(ctx, func() { _ = p.Signal(unix.SIGKILL) })
	defer stop()
	defer p.close()
	raw, err := p.file.SyscallConn()
	if err != nil {
		return 0, err
	}
	status, inner := 0, error(nil)
	err = raw.Read(func(fd uintptr) bool {
		var info childInfo
		inner = waitid(int(fd), &info)
		if inner == nil && info.pid == 0 {
			return false // still running: the runtime waits for the descriptor to become readable
		}
		status = info.code()
		return true
	})
	if err = errors.Join(err, inner); err != nil {
		return 0, err
	}
	return status, ctx.Err()
}

func (p *process) close() {
	p.file.Close()
	if p.terminal != nil {
		p.terminal.Close()
	}
}

// discard ends a program that nobody is to see.
func (p *process) discard() {
	_ = p.Signal(unix.SIGKILL)
	_, _ = p.Wait(context.Background())
}
