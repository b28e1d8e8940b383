package keepd

import (
	"bytes"
	"errors"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"lodge/internal/keeper"
)

// Requests of linux/seccomp.h that x/sys does not name.
const (
	notifyIDValid  = 0x40082102 // _IOW('!', 2, __u64)
	notifySetFlags = 0x40082104 // _IOW('!', 4, __u64)
)

// question is struct seccomp_notif: a system call that waits for us. The room
// behind it is for kernels that tell more.
type question struct {
	id         uint64
	tid, flags uint32
	number     int32
	arch       uint32
	ip         uint64
	args       [6]uint64
	_          [176]byte
}

// response is struct seccomp_notif_resp.
type response struct {
	id     uint64
	result int64
	errno  int32
	flags  uint32
}

func ioctl(fd int, request uint, arg unsafe.Pointer) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), uintptr(arg))
		if errno == 0 {
			return nil
		}
		if errno != unix.EINTR {
			return errno
		}
	}
}

// reply takes one question and answers it. Whatever we cannot answer the kernel
// does. Callers hold turn.
func (w *watch) reply() error {
	if err := w.asked(); err != nil {
		return err
	}
	var q question
	err := ioctl(w.fd, unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&q))
	if errors.Is(err, unix.ENOENT) { // who asked was killed meanwhile
		return nil
	}
	if err != nil {
		return err
	}
	if w.stale {
		w.stale = false
		w.release(q.id)
	}
	r := response{id: q.id}
	if !w.answer(&q) {
		r.flags = unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE
	}
	_ = ioctl(w.fd, unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&r)) // fails only when nobody waits any more
	return nil
}

// staleIDs is how far back release looks: only questions whose asker was
// killed lie between one that was lost and the first that we take.
const staleIDs = 64

// release lets those go on who asked a keeper that died before it answered. The
// kernel does not tell of them again, but numbers questions in their order.
func (w *watch) release(first uint64) {
	for i := uint64(1); i <= staleIDs; i++ {
		r := response{id: first - i, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
		_ = ioctl(w.fd, unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&r)) // no such question is the rule
	}
}

