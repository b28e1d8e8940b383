package layer

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

	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
	"lodge/internal/base/loopdev"
	"lodge/internal/base/trees"
	"lodge/internal/base/trees/treestest"
	"lodge/test/sandbox"
)

func need(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts")
	}
	for _, p := range []string{"mkfs.ext4", "e2fsck", "resize2fs", "mkfs.btrfs"} {
		if _, err := exec.LookPath(p); err != nil {
			sandbox.Missing(t, p+" is not installed")
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// volume is a volume's directory as a pool makes it, on a btrfs of so many MiB
// that is mounted nowhere.
func volume(t testing.TB, mib int64) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "disk")
	must(t, os.WriteFile(file, nil, 0o600))
	must(t, os.Truncate(file, mib<<20))
	out, err := exec.Command("mkfs.btrfs", "-q", file).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v", out, err)
	}
	dev, err := loopdev.Attach(file, loopdev.Options{Direct: true, Sector: 4096})
	must(t, err)
	defer dev.Close()
	fs, err := unix.Fsopen("btrfs", unix.FSOPEN_CLOEXEC)
	must(t, err)
	defer unix.Close(fs)
	must(t, unix.FsconfigSetString(fs, "source", dev.Name()))
	must(t, unix.FsconfigCreate(fs))
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOATIME)
	must(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	dir := fmt.Sprintf("/proc/%d/fd/%d/volume", os.Getpid(), fd)
	must(t, os.Mkdir(dir, 0o700))
	must(t, os.Mkdir(dir+"/upper", 0o755))
	must(t, os.Mkdir(dir+"/work", 0o700))
	return dir
}

func wantForm(t testing.TB, dir string, want Form) {
	t.Helper()
	if got, err := FormOf(dir); err != nil || got != want {
		t.Fatalf("the form is %q (%v), want %q", got, err, want)
	}
	entries, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), fresh) {
			t.Errorf("left behind: %s", e.Name())
		}
	}
	if want == Volume {
		if left, err := os.ReadDir(filepath.Join(dir, "upper")); err != nil || len(left) != 0 {
			t.Errorf("upper of a volume holds %v (%v)", left, err)
		}
	}
}

func large(t testing.TB, dir string) {
	must(t, os.WriteFile(filepath.Join(dir, "upper/attributes"), []byte("x"), 0o600))
	for i := range 3 {
		must(t, unix.Setxattr(filepath.Join(dir, "upper/attributes"), fmt.Sprint("user.large", i), []byte(strings.Repeat("0123456789abcdef", 600+i)), 0))
	}
}

// TestRoundTrip takes a layer with every oddity through its forms, twice. With
// LODGE_TEST_LONG it holds 1 GB in 50,000 files.
func TestRoundTrip(t *testing.T) {
	need(t)
	files, bytes, disk := 2000, int64(40<<20), int64(1<<10)
	if os.Getenv("LODGE_TEST_LONG") != "" {
		files, bytes, disk = 50_000, 1<<30, 6<<10
	}
	dir := volume(t, disk)
	treestest.Odd(t, filepath.Join(dir, "upper"), files, bytes)
	large(t, dir)
	want := treestest.Manifest(t, filepath.Join(dir, "upper"))
	t.Logf("%d files", len(want))
	for round := range 2 {
		start := time.Now()
		var done, total uint64
		must(t, ToVolume(t.Context(), dir, 0, func(d, n uint64) { done, total = d, n }))
		t.Logf("to a volume: %v", time.Since(start))
		wantForm(t, dir, Volume)
		if done == 0 || done > total {
			t.Errorf("told %d of %d", done, total)
		}
		facts, err := Look(t.Context(), dir)
		if err != nil || facts.Form != Volume || facts.Size != DefaultSize || int(facts.Files) < len(want)/2 || facts.Bytes < uint64(bytes)/2 {
			t.Errorf("facts are %+v, %v", facts, err)
		}
		start = time.Now()
		must(t, ToTree(t.Context(), dir, nil))
		t.Logf("to a tree: %v", time.Since(start))
		wantForm(t, dir, Tree)
		treestest.Same(t, treestest.Manifest(t, filepath.Join(dir, "upper")), want)
		if t.Failed() {
			t.Fatalf("in round %d", round)
		}
	}
}

