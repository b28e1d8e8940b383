package btrfs

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
	"lodge/internal/model/pool"
	"lodge/internal/storage/storagetest"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func onLoop(t testing.TB) storagetest.Case {
	return storagetest.Case{Driver: New(quiet()), Dir: t.TempDir() + "/pool", Spec: pool.Spec{Size: 1 << 30}}
}

func TestSuiteOnAFile(t *testing.T) { storagetest.Run(t, onLoop) }

// TestSuiteOnADirectory puts pools into a volume of another pool, which is a
// directory on btrfs like any other.
func TestSuiteOnADirectory(t *testing.T) {
	storagetest.NeedRoot(t)
	c := onLoop(t)
	outer := storagetest.Open(t, c).(*btrfsPool)
	n := 0
	storagetest.Run(t, func(t testing.TB) storagetest.Case {
		n++
		source := filepath.Join(outer.root, "source"+string(rune('a'+n)))
		if err := os.Mkdir(source, 0o700); err != nil {
			t.Fatal(err)
		}
		return storagetest.Case{Driver: New(quiet()), Dir: t.TempDir() + "/pool", Spec: pool.Spec{Source: source}}
	})
}

func TestSuiteOnADevice(t *testing.T) {
	storagetest.NeedRoot(t)
	dev := device(t)
	storagetest.Run(t, func(t testing.TB) storagetest.Case {
		return storagetest.Case{Driver: New(quiet()), Dir: t.TempDir() + "/pool", Spec: pool.Spec{Source: dev}}
	})
}

// device attaches a blank file of 1 GiB to a loop device for the test.
func device(t *testing.T) string {
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, 1<<30); err != nil {
		t.Fatal(err)
	}
	dev, err := attachLoop(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dev.Close() }) // auto-clear frees it
	return dev.Name()
}

func TestPoolOnADirectoryThatIsOnBtrfsNeedsNoFile(t *testing.T) {
	storagetest.NeedRoot(t)
	outer := storagetest.Open(t, onLoop(t)).(*btrfsPool)
	p := storagetest.Open(t, storagetest.Case{Driver: New(quiet()), Dir: filepath.Join(outer.root, "data")}).(*btrfsPool)
	if p.where != onDirectory {
		t.Errorf("the pool lies on place %d", p.where)
	}
}

func TestADeviceInUseIsRefused(t *testing.T) {
	storagetest.NeedRoot(t)
	d := New(quiet())
	if m := d.Info().Missing; m != "" {
		t.Skip(m)
	}
	dev := device(t)
	f, err := os.OpenFile(dev, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// The magic of ext2..4 and enough of a superblock that tools believe it.
	super := make([]byte, 1024)
	copy(super[0x38:], []byte{0x53, 0xef})
	super[0x4c] = 1
	if _, err := f.WriteAt(super, 1024); err != nil {
		t.Fatal(err)
	}
	_, err = d.Open(t.Context(), "test", pool.Spec{Source: dev}, t.TempDir()+"/pool")
	var e *errs.Error
	if !errors.As(err, &e) || e.Kind != errs.Conflict || e.Field != "source" || !strings.Contains(e.Hint, "wipefs") {
		t.Errorf("opening a device with ext4 on it: %v", err)
	}
	got := make([]byte, 1024)
	if _, err := f.ReadAt(got, 1024); err == nil && string(got) != string(super) {
		t.Error("the device was written to")
	}
	must(t, unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0))
}

func TestAnotherPoolsDeviceIsRefused(t *testing.T) {
	storagetest.NeedRoot(t)
	dev := device(t)
	c := storagetest.Case{Driver: New(quiet()), Dir: t.TempDir() + "/pool", Spec: pool.Spec{Source: dev}}
	storagetest.Open(t, c)
	_, err := c.Driver.Open(t.Context(), "other", c.Spec, t.TempDir()+"/pool")
	if !errs.Is(err, errs.Conflict) {
		t.Errorf("one device for two pools: %v", err)
	}
}

