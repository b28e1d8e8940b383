package guests

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"lodge/internal/base/errs"
	"lodge/internal/engine"
	"lodge/internal/keeper"
	"lodge/internal/model/guest"
	"lodge/internal/model/image"
)

// layers notes what was asked of it.
type layers struct {
	volume, overlay string
	size            uint64
}

func (l *layers) Volume(_ context.Context, path string, size uint64) error {
	l.volume, l.size = path, size
	return nil
}

func (l *layers) Overlay(_ context.Context, path, base string, size uint64) error {
	l.overlay, l.size = path+" on "+base, size
	return nil
}

// kernels has one kernel, or an error.
type kernels struct {
	fail  error
	asked string
	path  string
}

func (k *kernels) For(_ context.Context, kind string, _ image.Info, wanted string) (engine.Kernel, error) {
	k.asked = kind + ":" + wanted
	return engine.Kernel{Name: kind + "/best", Version: "7.2", Path: k.path}, k.fail
}

var own = engine.Info{Name: "box", Model: guest.VM, Form: guest.Volume, Kernel: "linux", Overhead: engine.Overhead{Memory: 64 << 20}, Pin: true, Can: engine.Can{Plug: true, Disk: true}}

// boxed is an engine whose programs end otherwise than their guests, and whose
// machines have devices.
type boxed struct {
	*toy
	is      keeper.Exit
	last    string
	plugged []string
	refuse  error
}

func (b *boxed) Ended(_ guest.Guest, p engine.Parts, e keeper.Exit) (keeper.Exit, string) {
	if p.Dir == "" {
		panic("where the guest's files are must always be known")
	}
	is := b.is
	is.At = e.At
	return is, b.last
}

func (b *boxed) Connect(_ context.Context, g guest.Guest, _ engine.Parts, _ keeper.Held) (engine.Machine, error) {
	return &boxedMachine{toyMachine{b.toy, g.ID}, b}, nil
}

type boxedMachine struct {
	toyMachine
	b *boxed
}

func (m *boxedMachine) note(what string) error {
	if m.b.refuse != nil {
		return m.b.refuse
	}
	m.b.plugged = append(m.b.plugged, what)
	return nil
}
func (m *boxedMachine) PlugDisk(_ context.Context, d engine.Disk) error {
	return m.note("+disk " + d.Name + " " + filepath.Base(d.Path))
}
func (m *boxedMachine) UnplugDisk(_ context.Context, name string) error {
	return m.note("-disk " + name)
}
func (m *boxedMachine) PlugNIC(_ context.Context, n engine.NIC) error {
	return m.note("+nic " + n.Name)
}
func (m *boxedMachine) UnplugNIC(_ context.Context, name string) error { return m.note("-nic " + name) }

func newBox(t *testing.T, spec guest.Spec) (*world, *boxed) {
	var b *boxed
	w := newWorldOf(t, spec, own, func(e *toy) engine.Engine { b = &boxed{toy: e}; return b })
	return w, b
}