func TestAFreshVolumeIsEmpty(t *testing.T) {
	need(t)
	dir := volume(t, 256)
	for range 2 {
		must(t, Create(t.Context(), dir, 1<<30))
		wantForm(t, dir, Volume)
	}
	m, err := mount(filepath.Join(dir, File), true)
	must(t, err)
	names, err := m.root.Readdirnames(-1)
	must(t, err)
	if got := strings.Join(names, " "); len(names) != 3 || !strings.Contains(got, "upper") || !strings.Contains(got, "work") {
		t.Errorf("a fresh volume holds %v", names)
	}
	must(t, m.close(t.Context()))
	must(t, ToTree(t.Context(), dir, nil))
	wantForm(t, dir, Tree)
	if st, err := os.Stat(filepath.Join(dir, "upper")); err != nil || st.Mode().Perm() != 0o755 {
		t.Errorf("upper: %v %v", st, err)
	}
}

func TestGrow(t *testing.T) {
	need(t)
	dir := volume(t, 512)
	must(t, os.WriteFile(filepath.Join(dir, "upper/f"), []byte("kept"), 0o600))
	must(t, ToVolume(t.Context(), dir, 64<<20, nil))
	for _, size := range []uint64{256 << 20, 256 << 20, 128 << 20, 0} {
		must(t, Grow(t.Context(), dir, size))
		facts, err := Look(t.Context(), dir)
		if err != nil || facts.Size != 256<<20 {
			t.Errorf("the size is %d (%v)", facts.Size, err)
		}
	}
	must(t, os.Truncate(filepath.Join(dir, File), 400<<20)) // cut off behind this
	must(t, Grow(t.Context(), dir, 400<<20))
	facts, err := Look(t.Context(), dir)
	if err != nil || facts.Size != 400<<20 {
		t.Errorf("the size is %d (%v)", facts.Size, err)
	}
	must(t, ToTree(t.Context(), dir, nil))
	if b, err := os.ReadFile(filepath.Join(dir, "upper/f")); string(b) != "kept" {
		t.Errorf("%q %v", b, err)
	}
}

// TestGrowFar: a volume grows beyond the tables that were reserved for it.
func TestGrowFar(t *testing.T) {
	need(t)
	dir := t.TempDir()
	must(t, Create(t.Context(), dir, 64<<20))
	const far = 3 << 40 / 2
	must(t, Grow(t.Context(), dir, far))
	facts, err := Look(t.Context(), dir)
	if err != nil || facts.Size != far {
		t.Errorf("the size is %d (%v)", facts.Size, err)
	}
	must(t, check(t.Context(), filepath.Join(dir, File)))
}

func TestTooSmallADiskIsRefused(t *testing.T) {
	need(t)
	dir := volume(t, 512)
	treestest.Odd(t, filepath.Join(dir, "upper"), 100, 40<<20)
	want := treestest.Manifest(t, filepath.Join(dir, "upper"))
	err := ToVolume(t.Context(), dir, 50<<20, nil)
	if e, ok := errors.AsType[*errs.Error](err); !ok || e.Kind != errs.NoSpace || e.Field != "disk" || !strings.Contains(e.Hint, "--disk") {
		t.Errorf("a volume that is too small: %v", err)
	}
	wantForm(t, dir, Tree)
	treestest.Same(t, treestest.Manifest(t, filepath.Join(dir, "upper")), want)
}

func TestAFullPoolLeavesTheLayerAsItWas(t *testing.T) {
	need(t)
	dir := volume(t, 256)
	treestest.Odd(t, filepath.Join(dir, "upper"), 100, 90<<20)
	want := treestest.Manifest(t, filepath.Join(dir, "upper"))
	if err := ToVolume(t.Context(), dir, 1<<30, nil); err == nil {
		t.Fatal("90 MiB went twice onto 256 MiB with what btrfs takes itself")
	} else if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EIO) {
		t.Errorf("%v", err)
	}
	wantForm(t, dir, Tree)
	treestest.Same(t, treestest.Manifest(t, filepath.Join(dir, "upper")), want)
}