// TestDestroyedTwice proves that a late second Destroy spares the next owner
// of the device.
func TestDestroyedTwice(t *testing.T) {
	storagetest.NeedRoot(t)
	dev := device(t)
	c := storagetest.Case{Driver: New(quiet()), Dir: t.TempDir() + "/pool", Spec: pool.Spec{Source: dev}}
	p := storagetest.Open(t, c)
	must(t, os.WriteFile(c.Dir+"/somebody's", nil, 0o600)) // so that the directory stays
	must(t, p.Destroy(t.Context()))
	next, err := c.Driver.Open(t.Context(), "next", c.Spec, t.TempDir()+"/pool")
	must(t, err)
	t.Cleanup(func() { storagetest.Clear(t, next) })
	must(t, unix.Unmount(next.(*btrfsPool).root, 0))
	must(t, p.Destroy(t.Context()))
	if label, isBtrfs, err := btrfsLabel(dev); err != nil || !isBtrfs || label != "lodge-next" {
		t.Errorf("the device now holds btrfs=%v %q, %v", isBtrfs, label, err)
	}
	if _, err := os.Stat(c.Dir + "/somebody's"); err != nil {
		t.Error(err)
	}
}

// TestOneLoopDevice proves that neither a second open nor one after the mount
// went away makes a second device, and that unmounting frees it.
func TestOneLoopDevice(t *testing.T) {
	storagetest.NeedRoot(t)
	c := onLoop(t)
	p := storagetest.Open(t, c).(*btrfsPool)
	first, err := findLoop(p.file())
	must(t, err)
	must(t, p.Close())
	must(t, unix.Unmount(p.root, 0))
	if dev, err := findLoop(p.file()); err != nil || dev != "" {
		t.Errorf("after unmounting the file is still on %q, %v", dev, err)
	}
	// A daemon that died between attaching and mounting leaves a device.
	left, err := attachLoop(p.file())
	must(t, err)
	defer left.Close()
	again, err := c.Driver.Open(t.Context(), "test", c.Spec, c.Dir)
	must(t, err)
	defer again.Close()
	info, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	if _, source := mountedAt(string(info), p.root); source != left.Name() {
		t.Errorf("mounted from %s, want the device that was left, %s (first was %s)", source, left.Name(), first)
	}
}

func TestRefusals(t *testing.T) {
	storagetest.NeedRoot(t)
	d := New(quiet())
	if m := d.Info().Missing; m != "" {
		t.Skip(m)
	}
	plain := t.TempDir()
	if onBtrfs(plain) {
		t.Skip("the directory for temporary files is on btrfs")
	}
	for name, c := range map[string]struct {
		spec  pool.Spec
		field string
	}{
		"not on btrfs":  {pool.Spec{Source: plain}, "source"},
		"missing":       {pool.Spec{Source: plain + "/no"}, "source"},
		"relative":      {pool.Spec{Source: "."}, "source"},
		"a file":        {pool.Spec{Source: "/etc/passwd"}, "source"},
		"char device":   {pool.Spec{Source: "/dev/null"}, "source"},
		"too small":     {pool.Spec{Size: 1 << 20}, "size"},
		"size and more": {pool.Spec{Size: 1 << 30, Source: plain}, "size"},
	} {
		dir := t.TempDir() + "/pool"
		_, err := d.Open(t.Context(), "test", c.spec, dir)
		var e *errs.Error
		if !errors.As(err, &e) || e.Kind != errs.Invalid || e.Field != c.field || e.Hint == "" {
			t.Errorf("%s: %v, want invalid %s with a hint", name, err, c.field)
		}
	}
}

