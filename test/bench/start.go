package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"lodge/internal/base/cgroup"
	"lodge/internal/base/ids"
	"lodge/internal/engine"
	"lodge/internal/engine/oslevel"
	"lodge/internal/keeper"
	"lodge/internal/model"
	"lodge/internal/model/guest"
)

// Every guest of this part has its own range of ids, and begins by making a
// file in its root: what is timed is from the order to start it, its volume and
// control groups included, until that file is there.
const (
	firstID   = 10_000_000
	idCount   = 65_536
	readyFile = "ready"
	memory512 = 512 << 20
)

func firstProgram() []string {
	return []string{"/bin/sh", "-c", "echo r >/" + readyFile + "; exec sleep 1000"}
}

// runtime makes guests and removes them.
type guestRuntime interface {
	// start makes the guest called id on the volume in dir, whose "upper" is
	// there; it may return before the guest runs.
	start(ctx context.Context, id, dir string, idBase uint32) error
	// stop ends it and takes everything of it but its volume away.
	stop(ctx context.Context, id, dir string) error
}

// starts measures how long a guest takes to its first instruction.
func (b *bench) starts(ctx context.Context) error {
	work := filepath.Join(b.dir, "start")
	if err := os.MkdirAll(work, 0o711); err != nil {
		return err
	}
	// Memory, so that no journal of somebody's disk is in the figures.
	if err := unix.Mount("bench", work, "tmpfs", 0, "mode=711"); err != nil {
		return fmt.Errorf("mounting a tmpfs: %w", err)
	}
	b.later(func() { unix.Unmount(work, unix.MNT_DETACH) })
	image := filepath.Join(work, "image")
	if err := busyboxTree(ctx, image); err != nil {
		return err
	}
	tree, err := b.openTree()
	if err != nil {
		return err
	}
	f, err := b.newFloor(image, work, tree)
	if err != nil {
		return err
	}
	l, err := b.newLodge(ctx, image, work, tree)
	if err != nil {
		return err
	}
	peers := b.startPeers(image, work)
	var floorStart, floorStop Samples
	figures := map[string]*startFigures{"lodge": {}}
	for i := range b.rounds + 2 {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		// The first rounds warm caches up and do not count.
		if err := f.round(&floorStart, &floorStop, i >= 2); err != nil {
			return err
		}
		if err := figures["lodge"].round(ctx, l, work, "lodge", i, i >= 2); err != nil {
			return err
		}
		for _, p := range peers {
			if figures[p.name] == nil {
				figures[p.name] = &startFigures{}
			}
			if err := p.inside(func() error { return figures[p.name].round(ctx, p.runtime, work, p.name, i, i >= 2) }); err != nil {
				figures[p.name].failed++
				figures[p.name].why = err
			}
		}
	}
	b.reportStarts(floorStart, floorStop, figures, l, peers)
	return nil
}

func (b *bench) reportStarts(floorStart, floorStop Samples, figures map[string]*startFigures, l *lodge, peers []*peer) {
	const what, stop = "to first instruction", "kill until nothing is left"
	base := timed("start", what, "floor", floorStart)
	base.Note = "C, no hardening, no record, no console"
	baseStop := timed("start", stop, "floor", floorStop)
	own := timed("start", what, "lodge", figures["lodge"].start).beside(base).withinRatio(1.5)
	own.Note = "engine and keeper, full hardening, console"
	b.report.add(base, own)
	for _, p := range peers {
		row := timed("start", what, p.name, figures[p.name].start).beside(base)
		row.Failed, row.Note = figures[p.name].failed, p.note
		b.report.add(row)
		if figures[p.name].failed > 0 {
			b.say("%s: %v", p.name, figures[p.name].why)
		}
	}
	b.report.add(baseStop, timed("start", stop, "lodge", figures["lodge"].stop).beside(baseStop))
	for _, p := range peers {
		b.report.add(timed("start", stop, p.name, figures[p.name].stop).beside(baseStop))
	}
	for _, part := range []struct {
		name string
		s    Samples
	}{{"volume and control groups", l.prepare}, {"engine: Program", l.program}, {"keeper: Start", l.keep}} {
		b.report.add(timed("start", "of which "+part.name, "lodge", part.s))
	}
}

// startFigures is what was measured of one runtime.
type startFigures struct {
	start, stop Samples
	failed      int
	why         error
}

// round makes one guest, waits for its first write and removes it.
func (s *startFigures) round(ctx context.Context, r guestRuntime, work, name string, n int, counts bool) (err error) {
	id := fmt.Sprintf("%s-%d", name, n)
	dir := filepath.Join(work, id)
	upper := filepath.Join(dir, "upper")
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	idBase := uint32(firstID + n*idCount)
	begun := time.Now()
	for _, d := range []struct {
		path string
		mode os.FileMode
	}{{dir, 0o711}, {filepath.Join(dir, "work"), 0o700}, {upper, 0o755}} {
		if err := os.Mkdir(d.path, d.mode); err != nil {
			return err
		}
	}
	ready, err := watch(upper)
	if err != nil {
		return err
	}
	defer unix.Close(ready)
	if err := r.start(ctx, id, dir, idBase); err != nil {
		return errors.Join(err, r.stop(ctx, id, dir))
	}
	if err := await(ready, begun.Add(10*time.Second)); err != nil {
		return errors.Join(err, r.stop(ctx, id, dir))
	}
	took := time.Since(begun)
	time.Sleep(20 * time.Millisecond) // what started it comes to rest
	killed := time.Now()
	if err := r.stop(ctx, id, dir); err != nil {
		return err
	}
	if counts {
		s.start.add(took)
		s.stop.add(time.Since(killed))
	}
	return nil
}

