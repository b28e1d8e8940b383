package oslevel

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lodge/internal/base/cgroup"
	"lodge/internal/base/ids"
	"lodge/internal/engine"
	"lodge/internal/engine/enginetest"
	"lodge/internal/keeper"
	"lodge/internal/model"
	"lodge/internal/model/guest"
	"lodge/test/sandbox"
)

// direct keeps one program without a keeper, so that this package's own tests
// and figures are about this package alone.
type direct struct {
	pid    int
	pidfd  int
	master *os.File
	slave  *os.File // held open: an init closes it and opens it again
	done   chan struct{}
	once   sync.Once

	mu   sync.Mutex
	out  bytes.Buffer
	exit *keeper.Exit
}

func (d *direct) State() keeper.State {
	d.mu.Lock()
	defer d.mu.Unlock()
	return keeper.State{Name: "direct", Pid: d.pid, Exit: d.exit}
}
func (d *direct) Pidfd() int { return d.pidfd }
func (d *direct) Wait(ctx context.Context) (keeper.Exit, error) {
	select {
	case <-d.done:
		return *d.State().Exit, nil
	case <-ctx.Done():
		return keeper.Exit{}, ctx.Err()
	}
}
func (d *direct) Signal(_ context.Context, sig syscall.Signal) error {
	return unix.PidfdSendSignal(d.pidfd, sig, nil, 0)
}
func (d *direct) Console(context.Context) (keeper.Console, error) { return nil, os.ErrInvalid }

func (d *direct) Watch(context.Context, int) error { return os.ErrInvalid }

func (d *direct) output() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.out.String()
}

// keep runs a launcher program the way the keeper does. The guest becomes a
// child of the test.
func keep(p keeper.Program) (*direct, error) {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	raw, err := master.SyscallConn()
	if err != nil {
		return nil, err
	}
	var slave *os.File
	raw.Control(func(fd uintptr) {
		unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0)
		r, _, e := unix.Syscall(unix.SYS_IOCTL, fd, unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
		if e != 0 {
			err = e
			return
		}
		slave = os.NewFile(r, "pts")
	})
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("plan", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	input := os.NewFile(uintptr(fd), "plan")
	input.Write(p.Input)
	input.Seek(0, 0)
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(p.Argv[0], p.Argv[1:]...)
	cmd.Env, cmd.Dir = p.Env, p.Dir
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.ExtraFiles = []*os.File{input, w}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	w.Close()
	input.Close()
	var line [600]byte
	n, _ := r.Read(line[:])
	r.Close()
	cmd.Wait()
	text := strings.TrimSuffix(string(line[:n]), "\n")
	pid, err := strconv.Atoi(text)
	if err != nil {
		master.Close()
		slave.Close()
		unix.Wait4(-1, nil, unix.WNOHANG|unix.WALL, nil)
		return nil, fmt.Errorf("launcher: %s (%v)", text, cmd.ProcessState)
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, err
	}
	d := &direct{pid: pid, pidfd: pidfd, master: master, slave: slave, done: make(chan struct{})}
	go d.copy()
	go d.reap()
	return d, nil
}

func (d *direct) copy() {
	b := make([]byte, 4096)
	for {
		n, err := d.master.Read(b)
		d.mu.Lock()
		d.out.Write(b[:n])
		d.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (d *direct) reap() {
	var st unix.WaitStatus
	for {
		if _, err := unix.Wait4(d.pid, &st, unix.WALL, nil); err != unix.EINTR {
			break
		}
	}
	e := keeper.Exit{Code: st.ExitStatus(), At: time.Now()}
	if st.Signaled() {
		e.Signal = st.Signal()
	}
	d.mu.Lock()
	d.exit = &e
	d.mu.Unlock()
	close(d.done)
}

// rig is an engine with what its guests need around them.
type rig struct {
	t      testing.TB
	engine *Engine
	lower  string
	tree   *cgroup.Tree
	next   int
}

// newRig builds the helper and a root tree of a static busybox, or skips.
func newRig(t testing.TB) *rig {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes namespaces, mounts and control groups")
	}
	dir := t.TempDir()
	helper := filepath.Join(dir, "lodge-launch")
	if out, err := exec.Command("../../launch/helper/build.sh", helper).CombinedOutput(); err != nil {
		sandbox.Missing(t, fmt.Sprintf("the launch helper cannot be built here: %v: %s", err, out))
	}
	layout, err := cgroup.Detect()
	if err != nil {
		t.Skip(err)
	}
	tree, err := layout.Open("lodge-oslevel-" + ids.New())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tree.Destroy(context.Background()); err != nil {
			t.Error(err)
		}
	})
	r := &rig{t: t, tree: tree, lower: filepath.Join(dir, "lower"),
		engine: New(Options{Launch: helper, Agent: helper, Tree: tree})}
	enginetest.BusyboxTree(t, r.lower)
	return r
}