func TestFullDisk(t *testing.T) {
	storagetest.NeedRoot(t)
	d := New(quiet())
	if m := d.Info().Missing; m != "" {
		t.Skip(m)
	}
	small := t.TempDir()
	must(t, unix.Mount("none", small, "tmpfs", 0, "size=100m"))
	t.Cleanup(func() { unix.Unmount(small, unix.MNT_DETACH) })
	_, err := d.Open(t.Context(), "test", pool.Spec{}, small+"/default")
	if !errs.Is(err, errs.NoSpace) {
		t.Errorf("a pool of default size on a small disk: %v, want no-space", err)
	}
	dir := small + "/pool"
	p, err := d.Open(t.Context(), "test", pool.Spec{Size: 1 << 30}, dir)
	must(t, err)
	t.Cleanup(func() { storagetest.Clear(t, p) })
	must(t, p.Create(t.Context(), "one", 0))
	must(t, os.WriteFile(small+"/other", make([]byte, 50<<20), 0o600))
	err = p.Create(t.Context(), "two", 0)
	var e *errs.Error
	if !errors.As(err, &e) || e.Kind != errs.NoSpace || e.Hint == "" {
		t.Errorf("a volume on a full disk: %v, want no-space with a hint", err)
	}
	s, err := p.Space(t.Context())
	if err != nil || s.Free > 60<<20 {
		t.Errorf("the pool promises %d bytes that the disk does not have (%v)", s.Free, err)
	}
	must(t, os.Remove(small+"/other"))
	must(t, p.Create(t.Context(), "two", 0))
}

func TestDecide(t *testing.T) {
	for name, c := range map[string]struct {
		spec    pool.Spec
		onBtrfs bool
		mode    os.FileMode
		want    place
	}{
		"default":          {want: onFile},
		"default on btrfs": {onBtrfs: true, want: onDirectory},
		"size on btrfs":    {spec: pool.Spec{Size: 1 << 30}, onBtrfs: true, want: onFile},
		"directory":        {spec: pool.Spec{Source: "/srv"}, mode: os.ModeDir | 0o755, want: onDirectory},
		"disk":             {spec: pool.Spec{Source: "/dev/vdb"}, mode: os.ModeDevice | 0o600, want: onDevice},
	} {
		if got, err := decide(c.spec, c.onBtrfs, c.mode); err != nil || got != c.want {
			t.Errorf("%s: %d, %v, want %d", name, got, err, c.want)
		}
	}
	if got := fileSize(10 << 30); got != 5<<30 {
		t.Errorf("half of 10 GiB is %d", got)
	}
	if got := fileSize(1 << 40); got != largest {
		t.Errorf("half of 1 TiB is %d, want the cap", got)
	}
}

func TestMountedAt(t *testing.T) {
	const info = `22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 22 0:40 / /a\040b rw shared:7 master:1 - btrfs /dev/loop3 rw,subvolid=5
31 22 0:41 / /a\040b rw - btrfs /dev/loop\0654 rw
short line
`
	for dir, want := range map[string][2]string{
		"/":    {"ext4", "/dev/vda"},
		"/a b": {"btrfs", "/dev/loop54"},
		"/no":  {"", ""},
	} {
		if fstype, source := mountedAt(info, dir); fstype != want[0] || source != want[1] {
			t.Errorf("%s: %s from %s, want %v", dir, fstype, source, want)
		}
	}
}

// TestRequestNumbers recomputes the ioctl numbers from the structures.
func TestRequestNumbers(t *testing.T) {
	const write, read = 1, 2
	for i, c := range []struct{ got, dir, nr, size uintptr }{
		{iocSubvolCreate, write, 14, unsafe.Sizeof(volArgs{})},
		{iocSnapDestroy, write, 15, unsafe.Sizeof(volArgs{})},
		{iocInoLookup, read | write, 18, unsafe.Sizeof(inoLookupArgs{})},
		{iocFsInfo, read, 31, unsafe.Sizeof(fsInfoArgs{})},
		{iocQuotaCtl, read | write, 40, unsafe.Sizeof(quotaCtlArgs{})},
		{iocQgroupCreate, write, 42, unsafe.Sizeof(qgroupCreateArgs{})},
		{iocQgroupLimit, read, 43, unsafe.Sizeof(qgroupLimitArgs{})},
		{iocRescanWait, 0, 46, 0},
	} {
		if want := c.dir<<30 | c.size<<16 | 0x94<<8 | c.nr; c.got != want {
			t.Errorf("request %d is %#x, want %#x", i, c.got, want)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func BenchmarkVolume(b *testing.B) { storagetest.Bench(b, onLoop(b)) }
