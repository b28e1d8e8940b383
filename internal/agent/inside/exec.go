package inside

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"lodge/internal/agent"
	"lodge/internal/base/account"
	"lodge/internal/base/errs"
	"lodge/internal/base/proc"
)

// searchPath is where programs are looked for when nobody says where.
const searchPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// ttyGroup is the group of terminals in every distribution.
const ttyGroup = 5

// linger is how long the output of a program that has ended may go on before
// the host is told of the end, when something it left behind holds it open.
const linger = 100 * time.Millisecond

// program is one that runs on the host's behalf.
type program struct {
	process  *os.Process
	terminal *os.File // our end
	in       *os.File // written to; the terminal, or a pipe
	outs     map[agent.Kind]*os.File
}

// exec runs a program and carries its streams.
func (a *Agent) exec(s *stream, r agent.Request) {
	x := r.Exec
	if x == nil || len(x.Argv) == 0 || x.Argv[0] == "" {
		s.result(agent.Result{}, errs.Bad("argv", "no program was named", ""))
		return
	}
	p, err := a.start(*x)
	s.result(agent.Result{}, err)
	if err != nil {
		return
	}
	defer p.close()
	t := &traffic{s: s, p: p, sent: map[agent.Kind]*agent.Window{}, letters: agent.NewLetters(s, a.Mailbox, r.Slots)}
	for k := range p.outs {
		t.sent[k] = agent.NewWindow(agent.ExecWindow)
	}
	go t.listen()
	var outs sync.WaitGroup
	for k, f := range p.outs {
		outs.Go(func() { t.carry(k, f) })
	}
	drained := make(chan struct{})
	go func() { outs.Wait(); close(drained) }()
	state, err := p.process.Wait()
	status := uint32(1)
	if err == nil {
		status = exitStatus(state.Sys().(syscall.WaitStatus))
	}
	select {
	case <-drained:
	case <-time.After(linger):
	}
	s.SetWriteDeadline(time.Now().Add(answerTimeout))
	if agent.WriteNumbers(s, agent.KindExit, status) != nil {
		t.hangUp()
	}
	<-drained
}

func exitStatus(w syscall.WaitStatus) uint32 {
	if w.Signaled() {
		return 128 + uint32(w.Signal())
	}
	return uint32(w.ExitStatus())
}

// traffic is what runs between a program and the host.
type traffic struct {
	s    *stream
	p    *program
	sent map[agent.Kind]*agent.Window

	letters *agent.Letters
	once    sync.Once
}

// hangUp makes who reads and writes for the program stop; its terminal goes,
// or its pipes, and with them as a rule the program.
func (t *traffic) hangUp() {
	t.once.Do(func() {
		for _, w := range t.sent {
			w.Close()
		}
		t.p.close()
	})
}

// carry sends what the program says, no faster than the host takes it.
func (t *traffic) carry(k agent.Kind, from *os.File) {
	buf := make([]byte, agent.ChunkMax)
	for {
		room := t.sent[k].Take(len(buf))
		if room == 0 {
			return
		}
		n, err := from.Read(buf[:room])
		t.sent[k].Give(room - max(n, 0))
		if n > 0 && agent.WriteFrame(t.s, k, buf[:n]) != nil {
			t.hangUp()
			return
		}
		if err != nil {
			_ = agent.WriteFrame(t.s, k, nil)
			return
		}
	}
}

// listen does what the host says of the running program. Input is written
// beside it, so that a signal does not wait for a program that does not read.
func (t *traffic) listen() {
	in := agent.NewInbox()
	go t.feed(in)
	defer in.End()
	defer t.hangUp()
	for {
		kind, payload, err := t.s.frames.Next()
		if err != nil {
			return
		}
		switch kind {
		case agent.KindIn:
			if !in.Put(payload) {
				return // more than it was allowed to send
			}
		case agent.KindSlot:
			if !t.letters.Open(payload, in.Put) {
				return
			}
		case agent.KindTaken:
			t.taken(payload)
		case agent.KindSignal:
			if n, err := agent.Numbers(payload, 1); err == nil && n[0] < 65 {
				_ = t.p.process.Signal(syscall.Signal(n[0]))
			}
		case agent.KindSize:
			if n, err := agent.Numbers(payload, 2); err == nil && t.p.terminal != nil {
				resize(t.p.terminal, uint16(n[0]), uint16(n[1]))
			}
		}
	}
}

