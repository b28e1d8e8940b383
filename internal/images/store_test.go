package images_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
	"lodge/internal/base/tool"
	"lodge/internal/images"
	"lodge/internal/model/image"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func quiet(string, uint64, uint64, string, string) {}

// source makes a tree by a function: what a real source does, without a mirror.
type source func(ctx context.Context, tree string) error

func (source) Name() string { return "test" }
func (source) Check(image.Spec) error {
	return tool.Need("image.build", map[string]string{"mkfs.erofs": "erofs-utils"})
}
func (s source) Make(ctx context.Context, _ image.Spec, dir, out string, told images.Told) (image.Info, error) {
	tree := filepath.Join(dir, "tree")
	if err := os.Mkdir(tree, 0o755); err != nil {
		return image.Info{}, err
	}
	if err := s(ctx, tree); err != nil {
		return image.Info{}, err
	}
	info, err := images.Inspect(tree)
	if err != nil {
		return image.Info{}, err
	}
	return info, images.WriteEROFS(ctx, tree, out, time.Unix(1700000000, 0), told)
}

// hello is a tree with what images must keep.
func hello(_ context.Context, tree string) error {
	program := filepath.Join(tree, "suid")
	return errors.Join(
		os.WriteFile(program, []byte("program"), 0o755),
		os.Chown(program, 1000, 65535),
		os.Chmod(program, 0o755|os.ModeSetuid),
		os.Link(program, filepath.Join(tree, "hard")),
		os.Symlink("suid", filepath.Join(tree, "soft")),
		unix.Setxattr(program, "user.lodge", []byte("kept"), 0),
		syscall.Mkfifo(filepath.Join(tree, "fifo"), 0o600),
		os.WriteFile(filepath.Join(tree, "zeros"), make([]byte, 1<<20), 0o644),
	)
}

func openStore(t *testing.T, dir, run string) *images.Store {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounts: needs root")
	}
	s, err := images.OpenStore(dir, run, slog.New(slog.NewTextHandler(t.Output(), nil)))
	must(t, err)
	t.Cleanup(func() { must(t, s.UnmountAll(context.Background())) })
	return s
}

func build(t *testing.T, s *images.Store, tree source) images.Built {
	t.Helper()
	built, err := s.Build(t.Context(), tree, image.Spec{}, quiet)
	must(t, err)
	return built
}

func TestBuildMountExportRemove(t *testing.T) {
	dir, run := t.TempDir(), t.TempDir()
	s := openStore(t, dir, run)
	built := build(t, s, hello)
	if again := build(t, s, hello); again.Digest != built.Digest {
		t.Errorf("the same tree gave %s, then %s", built.Digest, again.Digest)
	}
	at, err := s.Mount(t.Context(), built.Digest)
	must(t, err)
	var a, b, fs unix.Stat_t
	var flags unix.Statfs_t
	must(t, unix.Stat(filepath.Join(at, "suid"), &a))
	must(t, unix.Stat(filepath.Join(at, "hard"), &b))
	must(t, unix.Stat(at, &fs))
	must(t, unix.Statfs(at, &flags))
	if a.Mode != unix.S_IFREG|unix.S_ISUID|0o755 || a.Uid != 1000 || a.Gid != 65535 || a.Ino != b.Ino || a.Nlink != 2 {
		t.Errorf("suid: %+v", a)
	}
	if flags.Flags&unix.ST_RDONLY == 0 || flags.Flags&unix.ST_NODEV == 0 || flags.Flags&(unix.ST_NOSUID|unix.ST_NOEXEC) != 0 {
		t.Errorf("flags of the mount: %x", flags.Flags)
	}

	// A later daemon finds the mount and does not make another one.
	later := openStore(t, dir, run)
	if again, err := later.Mount(t.Context(), built.Digest); err != nil || again != at {
		t.Errorf("mounted again: %q %v", again, err)
	}
	if n := mounts(t, at); n != 1 {
		t.Errorf("%d mounts at %s", n, at)
	}
	testExport(t, s, built)

	busy, err := os.Open(at)
	must(t, err)
	if err := s.Remove(t.Context(), built.Digest); !errs.Is(err, errs.Busy) {
		t.Errorf("removed while in use: %v", err)
	}
	must(t, busy.Close())
	must(t, s.Remove(t.Context(), built.Digest))
	must(t, s.Remove(t.Context(), built.Digest))
	if blobs, err := s.Blobs(); err != nil || len(blobs) != 0 {
		t.Errorf("blobs: %v %v", blobs, err)
	}
	if _, err := s.Mount(t.Context(), built.Digest); !errs.Is(err, errs.NotFound) {
		t.Errorf("mounting what is gone: %v", err)
	}
	for _, bad := range []string{"", "../../etc/passwd", strings.Repeat("A", 64)} {
		if _, err := s.Mount(t.Context(), bad); !errs.Is(err, errs.Invalid) {
			t.Errorf("digest %q: %v", bad, err)
		}
	}
}