// TestGarbageIsRefused: what a guest may have made of its disk.
func TestGarbageIsRefused(t *testing.T) {
	need(t)
	for name, spoil := range map[string]func(f *os.File) error{
		"zeros":     func(f *os.File) error { return f.Truncate(0) },
		"no super":  func(f *os.File) error { _, err := f.WriteAt(make([]byte, 4096), 0); return err },
		"bad block": func(f *os.File) error { _, err := f.WriteAt([]byte{7, 0, 0, 0}, superAt+0x18); return err },
		"no root":   func(f *os.File) error { return wreck(f) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := volume(t, 256)
			must(t, os.WriteFile(filepath.Join(dir, "upper/f"), []byte("kept"), 0o600))
			must(t, ToVolume(t.Context(), dir, 64<<20, nil))
			f, err := os.OpenFile(filepath.Join(dir, File), os.O_RDWR, 0)
			must(t, err)
			must(t, spoil(f))
			must(t, f.Close())
			if err := ToTree(t.Context(), dir, nil); err == nil {
				t.Error("it was taken")
			}
			wantForm(t, dir, Volume)
		})
	}
}

// wreck overwrites the folders and tables of inodes, as far as they are at the
// beginning.
func wreck(f *os.File) error {
	junk := []byte(strings.Repeat("\xff\x00lodge!", 512))
	for at := int64(8 << 10); at < 8<<20; at += int64(len(junk)) {
		if _, err := f.WriteAt(junk, at); err != nil {
			return err
		}
	}
	return nil
}

// TestAGuestsLinkIsNotFollowed: the guest's root can put anything in place of
// its upper folder.
func TestAGuestsLinkIsNotFollowed(t *testing.T) {
	need(t)
	dir := volume(t, 256)
	must(t, Create(t.Context(), dir, 64<<20))
	m, err := mount(filepath.Join(dir, File), false)
	must(t, err)
	at := int(m.root.Fd())
	must(t, unix.Unlinkat(at, "upper", unix.AT_REMOVEDIR))
	must(t, unix.Symlinkat("/etc", at, "upper"))
	must(t, m.close(t.Context()))
	if err := ToTree(t.Context(), dir, nil); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("a link in place of upper: %v", err)
	}
	wantForm(t, dir, Volume)
}

// TestAnUncleanGuest ends with its journal full: the image is taken while the
// file system is mounted and was synced, which puts what is new into the journal
// first.
func TestAnUncleanGuest(t *testing.T) {
	need(t)
	dir := volume(t, 512)
	must(t, Create(t.Context(), dir, 128<<20))
	file := filepath.Join(dir, File)
	m, err := mount(file, false)
	must(t, err)
	upper, err := openFolder(int(m.root.Fd()), "upper")
	must(t, err)
	for i := range 200 {
		fd, err := unix.Openat(int(upper.Fd()), fmt.Sprint("f", i), unix.O_CREAT|unix.O_WRONLY, 0o600)
		must(t, err)
		_, err = unix.Write(fd, []byte("written"))
		must(t, errors.Join(err, unix.Fsync(fd), unix.Close(fd)))
	}
	must(t, unix.Fsync(int(m.dev.Fd())))
	copied, err := exec.Command("cp", "--sparse=always", file, file+".copy").CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v", copied, err)
	}
	must(t, upper.Close())
	must(t, m.close(t.Context()))
	must(t, os.Rename(file+".copy", file))
	b, err := os.ReadFile(file)
	must(t, err)
	if b[superAt+0x60]&4 == 0 { // needs_recovery
		t.Fatal("the copy was clean: nothing is tested")
	}
	must(t, ToTree(t.Context(), dir, nil))
	for i := range 200 {
		if b, err := os.ReadFile(filepath.Join(dir, "upper", fmt.Sprint("f", i))); string(b) != "written" {
			t.Fatalf("file %d: %q %v", i, b, err)
		}
	}
}

const dieAfter = "LODGE_LAYER_TEST_DIE_AFTER"