func TestGuestWithAMachineOfItsOwn(t *testing.T) {
	w, _ := newBox(t, guest.Spec{
		Power: guest.On, Boots: 1, CPUs: 1, Memory: 256 << 20, Disk: 3 << 30, Digest: "sha",
		Disks: []guest.FurtherDisk{{Name: "data", Size: 1 << 20}}, Hardware: guest.Hardware{Kernel: "linux/mine"},
	})
	w.e.probe = engine.Probe{}
	s := w.settle()
	w.expect(s, guest.Running)
	p := w.e.parts
	if want := filepath.Join(w.dir, "root.ext4"); p.Root.Volume != want || w.layers.volume != want || w.layers.size != 3<<30 {
		t.Errorf("volume %q, made %q of %d bytes", p.Root.Volume, w.layers.volume, w.layers.size)
	}
	if p.Root.Base != "/blobs/sha" || p.Root.Lower != "" || p.Kernel.Version != "7.2" || w.kernels.asked != "linux:linux/mine" {
		t.Errorf("%+v, kernel asked for: %s", p, w.kernels.asked)
	}
	if len(p.CPUSet) != 1 || s.CPU == nil || *s.CPU != p.CPUSet[0] {
		t.Errorf("pinned to %v, told %v", p.CPUSet, s.CPU)
	}
	info, err := os.Stat(p.Disks[0].Path)
	if err != nil || info.Size() != 1<<20 {
		t.Errorf("further disk: %v, %v", info, err)
	}
	if s.Ready || s.Kernel != "linux/best 7.2" || s.Engine != "box" {
		t.Errorf("status %+v", s)
	}
	// The guest says that it is up: whoever is told wakes the reconciler.
	w.e.probe.Ready = true
	if s = w.settle(); !s.Ready {
		t.Error("is not ready though it says so")
	}
	w.e.probe.Trouble = "kernel panic: oops"
	if s = w.settle(); s.Problem == nil || s.Problem.Message != "kernel panic: oops" || !s.Problem.Aside {
		t.Errorf("problem %+v", s.Problem)
	}
	since := s.Problem.Since
	w.now = w.now.Add(time.Hour)
	if s = w.settle(); !s.Problem.Since.Equal(since) {
		t.Error("an old trouble is told as a new one")
	}
}

func TestMonitorsMemoryIsBesideTheGuests(t *testing.T) {
	w, _ := newBox(t, guest.Spec{Power: guest.On, Boots: 1, CPUs: 1, Memory: 256 << 20})
	w.settle()
	join := w.r.Cgroups.Join(w.id)
	files := []string{filepath.Join(join.Dir, "memory.max")}
	for _, tasks := range join.Tasks {
		files = append(files, filepath.Join(filepath.Dir(tasks), "memory.limit_in_bytes"))
	}
	for _, f := range files {
		if text, err := os.ReadFile(f); err == nil {
			if got, want := strings.TrimSpace(string(text)), strconv.Itoa(256<<20+64<<20); got != want {
				t.Errorf("%s is %s, want %s", f, got, want)
			}
			return
		}
	}
	t.Skip("no memory controller: none of these files is there: ", files)
}

func TestKernelThatIsBeingMade(t *testing.T) {
	w, _ := newBox(t, guest.Spec{Power: guest.On, Boots: 1, CPUs: 1})
	w.kernels.fail = &errs.Error{Kind: errs.Busy, Msg: "the kernel is being fetched", Hint: "wait for it"}
	if _, err := w.pass(); !errs.Is(err, errs.Busy) {
		t.Fatalf("%v", err)
	}
	w.kernels.fail = nil
	w.expect(w.settle(), guest.Running)
	// It is gone by now: the guest has it in memory and can still be looked at.
	w.kernels.fail = errors.New("no such kernel")
	w.r.attached[w.id] = attachment{used: true} // as after a restart of the daemon
	w.expect(w.settle(), guest.Running)
}

