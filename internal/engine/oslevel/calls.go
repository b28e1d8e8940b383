package oslevel

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"lodge/internal/engine/oslevel/plan"
)

// script is a plan with names for the system calls that guests need.
type script struct{ *plan.Plan }

const (
	cwd   = plan.Imm(unix.AT_FDCWD)
	zero  = plan.Imm(0)
	empty = plan.Imm(unix.AT_EMPTY_PATH)
)

// stay is how every path inside a guest's root is resolved on the way to it:
// what the guest put there leads nowhere else.
const stay = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS

func no(e unix.Errno) plan.Imm { return plan.Imm(-int64(e)) }

// open opens a path of the host.
func (s script) open(path string, flags int) plan.Reg {
	return s.openAt("open "+path, cwd, path, flags)
}

func (s script) openAt(what string, dir plan.Arg, path string, flags int) plan.Reg {
	return s.Sys(what, unix.SYS_OPENAT, dir, s.Text(path), plan.Imm(flags|unix.O_CLOEXEC), zero)
}

func (s script) how(flags, mode int, resolve uint64) plan.At {
	b := binary.LittleEndian.AppendUint64(nil, uint64(flags|unix.O_CLOEXEC))
	b = binary.LittleEndian.AppendUint64(b, uint64(mode))
	return s.Bytes(binary.LittleEndian.AppendUint64(b, resolve))
}

const howSize = plan.Imm(24) // of struct open_how

// inside opens a path below a directory that a guest may have filled.
func (s script) inside(root plan.Arg, path string, flags int) plan.Reg {
	return s.Sys("/"+path+" of the guest", unix.SYS_OPENAT2, root, s.Text(path), s.how(flags, 0, stay), howSize)
}

func (s script) close(fds ...plan.Reg) {
	for _, fd := range fds {
		s.Ignore(unix.SYS_CLOSE, fd)
	}
}

func (s script) write(what string, fd plan.Arg, text string) {
	s.Do(what, unix.SYS_WRITE, fd, s.Text(text), plan.Imm(len(text)))
}

// set writes a value to a file of the host.
func (s script) set(path, value string) {
	fd := s.open(path, unix.O_WRONLY)
	s.write("write to "+path, fd, value)
	s.close(fd)
}

// option is one parameter of a file system.
type option struct{ key, value string }

// filesystem opens a new file system of a kind, not yet created.
func (s script) filesystem(kind string, options ...option) plan.Reg {
	fs := s.Sys("file system "+kind, unix.SYS_FSOPEN, s.Text(kind), plan.Imm(unix.FSOPEN_CLOEXEC))
	for _, o := range append(options, option{"source", "lodge"}) {
		s.Do(kind+" "+o.key, unix.SYS_FSCONFIG, fs, plan.Imm(unix.FSCONFIG_SET_STRING), s.Text(o.key), s.Text(o.value), zero)
	}
	return fs
}

// create makes the file system and returns its detached mount.
func (s script) create(kind string, fs plan.Reg, attributes int) plan.Reg {
	s.Do("create "+kind, unix.SYS_FSCONFIG, fs, plan.Imm(unix.FSCONFIG_CMD_CREATE), zero, zero, zero)
	m := s.Sys("mount "+kind, unix.SYS_FSMOUNT, fs, plan.Imm(unix.FSMOUNT_CLOEXEC), plan.Imm(attributes))
	s.close(fs)
	return m
}

// clone copies the mount at a path as a detached one.
func (s script) clone(what string, dir plan.Arg, path string, flags int) plan.Reg {
	return s.Sys(what, unix.SYS_OPEN_TREE, dir, s.Text(path), plan.Imm(unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|flags))
}

// attributes changes a detached mount: set are MOUNT_ATTR_ flags, of which
// MOUNT_ATTR_IDMAP takes the user namespace's descriptor.
func (s script) attributes(what string, mount plan.Reg, set int, userns plan.Arg) {
	attr := s.Space(32) // struct mount_attr
	s.Store64(attr, plan.Imm(set))
	if userns != nil {
		s.Store64(attr+24, userns)
	}
	s.Do(what, unix.SYS_MOUNT_SETATTR, mount, s.Text(""), empty, attr, plan.Imm(32))
}

