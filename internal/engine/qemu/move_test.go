package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"lodge/internal/base/errs"
	"lodge/internal/engine"
	"lodge/internal/engine/enginetest"
	"lodge/internal/keeper"
	"lodge/internal/model/guest"
)

// mover is a guest that moves from QEMU to QEMU.
type mover struct {
	r *rig
	k keeper.Keepers
	*kept
	all  testing.TB // outlives parts of the test
	runs int
	hash string // of what lies in its memory
	disk string // and on its disk
}

// counts is a program that writes one number after the other to the guest's
// disk, and dirties writes to its memory as fast as it can.
const (
	counts  = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done >/root/count"
	dirties = "while :; do cat /dev/shm/known >/dev/shm/dirt; done"
)

// newMover starts a guest with content in its memory and on its disk that is
// known, and programs that change both.
func newMover(t testing.TB, r *rig) *mover {
	t.Helper()
	k, _ := enginetest.Keeper(t)
	g, p := r.guest(t, guest.Spec{Memory: 192 << 20})
	x := &mover{r: r, k: k, all: t, kept: r.start(t, k, g, p)}
	x.ready()
	x.shell("mkdir -p /dev/shm; mountpoint -q /dev/shm || mount -t tmpfs tmpfs /dev/shm; dd if=/dev/urandom of=/dev/shm/known bs=1M count=8; dd if=/dev/urandom of=/root/known bs=1M count=8; sync")
	x.hash, x.disk = x.shell("md5sum </dev/shm/known"), x.shell("md5sum </root/known")
	if x.hash == "" || x.disk == "" || x.hash == x.disk {
		t.Fatalf("%q, %q", x.hash, x.disk)
	}
	x.shell("(" + counts + ") </dev/null >/dev/null 2>&1 &")
	x.shell("(" + dirties + ") </dev/null >/dev/null 2>&1 &")
	return x
}

// target starts a QEMU that waits for the guest. With a volume, its disk is to
// be filled; else it shares it.
func (x *mover) target(t testing.TB, volume string, postCopy bool) *kept {
	t.Helper()
	about, err := x.m.Describe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	x.runs++
	p := x.parts
	p.Memory, p.Arriving = "", &engine.Arriving{Machine: about.Machine, PostCopy: postCopy}
	p.Dir, p.Cgroup = x.all.TempDir(), fmt.Sprintf("%s-%d", x.g.ID, x.runs)
	if volume != "" {
		p.Root.Volume, p.Root.Writable = volume, filepath.Dir(volume)
	}
	if err := x.r.tree.Create(p.Cgroup, overhead().Limits(x.g.Spec, "")); err != nil {
		t.Fatal(err)
	}
	program, err := x.r.engine.Program(x.g, p)
	if err != nil {
		t.Fatal(err)
	}
	held, err := x.k.Start(t.Context(), p.Cgroup, program)
	if err != nil {
		t.Fatal(err)
	}
	y := &kept{t: x.all, g: x.g, parts: p, held: held}
	x.all.Cleanup(func() { y.t = x.all; y.end() })
	m, err := x.r.engine.Connect(t.Context(), x.g, p, held)
	if err != nil {
		t.Fatal(err)
	}
	y.m = m.(*Machine)
	return y
}

// emptyVolume is a file for a copy of the guest's disk.
func (x *mover) emptyVolume(t testing.TB) string {
	t.Helper()
	info, err := os.Stat(x.parts.Root.Volume)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(x.all.TempDir(), "root.ext4")
	write(t, path, nil)
	if err := os.Truncate(path, info.Size()); err != nil {
		t.Fatal(err)
	}
	return path
}

// count is how far the guest has counted.
func (x *mover) count(t testing.TB) int {
	t.Helper()
	n, err := strconv.Atoi(x.shell("wc -l </root/count"))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// whole checks that nothing of the guest was lost, and that it goes on.
func (x *mover) whole(t testing.TB) {
	t.Helper()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("its end: %+v; its console: %s", x.held.State().Exit, lastLines(x.kept))
		}
	})
	x.kept.t = t
	was := x.count(t)
	for end := time.Now().Add(time.Minute); x.count(t) == was; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the guest does not count on")
		}
	}
	if is := x.shell("md5sum </dev/shm/known"); is != x.hash {
		t.Errorf("its memory was %s and is %s", x.hash, is)
	}
	if is := x.shell("sync; echo 3 >/proc/sys/vm/drop_caches; md5sum </root/known"); is != x.disk {
		t.Errorf("its disk was %s and is %s", x.disk, is)
	}
	if out := x.shell("head -n $(wc -l </root/count) /root/count | awk '$1 != NR {print NR, $1; exit}'"); out != "" {
		t.Errorf("it counted otherwise: %s", out)
	}
	if p, err := x.m.Probe(t.Context()); err != nil || p.Paused || !p.Ready || p.Trouble != "" {
		t.Errorf("%+v, %v", p, err)
	}
}