func testExport(t *testing.T, s *images.Store, built images.Built) {
	var raw, tree bytes.Buffer
	must(t, s.Export(t.Context(), built.Digest, "erofs", &raw))
	if sum := sha256.Sum256(raw.Bytes()); hex.EncodeToString(sum[:]) != built.Digest || uint64(raw.Len()) != built.Size {
		t.Errorf("exported file is not the image")
	}
	must(t, s.Export(t.Context(), built.Digest, "tar", &tree))
	got := map[string]*tar.Header{}
	var order []string
	for r := tar.NewReader(&tree); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		must(t, err)
		got[h.Name] = h
		order = append(order, h.Name)
	}
	if want := []string{"./", "./fifo", "./hard", "./soft", "./suid", "./zeros"}; !slices.Equal(order, want) {
		t.Fatalf("exported %v, want %v", order, want)
	}
	h := got["./hard"]
	if h.Mode != 0o4755 || h.Uid != 1000 || h.Gid != 65535 || h.PAXRecords["SCHILY.xattr.user.lodge"] != "kept" {
		t.Errorf("exported: %+v", h)
	}
	if l := got["./suid"]; l.Typeflag != tar.TypeLink || l.Linkname != "./hard" {
		t.Errorf("exported: %+v", l)
	}
	if err := s.Export(t.Context(), built.Digest, "zip", io.Discard); !errs.Is(err, errs.Invalid) {
		t.Errorf("format zip: %v", err)
	}
}

func mounts(t *testing.T, at string) (n int) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	return strings.Count(string(b), " "+at+" ")
}

func entries(t *testing.T, dir string) (names []string) {
	list, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

func TestNothingIsLeftOfAFailedBuild(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, t.TempDir())
	boom := errors.New("boom")
	_, err := s.Build(t.Context(), source(func(_ context.Context, tree string) error {
		return errors.Join(os.WriteFile(filepath.Join(tree, "half"), nil, 0o644), boom)
	}), image.Spec{}, quiet)
	if !errors.Is(err, boom) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	_, err = s.Build(ctx, source(func(context.Context, string) error { cancel(); return nil }), image.Spec{}, quiet)
	if !errs.Is(err, errs.Cancelled) {
		t.Error(err)
	}
	if left := append(entries(t, filepath.Join(dir, "tmp")), entries(t, filepath.Join(dir, "blobs"))...); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func TestOpenRemovesWhatACrashLeft(t *testing.T) {
	dir := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(dir, "tmp/debian-1/work/tree"), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "tmp/debian-1/image.erofs"), []byte("half"), 0o644))
	openStore(t, dir, t.TempDir())
	if left := entries(t, filepath.Join(dir, "tmp")); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// smallDisk mounts a tmpfs of the given size.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounts: needs root")
	}
	dir := t.TempDir()
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size))
	t.Cleanup(func() { must(t, unix.Unmount(dir, 0)) })
	return dir
}

// fill takes space on the disk of dir.
func fill(dir string, size int64) error {
	f, err := os.Create(filepath.Join(dir, "filler"))
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Fallocate(int(f.Fd()), 0, 0, size)
}

func TestAFullDiskIsSaidAndLeavesNothing(t *testing.T) {
	dir := smallDisk(t, "16m")
	s := openStore(t, dir, t.TempDir())
	_, err := s.Build(t.Context(), source(hello), image.Spec{}, quiet)
	if e, ok := errors.AsType[*errs.Error](err); !ok || e.Kind != errs.NoSpace || e.Hint == "" {
		t.Errorf("no room to start: %v", err)
	}
	dir = smallDisk(t, "300m")
	s = openStore(t, dir, t.TempDir())
	big := func(_ context.Context, tree string) error { return fill(tree, 400<<20) }
	_, err = s.Build(t.Context(), source(big), image.Spec{}, quiet)
	if e, ok := errors.AsType[*errs.Error](err); !ok || e.Kind != errs.NoSpace || e.Hint == "" {
		t.Errorf("filled while the tree was made: %v", err)
	}
	// Here the tree fits and the image does not: mkfs.erofs meets the end.
	twice := func(_ context.Context, tree string) error {
		b := make([]byte, 8<<20)
		rand.Read(b)
		return errors.Join(os.WriteFile(filepath.Join(tree, "random"), b, 0o600), fill(filepath.Dir(tree), 288<<20))
	}
	_, err = s.Build(t.Context(), source(twice), image.Spec{}, quiet)
	if !errs.Is(err, errs.NoSpace) {
		t.Errorf("filled while the image was written: %v", err)
	}
	if left := append(entries(t, filepath.Join(dir, "tmp")), entries(t, filepath.Join(dir, "blobs"))...); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	build(t, s, hello) // after space was made, everything goes on
}
