package disk_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"lodge/internal/base/diskfile"
	"lodge/internal/base/errs"
	"lodge/internal/images"
	"lodge/internal/images/disk"
	"lodge/internal/model/image"
	"lodge/test/sandbox"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newSource(t testing.TB, dir string) (*disk.Source, *images.Spool) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("runs qemu-img as nobody: needs root")
	}
	spool, err := images.OpenSpool(dir)
	must(t, err)
	return disk.New(spool), spool
}

func qemuImg(t testing.TB, args ...string) {
	t.Helper()
	if _, err := exec.LookPath("qemu-img"); err != nil {
		sandbox.Missing(t, "needs qemu-img to make disks: scripts/deps.sh test installs it")
	}
	if out, err := exec.Command("qemu-img", args...).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img %v: %v\n%s", args, err, out)
	}
}

// content is a disk with a boot sector, a hole, and something behind it.
func content(t testing.TB) []byte {
	b := make([]byte, 12<<20)
	copy(b[510:], "\x55\xaa")
	for i := range 1 << 20 {
		b[8<<20+i] = byte(i * 7)
	}
	return b
}

func read(t testing.TB, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	must(t, err)
	return b
}

func build(t *testing.T, s *disk.Source, b []byte) (*images.Store, images.Built) {
	t.Helper()
	id, err := s.Receive(t.Context(), bytes.NewReader(b), 0)
	must(t, err)
	store, err := images.OpenStore(t.TempDir(), t.TempDir(), slog.New(slog.NewTextHandler(t.Output(), nil)))
	must(t, err)
	t.Cleanup(func() { must(t, store.UnmountAll(context.Background())) })
	built, err := store.Build(t.Context(), s, image.Spec{Source: "disk", Upload: id}, func(string, uint64, uint64, string, string) {})
	must(t, err)
	return store, built
}

func TestImportOfEachFormatHoldsTheSame(t *testing.T) {
	s, _ := newSource(t, t.TempDir())
	want, dir := content(t), t.TempDir()
	raw := filepath.Join(dir, "raw")
	must(t, os.WriteFile(raw, want, 0o600))
	for name, args := range map[string][]string{
		"qcow2": {"-O", "qcow2"}, "compressed qcow2": {"-c", "-O", "qcow2"}, "VMDK": {"-O", "vmdk"},
		"VMDK of an OVA": {"-O", "vmdk", "-o", "subformat=streamOptimized"}, "VHD": {"-O", "vpc", "-o", "force_size=on"},
		"fixed VHD": {"-O", "vpc", "-o", "force_size=on,subformat=fixed"}, "VHDX": {"-O", "vhdx"}, "VDI": {"-O", "vdi"}, "raw": nil,
	} {
		t.Run(name, func(t *testing.T) {
			file := raw
			if args != nil {
				file = filepath.Join(t.TempDir(), "file")
				qemuImg(t, append(append([]string{"convert", "-f", "raw"}, args...), raw, file)...)
			}
			store, built := build(t, s, read(t, file))
			if built.Info.Disk != "qcow2" || built.Info.DiskSize != uint64(len(want)) {
				t.Errorf("%+v", built)
			}
			if _, err := store.Mount(t.Context(), built.Digest); !errs.Is(err, errs.Unsupported) {
				t.Errorf("mounted: %v", err)
			}
			var out bytes.Buffer
			must(t, store.Export(t.Context(), built.Digest, "disk", &out))
			qcow, back := filepath.Join(t.TempDir(), "qcow2"), filepath.Join(t.TempDir(), "back")
			must(t, os.WriteFile(qcow, out.Bytes(), 0o600))
			qemuImg(t, "convert", "-f", "qcow2", "-O", "raw", qcow, back)
			if !bytes.Equal(read(t, back), want) {
				t.Error("it holds something else")
			}
			if blobs, err := store.Blobs(); err != nil || len(blobs) != 1 || blobs[0].Digest != built.Digest {
				t.Errorf("%+v %v", blobs, err)
			}
			must(t, store.Remove(t.Context(), built.Digest))
			if blobs, err := store.Blobs(); err != nil || len(blobs) != 0 {
				t.Errorf("%+v %v", blobs, err)
			}
		})
	}
}

