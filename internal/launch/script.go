package launch

import (
	"encoding/binary"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"lodge/internal/launch/plan"
)

// Script is a plan with names for the system calls that starts need. It must be
// made by NewScript.
type Script struct{ *plan.Plan }

// NewScript returns an empty script.
func NewScript() Script { return Script{&plan.Plan{}} }

// Arguments that many system calls take.
const (
	Cwd   = plan.Imm(unix.AT_FDCWD)
	Zero  = plan.Imm(0)
	Empty = plan.Imm(unix.AT_EMPTY_PATH)
)

// Status is the descriptor that the helper reports on.
const Status = plan.Imm(4)

// Stay is how every path inside a guest's root is resolved on the way to it:
// what the guest put there leads nowhere else.
const Stay = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS

// No is what a system call that fails with e returns.
func No(e unix.Errno) plan.Imm { return plan.Imm(-int64(e)) }

// Open opens a path of the host.
func (s Script) Open(path string, flags int) plan.Reg {
	return s.OpenAt("open "+path, Cwd, path, flags)
}

// OpenAt opens a path below dir, following what is there.
func (s Script) OpenAt(what string, dir plan.Arg, path string, flags int) plan.Reg {
	return s.Sys(what, unix.SYS_OPENAT, dir, s.Text(path), plan.Imm(flags|unix.O_CLOEXEC), Zero)
}

// How puts a struct open_how for openat2(2) into the data.
func (s Script) How(flags, mode int, resolve uint64) plan.At {
	b := binary.LittleEndian.AppendUint64(nil, uint64(flags|unix.O_CLOEXEC))
	b = binary.LittleEndian.AppendUint64(b, uint64(mode))
	return s.Bytes(binary.LittleEndian.AppendUint64(b, resolve))
}

// HowSize is the size of struct open_how.
const HowSize = plan.Imm(24)

// Inside opens a path below a directory that a guest may have filled.
func (s Script) Inside(root plan.Arg, path string, flags int) plan.Reg {
	return s.Sys("/"+path+" of the guest", unix.SYS_OPENAT2, root, s.Text(path), s.How(flags, 0, Stay), HowSize)
}

// Close closes descriptors, open or not.
func (s Script) Close(fds ...plan.Reg) {
	for _, fd := range fds {
		s.Ignore(unix.SYS_CLOSE, fd)
	}
}

// Write writes text to an open descriptor.
func (s Script) Write(what string, fd plan.Arg, text string) {
	s.Do(what, unix.SYS_WRITE, fd, s.Text(text), plan.Imm(len(text)))
}

// WriteFile writes a value to a file of the host.
func (s Script) WriteFile(path, value string) {
	fd := s.Open(path, unix.O_WRONLY)
	s.Write("write to "+path, fd, value)
	s.Close(fd)
}

// Option is one parameter of a file system.
type Option struct{ key, value string }

// Opt returns the parameter key with a value.
func Opt(key, value string) Option { return Option{key, value} }

// Filesystem opens a new file system of a kind, not yet created.
func (s Script) Filesystem(kind string, options ...Option) plan.Reg {
	fs := s.Sys("file system "+kind, unix.SYS_FSOPEN, s.Text(kind), plan.Imm(unix.FSOPEN_CLOEXEC))
	for _, o := range append(options, Option{"source", "lodge"}) {
		s.Do(kind+" "+o.key, unix.SYS_FSCONFIG, fs, plan.Imm(unix.FSCONFIG_SET_STRING), s.Text(o.key), s.Text(o.value), Zero)
	}
	return fs
}

// Create makes the file system and returns its detached mount.
func (s Script) Create(kind string, fs plan.Reg, attributes int) plan.Reg {
	s.Do("create "+kind, unix.SYS_FSCONFIG, fs, plan.Imm(unix.FSCONFIG_CMD_CREATE), Zero, Zero, Zero)
	m := s.Sys("mount "+kind, unix.SYS_FSMOUNT, fs, plan.Imm(unix.FSMOUNT_CLOEXEC), plan.Imm(attributes))
	s.Close(fs)
	return m
}

// Clone copies the mount at a path as a detached one.
func (s Script) Clone(what string, dir plan.Arg, path string, flags int) plan.Reg {
	return s.Sys(what, unix.SYS_OPEN_TREE, dir, s.Text(path), plan.Imm(unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|flags))
}

// Attributes changes a detached mount: set are MOUNT_ATTR_ flags, of which
// MOUNT_ATTR_IDMAP takes the user namespace's descriptor.
func (s Script) Attributes(what string, mount plan.Reg, set int, userns plan.Arg) {
	attr := s.Space(32) // struct mount_attr
	s.Store64(attr, plan.Imm(set))
	if userns != nil {
		s.Store64(attr+24, userns)
	}
	s.Do(what, unix.SYS_MOUNT_SETATTR, mount, s.Text(""), Empty, attr, plan.Imm(32))
}

// Attach puts a detached mount on a place that is open as a descriptor.
func (s Script) Attach(what string, mount, place plan.Reg) {
	s.Do(what, unix.SYS_MOVE_MOUNT, mount, s.Text(""), place, s.Text(""),
		plan.Imm(unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH))
}

// Stage is a number in the data by which the parent tells the child how far it
// is.
type Stage struct {
	s    Script
	word plan.At
}

// NewStage returns a stage that nobody has reached anything of.
func (s Script) NewStage() Stage { return Stage{s: s, word: s.Space(8)} }

// patience is how long parent and child wait for each other, in seconds: far
// beyond any sane start, so that a lost partner does not leave a process behind.
const patience = 60

