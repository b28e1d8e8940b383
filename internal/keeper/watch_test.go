package keeper_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"lodge/internal/keeper"
)

// filtered installs a filter on this thread that asks about statfs and fstatfs,
// for what the thread starts to inherit, and returns its listener. The thread
// is of no use for anything else any more.
func filtered() (int, error) {
	runtime.LockOSThread()
	code := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 1, K: unix.SYS_STATFS},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: unix.SYS_FSTATFS},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_USER_NOTIF},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	prog := unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		unix.SECCOMP_FILTER_FLAG_NEW_LISTENER|unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

// onThread runs f on a thread that ends with it if f locks it, which the
// process' first does not.
func onThread(f func()) {
	runtime.LockOSThread()
	if unix.Gettid() != unix.Getpid() {
		f()
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		onThread(f)
	}()
	<-done
	runtime.UnlockOSThread()
}

// quota writes gauges.
type quota struct {
	t   testing.TB
	dir string
}

func newQuota(t testing.TB) quota { return quota{t, t.TempDir()} }

func (q quota) set(name string, n uint64) {
	q.t.Helper()
	if err := os.WriteFile(filepath.Join(q.dir, name), []byte(strconv.FormatUint(n, 10)+"\n"), 0o644); err != nil {
		q.t.Fatal(err)
	}
}

func (q quota) plan() *keeper.Quota {
	return &keeper.Quota{Used: []string{filepath.Join(q.dir, "used"), filepath.Join(q.dir, "reserved")}, Limit: filepath.Join(q.dir, "limit")}
}

// asks is a program that says what df says of each path that it is given a
// line with.
func asks(t testing.TB, q quota) keeper.Program {
	p := launcher(t, sh(`while read path; do stat -f -c "[%b %f %a %S]" $path; done`))
	p.Argv = append([]string{p.Argv[0], "-launcher", "-filtered"}, p.Argv[2:]...)
	p.Console, p.Quota, p.Dir = true, q.plan(), "/usr/bin"
	return p
}

// TestQuota: a program whose filter asks is shown its quota of its root, as it
// is at that moment, whatever becomes of the keeper, and the truth of the rest.
func TestQuota(t *testing.T) {
	if _, err := exec.LookPath("stat"); err != nil {
		t.Skip(err)
	}
	h, q := newHouse(t), newQuota(t)
	q.set("limit", 64<<20)
	q.set("used", 8<<20)
	q.set("reserved", 1<<20)
	held := h.start("asks", asks(t, q))
	c, err := held.Console(h.ctx())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var root, proc unix.Statfs_t
	if err := unix.Statfs("/", &root); err != nil {
		t.Fatal(err)
	}
	if err := unix.Statfs("/proc", &proc); err != nil {
		t.Fatal(err)
	}
	block := uint64(root.Bsize)
	show := func(path, want string) {
		t.Helper()
		shown := make(chan struct{})
		go func() {
			defer close(shown)
			expect(t, c, want)
		}()
		for again := true; again; {
			// Output of the moment between two keepers is in the log alone.
			if _, err := fmt.Fprintln(c, path); err != nil {
				t.Fatal(err)
			}
			select {
			case <-shown:
				again = false
			case <-time.After(20 * time.Millisecond):
			}
		}
	}
	figures := func(limit, used uint64) string {
		free := (limit - used) / block
		return fmt.Sprintf("[%d %d %d %d]", limit/block, free, min(free, root.Bavail), block)
	}
	show("/", figures(64<<20, 9<<20))
	show("/usr/../bin/sh", figures(64<<20, 9<<20)) // a link, of the same file system
	show("../bin/./sh", figures(64<<20, 9<<20))
	show("../..", figures(64<<20, 9<<20))
	show("/proc", fmt.Sprintf("[0 0 0 %d]", proc.Bsize))
	show("/no/such", "No such file")
	q.set("used", 15<<20)
	show("/usr", figures(64<<20, 16<<20))
	for round := range uint64(3) {
		h.kill()
		q.set("limit", (round+70)<<20)
		show("/", figures((round+70)<<20, 16<<20))
	}
	if err := h.Upgrade(h.ctx(), newer(t)); err != nil {
		t.Fatal(err)
	}
	q.set("limit", 100<<20)
	show("/", figures(100<<20, 16<<20))
	// A daemon that is new to all of it holds the listener as well.
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	h.open()
	h.kill()
	if held, err = h.Find("asks"); err != nil {
		t.Fatal(err)
	}
	if c, err = held.Console(h.ctx()); err != nil {
		t.Fatal(err)
	}
	show("/", figures(100<<20, 16<<20))
}

// TestWatch: another process' listener is answered like the program's own, and
// let go when nobody can ask there any more.
func TestWatch(t *testing.T) {
	h, q := newHouse(t), newQuota(t)
	q.set("limit", 32<<20)
	q.set("used", 0)
	q.set("reserved", 0)
	p := sh("exec sleep 1000")
	p.Quota = q.plan()
	held := h.start("idle", p)
	before := descriptors(t, h.pid())
	answers := make(chan uint64)
	go onThread(func() {
		fd, err := filtered()
		if err != nil {
			t.Error(err)
		} else if err := held.Watch(h.ctx(), fd); err != nil {
			t.Error(err)
		}
		var s unix.Statfs_t
		if err := unix.Statfs("/", &s); err != nil {
			t.Error(err)
		}
		answers <- s.Blocks * uint64(s.Bsize)
		h.kill()
		if err := unix.Statfs("/", &s); err != nil {
			t.Error(err)
		}
		answers <- s.Blocks * uint64(s.Bsize)
	})
	for range 2 {
		if size := <-answers; size != 32<<20 {
			t.Errorf("shows a size of %d", size)
		}
	}
	for end := time.Now().Add(20 * time.Second); descriptors(t, h.pid()) > before; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the keeper holds on to a listener that nobody asks at")
		}
	}
}

// descriptors counts the listeners that a process holds.
func descriptors(t testing.TB, pid int) int {
	t.Helper()
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, l := range links {
		if to, _ := os.Readlink(l); strings.Contains(to, "seccomp") {
			n++
		}
	}
	return n
}