// watch returns a descriptor that can be read once a file is made in dir.
func watch(dir string) (int, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_CREATE); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func await(fd int, deadline time.Time) error {
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return errors.New("the guest did not write within ten seconds")
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left/time.Millisecond)+1)
		if n == 1 {
			return nil
		}
		if err != nil && err != unix.EINTR {
			return err
		}
	}
}

// busyboxTree makes the smallest tree that a guest can live in.
func busyboxTree(ctx context.Context, dir string) error {
	for _, d := range []string{"bin", "dev", "etc", "proc", "run", "sys", "tmp", "root"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	static, err := exec.LookPath("busybox")
	if err != nil {
		return err
	}
	if _, err := command(ctx, nil, "cp", static, filepath.Join(dir, "bin/busybox")); err != nil {
		return err
	}
	for _, name := range []string{"sh", "sleep", "true"} {
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", name)); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(dir, "etc/passwd"), []byte("root:x:0:0:root:/root:/bin/sh\n"), 0o644)
}

func (b *bench) openTree() (*cgroup.Tree, error) {
	layout, err := cgroup.Detect()
	if err != nil {
		return nil, err
	}
	tree, err := layout.Open(b.tag)
	if err != nil {
		return nil, err
	}
	b.later(func() { tree.Destroy(context.Background()) })
	return tree, nil
}

// floor is the C program, which times itself: nothing between it and the kernel
// is in its figures.
type floor struct {
	in  io.WriteCloser
	out *bufio.Reader
}

func (b *bench) newFloor(image, work string, tree *cgroup.Tree) (*floor, error) {
	join := tree.Join("x")
	argv := []string{image, work, fmt.Sprint(firstID + 20_000*idCount), "v2:" + filepath.Dir(join.Dir)}
	for _, tasks := range join.Tasks {
		argv = append(argv, filepath.Dir(filepath.Dir(tasks)))
	}
	cmd := exec.Command(filepath.Join(b.parts, "floor"), argv...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	b.later(func() { in.Close(); cmd.Wait() })
	return &floor{in, bufio.NewReader(out)}, nil
}

func (f *floor) round(start, stop *Samples, counts bool) error {
	if _, err := io.WriteString(f.in, "\n"); err != nil {
		return err
	}
	line, err := f.out.ReadString('\n')
	if err != nil {
		return fmt.Errorf("floor: %w", err)
	}
	var ready, gone time.Duration
	if _, err := fmt.Sscan(line, &ready, &gone); err != nil {
		return fmt.Errorf("floor: %q: %w", strings.TrimSpace(line), err)
	}
	if counts {
		start.add(ready)
		stop.add(gone)
	}
	return nil
}

// lodge is Lodge's engine and keeper, without store, network and API.
type lodge struct {
	tree    *cgroup.Tree
	engine  *oslevel.Engine
	keepers *keeper.Client
	image   string

	prepare, program, keep Samples
}

func (b *bench) newLodge(ctx context.Context, image, work string, tree *cgroup.Tree) (*lodge, error) {
	parts, err := filepath.Abs(b.parts)
	if err != nil {
		return nil, err
	}
	quiet := slog.New(slog.DiscardHandler)
	k, err := keeper.Open(ctx, keeper.Options{Dir: filepath.Join(work, "keeper"), Binary: filepath.Join(parts, "lodge-keeper"), Log: quiet})
	if err != nil {
		return nil, err
	}
	b.later(func() { k.Shutdown(context.Background()); k.Close() })
	helper := filepath.Join(parts, "lodge-launch")
	return &lodge{tree: tree, keepers: k, image: image, engine: oslevel.New(oslevel.Options{Launch: helper, Agent: helper, Tree: tree, Log: quiet})}, nil
}

func (l *lodge) start(ctx context.Context, id, dir string, idBase uint32) error {
	begun := time.Now()
	g := guest.Guest{Meta: model.Meta{ID: ids.New(), Name: id}, Spec: guest.Spec{Model: guest.OS, CPUs: 1, Memory: memory512, Processes: 1000, Command: firstProgram()}}
	own := filepath.Join(dir, "own")
	if err := os.Mkdir(own, 0o700); err != nil {
		return err
	}
	if err := l.tree.Create(id, engine.Limits(g.Spec, "")); err != nil {
		return err
	}
	prepared := time.Now()
	p, err := l.engine.Program(g, engine.Parts{
		Dir: own, Root: engine.Root{Lower: l.image, Writable: dir}, Cgroup: id, IDBase: idBase,
	})
	if err != nil {
		return err
	}
	made := time.Now()
	if _, err := l.keepers.Start(ctx, id, p); err != nil {
		return err
	}
	l.keep.add(time.Since(made))
	l.program.add(made.Sub(prepared))
	l.prepare.add(prepared.Sub(begun))
	return nil
}

func (l *lodge) stop(ctx context.Context, id, _ string) error {
	held, err := l.keepers.Find(id)
	if err != nil {
		return errors.Join(err, l.tree.Remove(ctx, id))
	}
	if err := held.Signal(ctx, unix.SIGKILL); err != nil {
		return err
	}
	if _, err := held.Wait(ctx); err != nil {
		return err
	}
	if err := l.keepers.Forget(ctx, id); err != nil {
		return err
	}
	return l.tree.Remove(ctx, id)
}