// taken hears that the host took output, or wants no more of it.
func (t *traffic) taken(payload []byte) {
	n, err := agent.Numbers(payload, 2)
	if err != nil {
		return
	}
	w, out := t.sent[agent.Kind(n[0])], t.p.outs[agent.Kind(n[0])]
	switch {
	case w == nil:
	case n[1] == 0:
		w.Close()
		out.Close()
	default:
		w.Give(int(min(n[1], agent.ExecWindow)))
	}
}

// feed writes input; what comes after the program stopped reading is dropped.
func (t *traffic) feed(in *agent.Inbox) {
	in.Pour(func(b []byte) error {
		if t.p.in == nil {
			return os.ErrClosed
		}
		_, err := t.p.in.Write(b)
		return err
	}, func(n int) error {
		return agent.WriteNumbers(t.s, agent.KindTaken, uint32(agent.KindIn), uint32(n))
	})
	if t.p.terminal == nil && t.p.in != nil {
		t.p.in.Close()
	}
}

func (p *program) close() {
	for _, f := range p.outs {
		f.Close()
	}
	if p.in != nil {
		p.in.Close()
	}
}

// start finds who runs what where, and runs it.
func (a *Agent) start(x agent.Exec) (*program, error) {
	who, err := lookup(x.User)
	if err != nil {
		return nil, err
	}
	env := a.environment(who, x.Env)
	dir, must := x.Dir, x.Dir != ""
	if !must {
		dir = who.Home
	}
	if fi, err := os.Stat(dir); err != nil || !fi.IsDir() {
		if must {
			return nil, &errs.Error{Kind: errs.NotFound, Field: "dir", Msg: dir + ": " + reason(err, unix.ENOTDIR)}
		}
		dir = "/"
	}
	p, theirs, err := files(x, who)
	if err != nil {
		return nil, err
	}
	defer closeAll(theirs)
	attr := &os.ProcAttr{Dir: dir, Env: pairs(env), Files: theirs, Sys: &syscall.SysProcAttr{
		Setsid: true, Setctty: x.TTY,
		Credential: &syscall.Credential{Uid: who.UID, Gid: who.GID, Groups: who.Groups},
	}}
	alike(a.Config().Alike, func() {
		p.process, err = run(x.Argv, env["PATH"], attr)
		if errors.Is(err, unix.EACCES) && !must && dir != "/" { // a home that its owner may not enter
			attr.Dir = "/"
			p.process, err = run(x.Argv, env["PATH"], attr)
		}
	})
	if err != nil {
		p.close()
		return nil, failure(x, err)
	}
	forgive(p.process.Pid)
	return p, nil
}

// Of personality(2): what asks, and what makes programs lie where they lay
// before.
const (
	personalityNow  = 0xffffffff
	addrNoRandomize = 0x0040000
)

// alike calls start so that what it starts, and what that starts, is laid out in
// memory alike each time, if yes. Programs that gain rights never are.
func alike(yes bool, start func()) {
	if !yes {
		start()
		return
	}
	runtime.LockOSThread() // programs inherit what their starter's thread has
	defer runtime.UnlockOSThread()
	was, _, errno := unix.RawSyscall(unix.SYS_PERSONALITY, personalityNow, 0, 0)
	if errno == 0 {
		_, _, errno = unix.RawSyscall(unix.SYS_PERSONALITY, was|addrNoRandomize, 0, 0)
	}
	if errno == 0 { // else it starts as others do
		defer unix.RawSyscall(unix.SYS_PERSONALITY, was, 0, 0)
	}
	start()
}

// forgive makes the kernel choose the program before the agent when memory
// runs out.
func forgive(pid int) {
	_ = os.WriteFile("/proc/"+strconv.Itoa(pid)+"/oom_score_adj", []byte("0"), 0)
}

// run starts argv, searched for in path unless it has a slash. A program that
// may not be run is worse than none, and better than nothing said.
func run(argv []string, path string, attr *os.ProcAttr) (*os.Process, error) {
	var worst error = unix.ENOENT
	for _, file := range candidates(argv[0], path, attr.Dir) {
		if _, err := os.Stat(file); err != nil {
			continue // starting a process to find that out costs more
		}
		p, err := os.StartProcess(file, argv, attr)
		switch {
		case err == nil:
			return p, nil
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR): // of its interpreter
		case errors.Is(err, unix.EACCES):
			worst = unix.EACCES
		default:
			return nil, err
		}
	}
	return nil, worst
}