// attach puts a detached mount on a place that is open as a descriptor.
func (s script) attach(what string, mount, place plan.Reg) {
	s.Do(what, unix.SYS_MOVE_MOUNT, mount, s.Text(""), place, s.Text(""),
		plan.Imm(unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH))
}

// stage is a number in the data by which the parent tells the child how far it
// is.
type stage struct {
	s    script
	word plan.At
}

// patience is how long parent and child wait for each other, in seconds: far
// beyond any sane start, so that a lost partner does not leave a process behind.
const patience = 60

// The two operations of futex(2) that are used, of linux/futex.h.
const (
	futexWait = 0
	futexWake = 1
)

// futexTimeout puts the timespec of patience into the data.
func (s script) futexTimeout() plan.At {
	return s.Bytes(binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, patience), 0))
}

// reach tells the child that the parent has come to n.
func (g stage) reach(n int) {
	g.s.Store32(g.word, plan.Imm(n))
	g.s.Ignore(unix.SYS_FUTEX, g.word, plan.Imm(futexWake), plan.Imm(1))
}

// await lets the child wait until the parent has come to n. Stages only rise.
func (g stage) await(n int) {
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
	g.s.JumpUnless(r, no(unix.ETIMEDOUT), again)
	g.s.Fail("wait for the host's side", r)
	g.s.Here(done)
}

// awaitCleared lets the parent wait until the child ran its program or ended,
// which is when the kernel clears the word, and fails as the child failed.
func (s script) awaitCleared(word plan.At) {
	again, done := s.Mark(), s.Mark()
	now, limit := s.New(), s.futexTimeout()
	s.Here(again)
	s.LoadTo(now, word)
	s.JumpIf(now, zero, done)
	r := s.Try(unix.SYS_FUTEX, word, plan.Imm(futexWait), now, limit)
	s.JumpUnless(r, no(unix.ETIMEDOUT), again)
	s.Fail("wait for the guest's side", r)
	s.Here(done)
	s.Check()
}

// cloneArgs is where the plan keeps what clone3 reads and writes.
type cloneArgs struct {
	args, pidfd, tid plan.At
}

// newClone prepares struct clone_args for a child that shares memory and
// descriptors with the helper and is its sibling.
func (s script) newClone(flags uint64, cgroup plan.Arg) cloneArgs {
	c := cloneArgs{args: s.Space(88), pidfd: s.Space(8), tid: s.Space(8)}
	flags |= unix.CLONE_VM | unix.CLONE_FILES | unix.CLONE_PARENT | unix.CLONE_PIDFD | unix.CLONE_CHILD_CLEARTID |
		unix.CLONE_INTO_CGROUP | unix.CLONE_CLEAR_SIGHAND
	s.Store64(c.args, plan.Imm(int64(flags)))
	s.Store64(c.args+8, c.pidfd)
	s.Store64(c.args+16, c.tid)
	s.Store64(c.args+80, cgroup)
	s.Store32(c.tid, plan.Imm(1))
	return c
}

// execute runs argv, searched for in path unless it has a slash, with env. It
// returns only by failing with what.
func (s script) execute(what string, argv, env []string, path []string) {
	vector, environ := s.Vector(argv), s.Vector(env)
	seen := s.New() // the worst that was found: a program that may not be run beats none
	s.Set(seen, no(unix.ENOENT))
	for _, file := range candidates(argv[0], path) {
		r := s.Try(unix.SYS_EXECVE, s.Text(file), vector, environ)
		next, denied := s.Mark(), s.Mark()
		s.JumpIf(r, no(unix.ENOENT), next)
		s.JumpIf(r, no(unix.ENOTDIR), next)
		s.JumpIf(r, no(unix.EACCES), denied)
		s.Fail(what, r)
		s.Here(denied)
		s.Set(seen, r)
		s.Here(next)
	}
	s.Fail(what, seen)
}