func TestAnISOStaysADisc(t *testing.T) {
	s, spool := newSource(t, t.TempDir())
	b := content(t)
	copy(b[0x8001:], "CD001")
	store, built := build(t, s, b)
	if built.Info.Disk != "iso" || built.Info.DiskSize != uint64(len(b)) || built.Size != uint64(len(b)) {
		t.Errorf("%+v", built)
	}
	must(t, spool.Sweep(func(string) bool { return false })) // the image outlives the upload
	f, err := store.Open(built.Digest)
	must(t, err)
	defer f.Close()
	if got, err := io.ReadAll(f); err != nil || !bytes.Equal(got, b) {
		t.Errorf("it holds something else: %v", err)
	}
}

func TestEmptyDisk(t *testing.T) {
	newSource(t, t.TempDir())
	store, err := images.OpenStore(t.TempDir(), t.TempDir(), slog.New(slog.NewTextHandler(t.Output(), nil)))
	must(t, err)
	built, err := store.Build(t.Context(), disk.Empty{}, image.Spec{Source: "empty"}, nil)
	must(t, err)
	f, err := store.Open(built.Digest)
	must(t, err)
	defer f.Close()
	if h, err := diskfile.Look(f, int64(built.Size)); err != nil || h.Size != built.Info.DiskSize || built.Info.Disk != "qcow2" {
		t.Errorf("%+v %v, said %+v", h, err, built.Info)
	}
	if err := (disk.Empty{}).Check(image.Spec{Release: "12"}); !errs.Is(err, errs.Invalid) {
		t.Error(err)
	}
}

func TestCompressedDisksAreDisks(t *testing.T) {
	dir := t.TempDir()
	s, spool := newSource(t, dir)
	want := content(t)
	var gz, zs bytes.Buffer
	w := gzip.NewWriter(&gz)
	_, err := w.Write(want)
	must(t, errors.Join(err, w.Close()))
	z, err := zstd.NewWriter(&zs)
	must(t, err)
	_, err = z.Write(want)
	must(t, errors.Join(err, z.Close()))
	for name, b := range map[string][]byte{"plain": want, "gzip": gz.Bytes(), "zstd": zs.Bytes()} {
		if !disk.Likely(b[:min(len(b), disk.HeadSize)]) {
			t.Errorf("%s: not known as a disk", name)
		}
		id, err := s.Receive(t.Context(), bytes.NewReader(b), 0)
		must(t, err)
		file := filepath.Join(spool.Folder(id), "disk")
		var st unix.Stat_t
		must(t, unix.Stat(file, &st))
		if !bytes.Equal(read(t, file), want) || st.Blocks*512 > 2<<20 {
			t.Errorf("%s: kept with %d bytes on disk", name, st.Blocks*512)
		}
		must(t, spool.Discard(id))
	}
	if disk.Likely([]byte("not a disk at all")) || disk.Likely(nil) {
		t.Error("anything is a disk")
	}
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, unix.ECONNRESET }