// answer carries out the call with the quota's figures, if it is about the
// program's root file system.
//
// Nothing here waits for the guest: paths are walked on its root file system,
// which is the host's; beyond that only as far as the kernel has them in
// memory, so that a file system that the guest itself serves is never asked.
func (w *watch) answer(q *question) bool {
	if w.quota == nil || w.root == 0 {
		return false
	}
	dir, err := unix.Open("/proc/"+strconv.FormatUint(uint64(q.tid), 10), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(dir)
	// From here on dir is of who asked, or dead: the number was theirs when it
	// was opened.
	if ioctl(w.fd, notifyIDValid, unsafe.Pointer(&q.id)) != nil {
		return false
	}
	a := asker{dir: dir, root: w.root, owner: w.quota.Owner}
	fd, err := a.subject(q)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	var s unix.Statfs_t
	if err := unix.Fstatfs(fd, &s); err != nil {
		return false
	}
	used, limit, err := gauge(w.quota)
	if err != nil || !show(&s, used, limit) {
		return false
	}
	return a.write(q.args[1], unsafe.Slice((*byte)(unsafe.Pointer(&s)), unsafe.Sizeof(s))) == nil
}

// show puts a quota's figures, in bytes, into s, which are those of the whole
// file system; without a quota it reports false. Available is never more than
// the whole has, free is what the quota leaves, so that size less free is what
// is used.
func show(s *unix.Statfs_t, used, limit uint64) bool {
	block := uint64(s.Bsize)
	if limit == 0 || limit > noLimit || block == 0 || s.Bsize < 0 {
		return false
	}
	s.Blocks = limit / block
	s.Bfree = (limit - min(used, limit)) / block
	s.Bavail = min(s.Bfree, s.Bavail)
	return true
}

// noLimit is the largest quota that is meant: kernels say "none" by all ones.
const noLimit = 1 << 62

// gauge reads what is used and what may be.
func gauge(q *keeper.Quota) (used, limit uint64, err error) {
	if limit, err = readNumber(q.Limit); err != nil {
		return 0, 0, err
	}
	for _, path := range q.Used {
		n, err := readNumber(path)
		if err != nil {
			return 0, 0, err
		}
		if used+n < used {
			return 0, 0, errors.New("keeper: counts are out of range")
		}
		used += n
	}
	return used, limit, nil
}

func readNumber(path string) (uint64, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	var b [32]byte
	n, err := unix.Read(fd, b[:])
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(string(bytes.TrimSpace(b[:n])), 10, 64)
}

// asker is a thread whose system call waits.
type asker struct {
	dir   int // /proc/TID
	root  uint64
	owner uint32
}

var (
	errElsewhere = errors.New("keeper: not on the root file system")
	errPath      = errors.New("keeper: not a path")
)

// subject opens, as a mere path, the file that the call is about. It fails
// unless that is on the program's root file system.
func (a asker) subject(q *question) (int, error) {
	switch q.number {
	case unix.SYS_FSTATFS:
		return a.descriptor(int32(q.args[0]))
	case unix.SYS_STATFS:
		path, err := a.path(q.args[0])
		if err != nil {
			return -1, err
		}
		c, err := a.credentials()
		if err != nil {
			return -1, err
		}
		fd, err := -1, errElsewhere
		c.act(c.uid == a.owner && c.searches, func() { fd, err = a.walk(path) })
		return fd, err
	}
	return -1, errElsewhere
}

const (
	justPath = unix.O_PATH | unix.O_CLOEXEC
	// resolveCached is RESOLVE_CACHED of linux/openat2.h, which x/sys does not
	// name: only what needs no reading and no asking.
	resolveCached = 0x20
)

// descriptor opens what the asker has open under a number.
func (a asker) descriptor(number int32) (int, error) {
	root, err := unix.Openat(a.dir, "root", justPath, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(root)
	fd, err := unix.Openat(a.dir, "fd/"+strconv.Itoa(int(number)), justPath, 0)
	if err != nil {
		return -1, err
	}
	r, err := look(root)
	if err == nil {
		var s seen
		s, err = look(fd)
		// Files of an overlay show the device numbers of its layers, so those
		// are known by their mount.
		if err == nil && !(s.dir && s.dev == a.root) && !(r.dev == a.root && s.mount == r.mount) {
			err = errElsewhere
		}
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// walk opens a path of the asker's.
func (a asker) walk(path string) (int, error) {
	if path[0] == '/' {
		return a.walkFrom("root", path, unix.RESOLVE_IN_ROOT)
	}
	fd, err := a.walkFrom("cwd", path, unix.RESOLVE_BENEATH)
	if !errors.Is(err, unix.EXDEV) && !errors.Is(err, unix.EAGAIN) {
		return fd, err
	}
	// It may leave the working directory, which only an absolute path can.
	if path, err = a.absolute(path); err != nil {
		return -1, err
	}
	return a.walkFrom("root", path, unix.RESOLVE_IN_ROOT)
}

// absolute puts the working directory before a path. The kernel names it as
// the asker's mount namespace has it, so it fails for askers in a root of their
// own unless that leads to the same place, and for those on another mount.
func (a asker) absolute(path string) (string, error) {
	var b [unix.PathMax]byte
	n, err := unix.Readlinkat(a.dir, "cwd", b[:])
	if err != nil {
		return "", err
	}
	name := string(b[:n])
	root, err := unix.Openat(a.dir, "root", justPath, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(root)
	if r, err := look(root); err != nil || r.dev != a.root {
		return "", errElsewhere
	}
	named, err := unix.Openat2(root, name, &unix.OpenHow{Flags: justPath, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_XDEV})
	if err != nil {
		return "", err
	}
	defer unix.Close(named)
	cwd, err := unix.Openat(a.dir, "cwd", justPath, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(cwd)
	is, err := look(cwd)
	if err != nil {
		return "", err
	}
	if found, err := look(named); err != nil || found != is {
		return "", errElsewhere
	}
	return name + "/" + path, nil
}

func (a asker) walkFrom(from, path string, scope uint64) (int, error) {
	base, err := unix.Openat(a.dir, from, justPath|unix.O_DIRECTORY, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(base)
	s, err := look(base)
	if err != nil {
		return -1, err
	}
	if s.dev == a.root {
		fd, err := unix.Openat2(base, path, &unix.OpenHow{Flags: justPath, Resolve: scope | unix.RESOLVE_NO_XDEV})
		if !errors.Is(err, unix.EXDEV) {
			return fd, err
		}
	}
	// Another mount, which may show the same file system.
	fd, err := unix.Openat2(base, path, &unix.OpenHow{Flags: justPath, Resolve: scope | resolveCached})
	if err != nil {
		return -1, err
	}
	if s, err = look(fd); err == nil && (!s.dir || s.dev != a.root) {
		err = errElsewhere
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// seen is what look finds.
type seen struct {
	dev, mount, inode uint64
	dir               bool
}

// look tells what is known of an open path without asking whoever serves it.
func look(fd int) (seen, error) {
	var s unix.Statx_t
	err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE|unix.STATX_INO|unix.STATX_MNT_ID, &s)
	return seen{unix.Mkdev(s.Dev_major, s.Dev_minor), s.Mnt_id, s.Ino, s.Mode&unix.S_IFMT == unix.S_IFDIR}, err
}

// rootDevice returns the device number of a process' root file system, or 0.
func rootDevice(pid int) uint64 {
	fd, err := unix.Open("/proc/"+strconv.Itoa(pid)+"/root", justPath, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	s, err := look(fd)
	if err != nil {
		return 0
	}
	return s.dev
}

// path reads a path out of the asker's memory.
func (a asker) path(address uint64) (string, error) {
	fd, err := unix.Openat(a.dir, "mem", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	return readPath(func(b []byte, at uint64) (int, error) { return unix.Pread(fd, b, int64(at)) }, address)
}

// readPath reads a text and its end from memory, of which nothing is known: no
// more than a path may have, and little where little is enough.
func readPath(read func(b []byte, at uint64) (int, error), address uint64) (string, error) {
	if address == 0 || address >= 1<<63-unix.PathMax {
		return "", errPath
	}
	var b [unix.PathMax]byte
	for n, want := 0, 256; n < len(b); want = len(b) {
		got, err := read(b[n:want], address+uint64(n))
		if err != nil || got <= 0 || got > want-n {
			return "", errPath
		}
		if end := bytes.IndexByte(b[n:n+got], 0); end >= 0 {
			if n+end == 0 {
				return "", errPath
			}
			return string(b[:n+end]), nil
		}
		n += got
	}
	return "", errPath
}

// write puts an answer into the asker's memory.
func (a asker) write(address uint64, b []byte) error {
	if address == 0 || address >= 1<<62 {
		return errPath
	}
	fd, err := unix.Openat(a.dir, "mem", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if n, err := unix.Pwrite(fd, b, int64(address)); err != nil || n != len(b) {
		return errPath
	}
	return nil
}

// credentials are what a thread may see files by.
type credentials struct {
	uid, gid uint32
	groups   []uint32
	searches bool // it has a capability to look everywhere
}

func (a asker) credentials() (credentials, error) {
	fd, err := unix.Openat(a.dir, "status", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return credentials{}, err
	}
	defer unix.Close(fd)
	b := make([]byte, 16<<10)
	n := 0
	for n < len(b) {
		got, err := unix.Read(fd, b[n:])
		if err != nil {
			return credentials{}, err
		}
		if got == 0 {
			return parseCredentials(string(b[:n]))
		}
		n += got
	}
	return credentials{}, errors.New("keeper: too many groups")
}

// parseCredentials reads proc_pid_status(5).
func parseCredentials(text string) (c credentials, err error) {
	found := map[string]bool{}
	for line := range strings.Lines(text) {
		key, rest, _ := strings.Cut(line, ":")
		f := strings.Fields(rest)
		switch {
		case (key == "Uid" || key == "Gid") && len(f) == 4:
			id, err := strconv.ParseUint(f[3], 10, 32) // real, effective, saved, file system
			if err != nil {
				return c, err
			}
			if key == "Uid" {
				c.uid = uint32(id)
			} else {
				c.gid = uint32(id)
			}
			found[key] = true
		case key == "Groups":
			for _, g := range f {
				id, err := strconv.ParseUint(g, 10, 32)
				if err != nil {
					return c, err
				}
				c.groups = append(c.groups, uint32(id))
			}
			found[key] = true
		case key == "CapEff" && len(f) == 1:
			caps, err := strconv.ParseUint(f[0], 16, 64)
			if err != nil {
				return c, err
			}
			c.searches = caps&(1<<unix.CAP_DAC_READ_SEARCH|1<<unix.CAP_DAC_OVERRIDE) != 0
			found[key] = true
		}
	}
	if len(found) != 4 {
		return c, errors.New("keeper: not a process status")
	}
	return c, nil
}

// act runs f with what c may see, on a thread of its own; privileged, with what
// we may. It does not run f when the thread cannot be changed so, and ends the
// thread when it cannot be changed back.
func (c credentials) act(privileged bool, f func()) {
	if privileged {
		f()
		return
	}
	ours, err := unix.Getgroups()
	if err != nil {
		return
	}
	old := make([]uint32, len(ours))
	for i, g := range ours {
		old[i] = uint32(g)
	}
	runtime.LockOSThread()
	if setGroups(c.groups) && setID(unix.SYS_SETFSGID, c.gid) && setID(unix.SYS_SETFSUID, c.uid) {
		f()
	}
	back := setID(unix.SYS_SETFSUID, 0)
	back = setID(unix.SYS_SETFSGID, 0) && back
	if setGroups(old) && back {
		runtime.UnlockOSThread()
	}
}

// setGroups sets the groups of this thread alone, unlike x/sys.
func setGroups(groups []uint32) bool {
	_, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(unsafe.SliceData(groups))), 0)
	return errno == 0
}

// setID sets a file system id of this thread alone. The call tells only what
// it was before, so it is asked again.
func setID(call uintptr, id uint32) bool {
	_, _, _ = unix.RawSyscall(call, uintptr(id), 0, 0)
	now, _, _ := unix.RawSyscall(call, ^uintptr(0), 0, 0)
	return uint32(now) == id
}