// guest makes a record and its parts; change may edit both.
func (r *rig) guest(change func(g *guest.Guest, p *engine.Parts)) (guest.Guest, engine.Parts) {
	r.t.Helper()
	r.next++
	g := guest.Guest{Meta: model.Meta{ID: ids.New(), Name: fmt.Sprintf("guest%d", r.next)}}
	g.Spec.Memory, g.Spec.Processes = 256<<20, 200
	dir := r.t.TempDir()
	p := engine.Parts{Dir: dir, Cgroup: g.ID, IDBase: 1_500_000_000 + uint32(os.Getpid()%500+r.next)*idCount, Domain: "lodge.internal"}
	p.Root = engine.Root{Lower: r.lower, Writable: filepath.Join(dir, "volume")}
	for d, mode := range map[string]os.FileMode{"volume": 0o711, "volume/upper": 0o755, "volume/work": 0o700} {
		if err := os.MkdirAll(filepath.Join(dir, d), mode); err != nil {
			r.t.Fatal(err)
		}
	}
	if change != nil {
		change(&g, &p)
	}
	if err := r.tree.Create(p.Cgroup, cgroup.Limits{CPUs: g.Spec.CPUs, Memory: g.Spec.Memory, Processes: g.Spec.Processes}); err != nil {
		r.t.Fatal(err)
	}
	return g, p
}

// run starts a guest; it ends with the test at the latest.
func (r *rig) run(change func(g *guest.Guest, p *engine.Parts)) (*direct, *Machine) {
	r.t.Helper()
	g, p := r.guest(change)
	prog, err := r.engine.Program(g, p)
	if err != nil {
		r.t.Fatal(err)
	}
	d, err := keep(prog)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(d.end)
	m, err := r.engine.Connect(context.Background(), g, p, d)
	if err != nil {
		r.t.Fatal(err)
	}
	return d, m.(*Machine)
}

// end ends the guest. It may be called again.
func (d *direct) end() {
	d.once.Do(func() {
		unix.PidfdSendSignal(d.pidfd, unix.SIGKILL, nil, 0)
		<-d.done
		unix.Close(d.pidfd)
		d.slave.Close()
		d.master.Close()
	})
}

// script runs a shell command as a guest's only program and returns its
// console's output.
func (r *rig) script(command string, change func(g *guest.Guest, p *engine.Parts)) string {
	r.t.Helper()
	d, _ := r.run(func(g *guest.Guest, p *engine.Parts) {
		g.Spec.Command = []string{"sh", "-c", command + "; echo; echo END; exec sleep 1000"}
		if change != nil {
			change(g, p)
		}
	})
	return d.until(r.t, "END\r\n")
}

// until waits for a text on the console.
func (d *direct) until(t testing.TB, text string) string {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		if out := d.output(); strings.Contains(out, text) {
			return out
		}
	}
	t.Fatalf("the console never said %q but %q", text, d.output())
	return ""
}