func candidates(file, path, dir string) []string {
	if strings.HasPrefix(file, "/") {
		return []string{file}
	}
	if strings.Contains(file, "/") {
		return []string{filepath.Join(dir, file)}
	}
	var out []string
	for d := range strings.SplitSeq(path, ":") {
		if filepath.IsAbs(d) {
			out = append(out, filepath.Join(d, file))
		}
	}
	return out
}

// failure is why a program could not be started, for the person who asked.
func failure(x agent.Exec, err error) error {
	var n unix.Errno
	if !errors.As(err, &n) {
		return err
	}
	e := &errs.Error{Kind: errs.Denied, Field: "argv", Msg: x.Argv[0] + ": " + n.Error(), Err: n}
	switch n {
	case unix.ENOENT:
		e.Kind, e.Msg, e.Hint = errs.NotFound, x.Argv[0]+": not found in guest", "install it in the guest, or give its full path"
	case unix.EAGAIN:
		e.Kind, e.Field, e.Msg, e.Hint = errs.Busy, "", "the guest has as many processes as it may", "end some"
	case unix.ENOMEM:
		e.Kind, e.Field, e.Msg, e.Hint = errs.Busy, "", "the guest has no memory left", "end some of its programs, or raise its limit: lodge set GUEST --memory SIZE"
	}
	return e
}

func reason(err error, otherwise unix.Errno) string {
	var n unix.Errno
	if errors.As(err, &n) {
		return n.Error()
	}
	return otherwise.Error()
}

// files makes the program's descriptors and ours.
func files(x agent.Exec, who account.Account) (p *program, theirs []*os.File, err error) {
	if x.TTY {
		return onTerminal(x, who)
	}
	p = &program{outs: map[agent.Kind]*os.File{}}
	in, err := os.Open(os.DevNull)
	if x.In && err == nil {
		in.Close()
		in, p.in, err = os.Pipe()
	}
	if err != nil {
		return nil, nil, err
	}
	theirs = []*os.File{in}
	for _, k := range []agent.Kind{agent.KindOut, agent.KindErr} {
		r, w, err := os.Pipe()
		if err != nil {
			p.close()
			closeAll(theirs)
			return nil, nil, err
		}
		p.outs[k], theirs = r, append(theirs, w)
	}
	return p, theirs, nil
}

// onTerminal makes a terminal of the guest's own, so that it has a name there.
func onTerminal(x agent.Exec, who account.Account) (*program, []*os.File, error) {
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
	f := os.NewFile(uintptr(slave), "terminal")
	p := &program{terminal: master, in: master, outs: map[agent.Kind]*os.File{agent.KindOut: master}}
	return p, []*os.File{f, f, f}, nil
}

func resize(terminal *os.File, rows, cols uint16) {
	_ = proc.Control(terminal, func(fd int) error {
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
	})
}
func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// lookup finds an account in the guest's files. What is not there reads as
// empty.
func lookup(who string) (account.Account, error) {
	passwd, group := file("/etc/passwd"), file("/etc/group")
	defer passwd.Close()
	defer group.Close()
	return account.Lookup(who, io.LimitReader(passwd, account.FileMax), io.LimitReader(group, account.FileMax))
}

// file opens a regular file of the guest's for reading.
func file(path string) io.ReadCloser {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err == nil {
		if fi, e := f.Stat(); e == nil && fi.Mode().IsRegular() {
			return f
		}
		f.Close()
	}
	return io.NopCloser(strings.NewReader(""))
}

// environment is what every program of a guest that Lodge starts begins with,
// the guest's own settings on top, and what the caller wants above all.
func (a *Agent) environment(who account.Account, more []string) map[string]string {
	env := base(a.Config())
	maps.Copy(env, map[string]string{"HOME": who.Home, "USER": who.Name, "LOGNAME": who.Name, "SHELL": who.Shell})
	for _, kv := range more {
		k, v, _ := strings.Cut(kv, "=")
		env[k] = v
	}
	return env
}

func base(c agent.Config) map[string]string {
	env := map[string]string{"PATH": searchPath, "HOME": "/root", "TERM": "xterm-256color", "LANG": "C.UTF-8"}
	maps.Copy(env, c.Env)
	return env
}

func pairs(env map[string]string) []string {
	out := make([]string, 0, len(env))
	for _, k := range slices.Sorted(maps.Keys(env)) {
		out = append(out, k+"="+env[k])
	}
	return out
}