// The two operations of futex(2) that are used, of linux/futex.h.
const (
	futexWait = 0
	futexWake = 1
)

// futexTimeout puts the timespec of patience into the data.
func (s Script) futexTimeout() plan.At {
	return s.Bytes(binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, patience), 0))
}

// Reach tells the child that the parent has come to n.
func (g Stage) Reach(n int) {
	g.s.Store32(g.word, plan.Imm(n))
	g.s.Ignore(unix.SYS_FUTEX, g.word, plan.Imm(futexWake), plan.Imm(1))
}

// Await lets the child wait until the parent has come to n. Stages only rise.
func (g Stage) Await(n int) {
	again, wait, done := g.s.Mark(), g.s.Mark(), g.s.Mark()
	now, limit := g.s.New(), g.s.futexTimeout()
	g.s.Here(again)
	g.s.LoadTo(now, g.word)
	for i := range n {
		g.s.JumpIf(now, plan.Imm(i), wait)
	}
	g.s.Jump(done)
	g.s.Here(wait)
	r := g.s.Try(unix.SYS_FUTEX, g.word, plan.Imm(futexWait), now, limit)
	g.s.JumpUnless(r, No(unix.ETIMEDOUT), again)
	g.s.Fail("wait for the host's side", r)
	g.s.Here(done)
}

// AwaitCleared lets the parent wait until the child ran its program or ended,
// which is when the kernel clears the word, and fails as the child failed.
func (s Script) AwaitCleared(word plan.At) {
	again, done := s.Mark(), s.Mark()
	now, limit := s.New(), s.futexTimeout()
	s.Here(again)
	s.LoadTo(now, word)
	s.JumpIf(now, Zero, done)
	r := s.Try(unix.SYS_FUTEX, word, plan.Imm(futexWait), now, limit)
	s.JumpUnless(r, No(unix.ETIMEDOUT), again)
	s.Fail("wait for the guest's side", r)
	s.Here(done)
	s.Check()
}

// Child is where the plan keeps what clone3 reads and writes.
type Child struct {
	Args, Pidfd, TID plan.At
}

// NewClone prepares struct clone_args for a child that shares memory and
// descriptors with the helper and is its sibling.
func (s Script) NewClone(flags uint64, cgroup plan.Arg) Child {
	c := Child{Args: s.Space(88), Pidfd: s.Space(8), TID: s.Space(8)}
	flags |= unix.CLONE_VM | unix.CLONE_FILES | unix.CLONE_PARENT | unix.CLONE_PIDFD | unix.CLONE_CHILD_CLEARTID |
		unix.CLONE_INTO_CGROUP | unix.CLONE_CLEAR_SIGHAND
	s.Store64(c.Args, plan.Imm(int64(flags)))
	s.Store64(c.Args+8, c.Pidfd)
	s.Store64(c.Args+16, c.TID)
	s.Store64(c.Args+80, cgroup)
	s.Store32(c.TID, plan.Imm(1))
	return c
}

// Execute runs argv, searched for in path unless it has a slash, with env. It
// returns only by failing with what.
func (s Script) Execute(what string, argv, env []string, path []string) {
	vector, environ := s.Vector(argv), s.Vector(env)
	seen := s.New() // the worst that was found: a program that may not be run beats none
	s.Set(seen, No(unix.ENOENT))
	for _, file := range Candidates(argv[0], path) {
		r := s.Try(unix.SYS_EXECVE, s.Text(file), vector, environ)
		next, denied := s.Mark(), s.Mark()
		s.JumpIf(r, No(unix.ENOENT), next)
		s.JumpIf(r, No(unix.ENOTDIR), next)
		s.JumpIf(r, No(unix.EACCES), denied)
		s.Fail(what, r)
		s.Here(denied)
		s.Set(seen, r)
		s.Here(next)
	}
	s.Fail(what, seen)
}

// Candidates are the paths that file may be found at.
func Candidates(file string, path []string) []string {
	if strings.Contains(file, "/") || file == "" {
		return []string{file}
	}
	var out []string
	for _, dir := range path {
		if filepath.IsAbs(dir) {
			out = append(out, filepath.Join(dir, file))
		}
	}
	return out
}

// SockFilter puts a struct sock_fprog into the data.
func (s Script) SockFilter(bpf []byte) plan.At {
	code, prog := s.Bytes(bpf), s.Space(16)
	s.Store32(prog, plan.Imm(len(bpf)/8))
	s.Store64(prog+8, code)
	return prog
}

// Hide makes what the process is and holds unreadable to all but root.
func (s Script) Hide() {
	s.Do("hide", unix.SYS_PRCTL, plan.Imm(unix.PR_SET_DUMPABLE), Zero, Zero, Zero, Zero)
}

// Pass sends a descriptor to whoever runs the helper.
func (s Script) Pass(fd plan.Reg, name string) {
	iov, cmsg, msg := s.Space(16), s.Space(24), s.Space(56) // struct iovec, cmsghdr with one int, msghdr
	s.Store64(iov, s.Text(name))
	s.Store64(iov+8, plan.Imm(len(name)))
	s.Store64(cmsg, plan.Imm(20))
	s.Store32(cmsg+8, plan.Imm(unix.SOL_SOCKET))
	s.Store32(cmsg+12, plan.Imm(unix.SCM_RIGHTS))
	s.Store32(cmsg+16, fd)
	s.Store64(msg+16, iov)
	s.Store64(msg+24, plan.Imm(1))
	s.Store64(msg+32, cmsg)
	s.Store64(msg+40, plan.Imm(24))
	s.Do("report", unix.SYS_SENDMSG, Status, msg, plan.Imm(unix.MSG_NOSIGNAL))
}