// TestKilledAtEveryStep kills a process that changes a layer's form after each of
// its steps: the layer is whole, in one form or the other, and the change can be
// made after that.
func TestKilledAtEveryStep(t *testing.T) {
	need(t)
	dir := volume(t, 1<<10)
	treestest.Odd(t, filepath.Join(dir, "upper"), 200, 4<<20)
	large(t, dir)
	want := treestest.Manifest(t, filepath.Join(dir, "upper"))
	for _, to := range []Form{Volume, Tree} {
		for n := 1; ; n++ {
			cmd := exec.Command(os.Args[0], "-test.run=^TestMain_Convert$")
			cmd.Env = append(os.Environ(), dieAfter+"="+strconv.Itoa(n), "LODGE_LAYER_TEST_DIR="+dir, "LODGE_LAYER_TEST_TO="+string(to))
			out, err := cmd.CombinedOutput()
			if err == nil {
				if n < 6 {
					t.Fatalf("only %d steps were seen on the way to a %s: %s", n-1, to, out)
				}
				break
			}
			if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.Sys().(interface{ Signal() unix.Signal }) == nil || exit.ExitCode() != -1 {
				t.Fatalf("%s: %v", out, err)
			}
			form, err := Sweep(t.Context(), dir)
			must(t, err)
			wantForm(t, dir, form)
			t.Logf("killed after step %d to a %s: it is a %s", n, to, form)
			if form == to { // it was committed: back, for the next step
				must(t, change(t.Context(), convert{}, dir, other(to)))
			}
			wantForm(t, dir, other(to))
		}
		wantForm(t, dir, to)
	}
	treestest.Same(t, treestest.Manifest(t, filepath.Join(dir, "upper")), want)
	left, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	must(t, err)
	for _, name := range left {
		if b, err := os.ReadFile(name); err == nil && strings.Contains(string(b), "volume/"+File) {
			t.Errorf("a loop device was left: %s", b)
		}
	}
}

func other(f Form) Form {
	if f == Tree {
		return Volume
	}
	return Tree
}

func change(ctx context.Context, c convert, dir string, to Form) error {
	if to == Volume {
		return c.toVolume(ctx, dir, 512<<20, nil)
	}
	return c.toTree(ctx, dir, nil)
}

// TestMain_Convert is the process that TestKilledAtEveryStep kills.
func TestMain_Convert(t *testing.T) {
	n, err := strconv.Atoi(os.Getenv(dieAfter))
	if err != nil {
		t.Skip("it is run by TestKilledAtEveryStep")
	}
	c := convert{step: func(string) {
		if n--; n == 0 {
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
			select {}
		}
	}}
	must(t, change(t.Context(), c, os.Getenv("LODGE_LAYER_TEST_DIR"), Form(os.Getenv("LODGE_LAYER_TEST_TO"))))
}

func FuzzSuperblock(f *testing.F) {
	good := make([]byte, superLength)
	good[0x38], good[0x39], good[0x4], good[0x0] = 0x53, 0xef, 100, 10
	f.Add(good)
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parseSuper(b)
		if err == nil && (s.usedBytes() > s.size() || s.usedInodes() > uint64(s.inodes) || s.size() > 1<<61) {
			t.Errorf("%+v", s)
		}
	})
}

// BenchmarkModelChange is a guest with 190 MB of its own in 5,000 files.
func BenchmarkModelChange(b *testing.B) {
	need(b)
	dir := volume(b, 4<<10)
	treestest.Odd(b, filepath.Join(dir, "upper"), 5000, 190<<20)
	must(b, trees.Clear(b.Context(), openTest(b, filepath.Join(dir, "upper/odd"))))
	unix.Sync()
	var there, back time.Duration
	for b.Loop() {
		start := time.Now()
		must(b, ToVolume(b.Context(), dir, 0, nil))
		there += time.Since(start)
		start = time.Now()
		must(b, ToTree(b.Context(), dir, nil))
		back += time.Since(start)
	}
	b.ReportMetric(float64(there.Milliseconds())/float64(b.N), "ms-to-volume")
	b.ReportMetric(float64(back.Milliseconds())/float64(b.N), "ms-to-tree")
}

func openTest(t testing.TB, path string) *os.File {
	t.Helper()
	f, err := openFolder(unix.AT_FDCWD, path)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}