// move has the guest go on in another QEMU.
func (x *mover) move(t testing.TB, volume string, how engine.Moving) engine.Moved {
	t.Helper()
	y := x.target(t, volume, how.PostCopy)
	moved, err := engine.Move(t.Context(), x.m, y.m, how, t.TempDir())
	if err != nil {
		t.Fatalf("%v; the receiver's end: %+v, %s", err, y.held.State().Exit, lastLines(y))
	}
	select {
	case <-x.m.link.life.Done():
	case <-time.After(time.Minute):
		t.Error("the QEMU that the guest has left does not end")
	}
	t.Logf("stood still for %v (%v as QEMU counts), %v in all, of which %v for the disk; %d MB of memory in %d passes (%d kB of it later), %d MB of disk",
		moved.Paused, moved.Downtime, moved.Total.Round(time.Millisecond), moved.Mirrored.Round(time.Millisecond), moved.Memory>>20, moved.Pass, moved.After>>10, moved.Disk>>20)
	x.kept = y
	return moved
}

func lastLines(y *kept) string {
	b, _ := os.ReadFile(engine.ConsoleLog(y.parts.Dir))
	return string(b[max(0, len(b)-500):])
}

// TestMove moves one guest in all ways, some of which fail, and looks after each
// whether it is whole.
func TestMove(t *testing.T) {
	r := newRig(t)
	x := newMover(t, r)
	x.whole(t)
	t.Run("shared disk", func(t *testing.T) {
		moved := x.move(t, "", engine.Moving{})
		if moved.Paused <= 0 || moved.Memory == 0 || moved.Disk != 0 {
			t.Errorf("%+v", moved)
		}
		x.whole(t)
	})
	t.Run("mirrored disk", func(t *testing.T) {
		old := x.parts.Root.Volume
		moved := x.move(t, x.emptyVolume(t), engine.Moving{Mirror: []string{volumeSerial}})
		if moved.Paused <= 0 || moved.Disk == 0 || moved.DiskLeft != 0 {
			t.Errorf("%+v", moved)
		}
		if err := os.Remove(old); err != nil { // nothing is left in the old place that is needed
			t.Fatal(err)
		}
		x.whole(t)
	})
	t.Run("post-copy", func(t *testing.T) {
		moved := x.move(t, "", engine.Moving{PostCopy: true})
		if moved.Paused <= 0 || moved.After == 0 {
			t.Errorf("%+v", moved)
		}
		x.whole(t)
	})
	t.Run("paused", func(t *testing.T) {
		if err := x.m.Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		x.move(t, "", engine.Moving{})
		if p, err := x.m.Probe(t.Context()); err != nil || !p.Paused {
			t.Errorf("%+v, %v", p, err)
		}
		if err := x.m.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		x.whole(t)
	})
	t.Run("cancelled", func(t *testing.T) { x.cancelled(t) })
	t.Run("cancelled while the disk is copied", func(t *testing.T) {
		x.fails(t, x.emptyVolume(t), engine.Moving{Mirror: []string{volumeSerial}, Bandwidth: 4 << 20}, context.Canceled, func(p engine.Progress, _ *kept, cancel func()) {
			if p.Disk > 0 {
				cancel()
			}
		})
	})
	t.Run("the other end is killed", func(t *testing.T) {
		x.fails(t, "", engine.Moving{Bandwidth: 8 << 20}, nil, func(p engine.Progress, y *kept, _ func()) {
			if p.Memory > 4<<20 {
				y.m.Kill(t.Context())
			}
		})
	})
	t.Run("the other end is killed while the disk is copied", func(t *testing.T) {
		x.fails(t, x.emptyVolume(t), engine.Moving{Mirror: []string{volumeSerial}, Bandwidth: 4 << 20}, nil, func(p engine.Progress, y *kept, _ func()) {
			if p.Disk > 0 {
				y.m.Kill(t.Context())
			}
		})
	})
	t.Run("the disk's copy has another size", func(t *testing.T) {
		volume := x.emptyVolume(t)
		if err := os.Truncate(volume, 64<<20); err != nil {
			t.Fatal(err)
		}
		x.fails(t, volume, engine.Moving{Mirror: []string{volumeSerial}}, nil, nil)
	})
	t.Run("no such disk", func(t *testing.T) {
		x.fails(t, "", engine.Moving{Mirror: []string{"nothing"}}, nil, nil) // the receiver says so
	})
	t.Run("lost on landing", func(t *testing.T) { x.lostOnLanding(t) })
	t.Run("after all that", func(t *testing.T) {
		x.move(t, x.emptyVolume(t), engine.Moving{Mirror: []string{volumeSerial}, PostCopy: true})
		x.whole(t)
	})
	t.Run("lost after it was split", func(t *testing.T) { x.split(t) })
}