func TestWhatIsRefusedLeavesNothing(t *testing.T) {
	var gz bytes.Buffer
	w := gzip.NewWriter(&gz)
	_, err := w.Write(content(t))
	must(t, errors.Join(err, w.Close()))
	base := filepath.Join(t.TempDir(), "base")
	qemuImg(t, "create", "-q", "-f", "qcow2", base, "10M")
	over := filepath.Join(t.TempDir(), "over")
	qemuImg(t, "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", over)
	huge := filepath.Join(t.TempDir(), "huge")
	qemuImg(t, "create", "-q", "-f", "qcow2", "-o", "cluster_size=2M", huge, "32T")
	for name, c := range map[string]struct {
		body  io.Reader
		max   uint64
		kind  errs.Kind
		field string
		says  string
	}{
		"on a backing file": {bytes.NewReader(read(t, over)), 0, errs.Invalid, "file", "backing file"},
		"of 32 TiB":         {bytes.NewReader(read(t, huge)), 0, errs.Invalid, "file", "16TiB"},
		"too large":         {bytes.NewReader(content(t)), 1 << 20, errs.Invalid, "max_size", "--max-size"},
		"cut":               {bytes.NewReader(gz.Bytes()[:gz.Len()/2]), 0, errs.Invalid, "file", "to its end"},
		"empty":             {bytes.NewReader(nil), 0, errs.Invalid, "file", "no disk"},
		"broken off":        {io.MultiReader(bytes.NewReader(content(t)[:9000]), broken{}), 0, errs.Cancelled, "", "import it again"},
	} {
		dir := t.TempDir()
		s, _ := newSource(t, dir)
		_, err := s.Receive(t.Context(), c.body, c.max)
		e, ok := errors.AsType[*errs.Error](err)
		if !ok || e.Kind != c.kind || e.Field != c.field || e.Hint == "" || !strings.Contains(e.Msg+e.Hint, c.says) {
			t.Errorf("%s: %+v", name, err)
		}
		if left, _ := os.ReadDir(dir); len(left) != 0 {
			t.Errorf("%s: left %v", name, left)
		}
	}
}

// What only qemu-img finds is found while the image is made.
func TestDamagedDisksAreRefused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "qcow2")
	raw := filepath.Join(t.TempDir(), "raw")
	must(t, os.WriteFile(raw, content(t), 0o600))
	qemuImg(t, "convert", "-f", "raw", "-O", "qcow2", raw, file)
	whole := read(t, file)
	patch := func(at int, value uint64) []byte {
		b := bytes.Clone(whole)
		binary.BigEndian.PutUint64(b[at:], value)
		return b
	}
	for name, b := range map[string][]byte{
		"table beyond the end": patch(40, 1<<40),
		"counts beyond":        patch(48, 1<<41),
		"cut":                  whole[:len(whole)/2],
	} {
		s, _ := newSource(t, t.TempDir())
		id, err := s.Receive(t.Context(), bytes.NewReader(b), 0)
		must(t, err)
		out := filepath.Join(t.TempDir(), "out")
		_, err = s.Make(t.Context(), image.Spec{Upload: id}, t.TempDir(), out, func(string, uint64, uint64, string, string) {})
		e, ok := errors.AsType[*errs.Error](err)
		if !ok || e.Kind != errs.Invalid || e.Field != "file" || e.Hint == "" {
			t.Errorf("%s: %+v", name, err)
		}
		t.Logf("%s: %v", name, err)
	}
}

// The host keeps some room for itself.
func TestADiskThatFillsTheHost(t *testing.T) {
	dir := t.TempDir()
	must(t, os.MkdirAll(dir, 0o700))
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=270m"))
	t.Cleanup(func() { must(t, unix.Unmount(dir, 0)) })
	s, _ := newSource(t, filepath.Join(dir, "spool"))
	b := make([]byte, 64<<20)
	copy(b[510:], "\x55\xaa")
	for i := range b[1<<20:] {
		b[1<<20+i] = byte(i>>9 | 1)
	}
	var zs bytes.Buffer
	z, err := zstd.NewWriter(&zs)
	must(t, err)
	_, err = z.Write(b)
	must(t, errors.Join(err, z.Close()))
	id, err := s.Receive(t.Context(), &zs, 0)
	must(t, err)
	_, err = s.Make(t.Context(), image.Spec{Upload: id}, dir, filepath.Join(dir, "out"), func(string, uint64, uint64, string, string) {})
	if !errs.Is(err, errs.NoSpace) {
		t.Error(err)
	}
}