// runDisk runs a guest of an image that is a disk.
func runDisk(t *testing.T, format string) *world {
	t.Helper()
	w, _ := newBox(t, guest.Spec{Power: guest.On, Boots: 1, CPUs: 2, Image: "win", Digest: "d", Disk: 1 << 30})
	rec, err := w.r.Tables.Images.Create(t.Context(), "win", image.Spec{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.r.Tables.Images.SetStatus(t.Context(), rec.ID, func(s *image.Status) error {
		s.Digest, s.Info = "d", image.Info{Disk: format, DiskSize: 5 << 30}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	w.expect(w.settle(), guest.Running)
	return w
}

func TestDiscImage(t *testing.T) {
	w := runDisk(t, "iso")
	p := w.e.parts
	if p.Root.Own == nil || p.Root.Base != "" || w.layers.overlay != p.Root.Own.Path+" on " || w.layers.size != 1<<30 {
		t.Errorf("%+v, overlay %q of %d bytes", p.Root, w.layers.overlay, w.layers.size)
	}
	if len(p.Disks) != 1 || !p.Disks[0].Optical || !p.Disks[0].ReadOnly || p.Disks[0].Path != "/blobs/d" || p.Disks[0].Boot <= p.Root.Own.Boot {
		t.Errorf("discs: %+v", p.Disks)
	}
}

func TestDiskImage(t *testing.T) {
	w := runDisk(t, "qcow2")
	p := w.e.parts
	if p.Root.Own == nil || p.Root.Own.Boot != ownBoot || p.Root.Volume != "" || w.kernels.asked != "" {
		t.Errorf("%+v, kernel asked for: %q", p.Root, w.kernels.asked)
	}
	if want := filepath.Join(w.dir, "root.qcow2") + " on /blobs/d"; w.layers.overlay != want || w.layers.size != 5<<30 {
		t.Errorf("overlay %q of %d bytes", w.layers.overlay, w.layers.size)
	}
	if p.CPUSet != nil {
		t.Error("a guest with two processors was pinned to one")
	}
}

func TestHowAGuestEnded(t *testing.T) {
	panicked := "[    1.0] VFS: Cannot open root\n[    1.1] Kernel panic - not syncing: no root\n[    1.2] reboot in 1s"
	for _, c := range []struct {
		name    string
		is      keeper.Exit
		last    string
		restart guest.Restart
		phase   guest.Phase
		problem string
	}{
		{"power-off", keeper.Exit{Signal: syscall.SIGINT}, "", guest.OnFailure, guest.Placed, ""},
		{"reboot", keeper.Exit{Signal: syscall.SIGHUP}, "", guest.Never, guest.Running, ""},
		{"panic", keeper.Exit{Code: 1}, panicked, guest.Never, guest.Placed, "kernel panic: no root"},
		{"panic, policy on-failure", keeper.Exit{Code: 1}, panicked, guest.OnFailure, guest.Running, ""},
		{"monitor killed", keeper.Exit{Signal: syscall.SIGKILL}, "login:", guest.Never, guest.Placed, "ended by signal killed; it said last: login:"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, b := newBox(t, guest.Spec{Power: guest.On, Boots: 1, CPUs: 1, Restart: c.restart})
			w.settle()
			b.is, b.last = c.is, c.last
			w.k.end(w.id, keeper.Exit{Code: 0, At: w.now.Add(time.Minute)}) // as monitors do
			w.settle()
			w.now = w.now.Add(2 * time.Minute)
			s := w.settle()
			w.expect(s, c.phase)
			if c.problem == "" && s.Problem != nil || c.problem != "" && (s.Problem == nil || s.Problem.Message != c.problem) {
				t.Errorf("problem %+v, want %q", s.Problem, c.problem)
			}
			if failed := c.is.Code != 0 || c.is.Signal == syscall.SIGKILL; failed != (s.Last != "") {
				t.Errorf("last words %q", s.Last)
			}
			if up := c.phase == guest.Running; up != (len(w.r.pins) == 1) {
				t.Errorf("pins %v", w.r.pins)
			}
		})
	}
}

func TestForceStopsAGuestWhoseMonitorIsMute(t *testing.T) {
	w, _ := newBox(t, guest.Spec{Power: guest.On, Boots: 1, CPUs: 1})
	w.expect(w.settle(), guest.Running)
	w.e.mute = errors.New("no answer")
	if _, err := w.pass(); err == nil {
		t.Fatal("a monitor that does not answer is no trouble")
	}
	w.want(func(s *guest.Spec) { s.Power, s.Force = guest.Off, true })
	w.settle()
	w.expect(w.settle(), guest.Placed)
}

func TestCleanStopOfAMuteMonitorEndsInTime(t *testing.T) {
	w, _ := newBox(t, guest.Spec{Power: guest.On, Boots: 1, CPUs: 1, StopTimeout: 5})
	w.settle()
	w.e.mute = errors.New("no answer")
	w.want(func(s *guest.Spec) { s.Power = guest.Off })
	if wait, err := w.pass(); err != nil || wait != tellAgain {
		t.Fatalf("waits %v, %v", wait, err)
	}
	w.expect(w.settle(), guest.Running) // it is not killed before its time
	w.now = w.now.Add(6 * time.Second)
	w.settle()
	w.expect(w.settle(), guest.Placed)
}

func TestPlug(t *testing.T) {
	w, b := newBox(t, guest.Spec{Power: guest.On, Boots: 1, CPUs: 1, Disks: []guest.FurtherDisk{{Name: "old", Size: 1 << 20}}})
	w.settle()
	iso := filepath.Join(t.TempDir(), "cd.iso")
	if err := os.WriteFile(iso, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	now := []guest.FurtherDisk{{Name: "new", Size: 2 << 20}, {Name: "cd", Disc: iso}}
	b.refuse = &errs.Error{Kind: errs.Unsupported, Msg: "not in this machine"}
	w.want(func(s *guest.Spec) { s.Disks = now })
	s := w.settle()
	if s.Generation != 2 || !slices.Equal(s.Devices.Disks, []guest.FurtherDisk{{Name: "old", Size: 1 << 20}}) {
		t.Fatalf("what cannot be plugged is no trouble, and not told as done: %+v", s)
	}
	if _, err := os.Stat(diskPath(w.dir, "old")); err != nil {
		t.Fatalf("the disk was taken from under a guest that has it: %v", err)
	}
	b.refuse = nil
	w.want(func(s *guest.Spec) { s.CPUWeight++ })
	s = w.settle()
	if got := strings.Join(b.plugged, ", "); got != "-disk old, +disk new disk-new.raw, +disk cd cd.iso" {
		t.Errorf("plugged %s", got)
	}
	if !slices.Equal(s.Devices.Disks, now) {
		t.Errorf("has %+v", s.Devices)
	}
	if _, err := os.Stat(diskPath(w.dir, "old")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the disk that was taken away is left: %v", err)
	}
	os.Remove(iso)
	w.want(func(s *guest.Spec) { s.Power = guest.Off })
	w.settle()
	b.is = keeper.Exit{}
	w.k.end(w.id, keeper.Exit{At: w.now})
	w.expect(w.settle(), guest.Placed)
	w.want(func(s *guest.Spec) { s.Power, s.Boots = guest.On, 2 })
	if _, err := w.pass(); !errs.Is(err, errs.NotFound) || !strings.Contains(err.Error(), "cd") {
		t.Errorf("a disc that is gone: %v", err)
	}
}

// TestPlugThatWasCutOff: nobody knows whether a device came of which that is not
// written down. It is plugged in again, or, if it is not wanted any more, out.
func TestPlugThatWasCutOff(t *testing.T) {
	for _, wanted := range []bool{true, false} {
		w, b := newBox(t, guest.Spec{Power: guest.On, Boots: 1, CPUs: 1})
		w.settle()
		b.refuse = &errs.Error{Kind: errs.Unavailable, Msg: "the daemon dies"}
		disks := []guest.FurtherDisk{{Name: "new", Size: 1 << 20}}
		w.want(func(s *guest.Spec) { s.Disks = disks })
		if _, err := w.pass(); !errs.Is(err, errs.Unavailable) {
			t.Fatalf("%v", err)
		}
		b.refuse = nil
		w.r.attached[w.id] = attachment{used: true} // as after a restart of the daemon
		want := "+disk new disk-new.raw"
		if !wanted {
			disks, want = nil, "-disk new"
			w.want(func(s *guest.Spec) { s.Disks = nil })
		}
		s := w.settle()
		if got := strings.Join(b.plugged, ", "); got != want {
			t.Errorf("plugged %q, want %q", got, want)
		}
		if !slices.Equal(s.Devices.Disks, disks) || len(s.Devices.Coming) != 0 {
			t.Errorf("has %+v", s.Devices)
		}
		if _, err := os.Stat(diskPath(w.dir, "new")); (err == nil) != wanted {
			t.Errorf("the disk's file: %v", err)
		}
	}
}
