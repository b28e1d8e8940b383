package inside

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"lodge/internal/agent"
	"lodge/internal/base/account"
	"lodge/internal/base/errs"
)

// searchPath is where programs are looked for when nobody says where.
const searchPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// start finds who runs what where, and runs it.
func (a *Agent) start(x agent.Exec) (*program, error) {
	who, err := a.accounts.lookup(x.User)
	if err != nil {
		return nil, err
	}
	env := a.environment(who, x.Env)
	dir, must := x.Dir, x.Dir != ""
	if !must {
		dir = who.Home
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		if must {
			return nil, &errs.Error{Kind: errs.NotFound, Field: "dir", Msg: dir + ": " + reason(err, unix.ENOTDIR)}
		}
		dir = "/"
	}
	p, theirs, err := files(x, who)
	if err != nil {
		return nil, err
	}
	attr := &syscall.ProcAttr{Dir: dir, Env: pairs(env), Files: three(theirs), Sys: &syscall.SysProcAttr{
		Setsid: true, Setctty: x.TTY,
		Credential: &syscall.Credential{Uid: who.UID, Gid: who.GID, Groups: who.Groups},
	}}
	a.starter.with(a.Config().Alike, func() {
		p.pid, err = run(x.Argv, env["PATH"], attr)
		if errors.Is(err, unix.EACCES) && !must && dir != "/" { // a home that its owner may not enter
			attr.Dir = "/"
			p.pid, err = run(x.Argv, env["PATH"], attr)
		}
	})
	if err != nil {
		shut(theirs)
		p.close()
		return nil, failure(x, err)
	}
	shut(theirs[:1])
	p.keep(theirs[1:])
	p.watch()
	return p, nil
}

// starter makes what programs inherit from the agent's thread what they should
// have. The zero one is of an agent that is a program like others.
type starter struct {
	calm bool     // the agent's threads are not what programs should inherit (calm)
	oom  *os.File // the agent's own standing when memory runs out, or nil

	mu sync.Mutex
}

// Of personality(2): what asks, and what makes programs lie where they lay
// before.
const (
	personalityNow  = 0xffffffff
	addrNoRandomize = 0x0040000
)

// What the agent and what it starts have in oom_score_adj: the kernel chooses
// the programs first.
const (
	oomAgent   = "-1000"
	oomProgram = "0"
)

// with calls start so that what it starts has the usual standing among the
// guest's programs and, if alike, is laid out in memory alike each time, as is
// what that starts. Programs that gain rights never are.
func (s *starter) with(alike bool, start func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if alike {
		was, _, errno := unix.RawSyscall(unix.SYS_PERSONALITY, personalityNow, 0, 0)
		if errno == 0 {
			_, _, errno = unix.RawSyscall(unix.SYS_PERSONALITY, was|addrNoRandomize, 0, 0)
		}
		if errno == 0 { // else it starts as others do
			defer unix.RawSyscall(unix.SYS_PERSONALITY, was, 0, 0)
		}
	}
	if s.calm {
		setSlack(usualSlack)
		defer setSlack(slack)
	}
	if s.oom != nil { // looking for the program's own file takes longer
		_, _ = s.oom.WriteAt([]byte(oomProgram), 0)
		defer s.oom.WriteAt([]byte(oomAgent), 0)
	}
	start()
}

// forgive makes the kernel choose the program before the agent when memory
// runs out.
func forgive(pid int) {
	_ = os.WriteFile("/proc/"+strconv.Itoa(pid)+"/oom_score_adj", []byte(oomProgram), 0)
}

// run starts argv, searched for in path unless it has a slash. A program that
// may not be run is worse than none, and better than nothing said.
func run(argv []string, path string, attr *syscall.ProcAttr) (pid int, err error) {
	var worst error = unix.ENOENT
	for _, file := range candidates(argv[0], path, attr.Dir) {
		var st unix.Stat_t
		if unix.Stat(file, &st) != nil {
			continue // starting a process to find that out costs more
		}
		pid, _, err := syscall.StartProcess(file, argv, attr)
		switch {
		case err == nil:
			return pid, nil
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR): // of its interpreter
		case errors.Is(err, unix.EACCES):
			worst = unix.EACCES
		default:
			return 0, err
		}
	}
	return 0, worst
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