// fails has a move fail, as is made happen once it makes progress, and checks
// that the guest goes on where it was. like is the error, or nil for any.
func (x *mover) fails(t *testing.T, volume string, how engine.Moving, like error, happens func(p engine.Progress, y *kept, cancel func())) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	y := x.target(t, volume, how.PostCopy)
	if happens != nil {
		how.Progress = func(p engine.Progress) { happens(p, y, cancel) }
	}
	moved, err := engine.Move(ctx, x.m, y.m, how, t.TempDir())
	t.Logf("%v: %v", moved.Total.Round(time.Millisecond), err)
	if err == nil || like != nil && !errors.Is(err, like) {
		t.Fatalf("it is moved, or fails otherwise: %v", err)
	}
	select {
	case <-y.m.link.life.Done():
	case <-time.After(time.Minute):
		t.Error("the QEMU that the guest did not go to does not end")
	}
	x.whole(t)
}

// cancelled gives up a move; meanwhile nobody else stops the guest.
func (x *mover) cancelled(t *testing.T) {
	x.fails(t, "", engine.Moving{Bandwidth: 4 << 20}, context.Canceled, func(p engine.Progress, _ *kept, cancel func()) {
		if p.Memory == 0 {
			return
		}
		if err := x.m.Pause(t.Context()); !errs.Is(err, errs.Busy) {
			t.Errorf("pausing what moves: %v", err)
		}
		if err := x.m.Resume(t.Context()); !errs.Is(err, errs.Busy) {
			t.Errorf("resuming what moves: %v", err)
		}
		cancel()
	})
}

// unlucky is a receiver whose guest never runs though all of it arrived.
type unlucky struct{ engine.Target }

type badLanding struct{ engine.Landing }

func (u unlucky) Receive(ctx context.Context, a engine.Arrival) (engine.Landing, error) {
	l, err := u.Target.Receive(ctx, a)
	return badLanding{l}, err
}

func (badLanding) Wait(context.Context) (time.Time, error) {
	return time.Time{}, errors.New("it never ran")
}

// lostOnLanding: a guest whose new place ends after all was sent goes on in the
// old one. Its disk there is as it was when the guest stood still.
func (x *mover) lostOnLanding(t *testing.T) {
	y := x.target(t, x.emptyVolume(t), false)
	_, err := engine.Move(t.Context(), x.m, unlucky{y.m}, engine.Moving{Mirror: []string{volumeSerial}}, t.TempDir())
	if err == nil {
		t.Fatal("it is moved")
	}
	t.Log(err)
	x.whole(t)
}

// split: a guest whose memory is in two places is lost with either, which is
// said at once.
func (x *mover) split(t *testing.T) {
	y := x.target(t, "", true)
	how := engine.Moving{PostCopy: true, Bandwidth: 4 << 20, Progress: func(p engine.Progress) {
		if st := y.m.link.state(); st == "running" {
			y.m.Kill(t.Context())
		}
	}}
	_, err := engine.Move(t.Context(), x.m, y.m, how, t.TempDir())
	if !errs.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "start it again") && !strings.Contains(err.Error(), "cannot go on") {
		t.Errorf("%v", err)
	}
	t.Log(err)
}

// TestMoveSenderKilled: when the QEMU ends that sends a guest, the one that
// waits for it ends too, and what the guest had safe on its disk is safe.
func TestMoveSenderKilled(t *testing.T) {
	r := newRig(t)
	x := newMover(t, r)
	y := x.target(t, "", false)
	how := engine.Moving{Bandwidth: 8 << 20, Progress: func(p engine.Progress) {
		if p.Memory > 8<<20 {
			x.m.Kill(t.Context())
		}
	}}
	_, err := engine.Move(t.Context(), x.m, y.m, how, t.TempDir())
	if err == nil {
		t.Fatal("it is moved")
	}
	t.Log(err)
	for _, l := range []*link{x.m.link, y.m.link} {
		select {
		case <-l.life.Done():
		case <-time.After(time.Minute):
			t.Fatal("it does not end")
		}
	}
	p := x.parts
	if out, err := exec.Command("e2fsck", "-fy", p.Root.Volume).CombinedOutput(); err != nil && !strings.Contains(string(out), "recovering journal") {
		t.Fatalf("%v: %s", err, out)
	}
	if err := r.tree.Create(x.g.ID+"-again", overhead().Limits(x.g.Spec, "")); err != nil {
		t.Fatal(err)
	}
	p.Cgroup, p.Dir = x.g.ID+"-again", t.TempDir()
	g := x.g
	g.ID += "-again"
	z := r.start(t, x.k, g, p)
	z.ready()
	if is := z.shell("md5sum </root/known"); is != x.disk {
		t.Errorf("its disk was %s and is %s", x.disk, is)
	}
}
