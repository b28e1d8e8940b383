package tarball

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
	"lodge/internal/images"
	"lodge/internal/model/image"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newSource(t testing.TB, dir string) *Source {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("sets owners: needs root")
	}
	spool, err := images.OpenSpool(dir)
	must(t, err)
	return New(spool)
}

func stream(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		must(t, w.WriteHeader(&h))
		_, err := io.WriteString(w, strings.Repeat("x", int(h.Size)))
		must(t, err)
	}
	must(t, w.Close())
	return b.Bytes()
}

func good(t testing.TB) []byte {
	return stream(t,
		tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o755},
		tar.Header{Typeflag: tar.TypeDir, Name: "./etc/", Mode: 0o755},
		tar.Header{Typeflag: tar.TypeReg, Name: "./etc/shadow", Mode: 0o640, Gid: 42, Size: 3},
		tar.Header{Typeflag: tar.TypeReg, Name: "./sbin/init", Mode: 0o755, Size: 9, PAXRecords: map[string]string{
			"SCHILY.xattr.user.kept": "yes", "SCHILY.xattr.trusted.overlay.redirect": "/etc"}},
		tar.Header{Typeflag: tar.TypeLink, Name: "./sbin/halt", Linkname: "./sbin/init"},
		tar.Header{Typeflag: tar.TypeSymlink, Name: "./bin", Linkname: "/sbin", Uid: 65535},
		tar.Header{Typeflag: tar.TypeDir, Name: "./dev/", Mode: 0o755},
		tar.Header{Typeflag: tar.TypeChar, Name: "./dev/null", Mode: 0o666, Devmajor: 1, Devminor: 3},
	)
}

func packed(t *testing.T, b []byte, pack func(io.Writer) (io.WriteCloser, error)) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := pack(&out)
	must(t, err)
	_, err = w.Write(b)
	must(t, err)
	must(t, w.Close())
	return out.Bytes()
}

func TestImportOfEachCompressionIsTheSame(t *testing.T) {
	s := newSource(t, t.TempDir())
	store, err := images.OpenStore(t.TempDir(), t.TempDir(), slog.New(slog.NewTextHandler(t.Output(), nil)))
	must(t, err)
	t.Cleanup(func() { must(t, store.UnmountAll(context.Background())) })
	plain, digest := good(t), ""
	for name, b := range map[string][]byte{
		"plain": plain,
		"gzip":  packed(t, plain, func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil }),
		"zstd":  packed(t, plain, func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) }),
		"xz":    packed(t, plain, func(w io.Writer) (io.WriteCloser, error) { return xz.NewWriter(w) }),
	} {
		id, err := s.Receive(t.Context(), bytes.NewReader(b), 0)
		must(t, err)
		spec := image.Spec{Source: "import", Upload: id}
		built, err := store.Build(t.Context(), s, spec, func(string, uint64, uint64, string, string) {})
		must(t, err)
		if digest != "" && built.Digest != digest {
			t.Errorf("%s gave another image", name)
		}
		digest = built.Digest
		must(t, s.spool.Discard(id))
		if err := s.Check(spec); !errs.Is(err, errs.NotFound) {
			t.Errorf("discarded, and yet: %v", err)
		}
	}
	at, err := store.Mount(t.Context(), digest)
	must(t, err)
	var init, halt, shadow, bin unix.Stat_t
	must(t, unix.Stat(filepath.Join(at, "sbin/init"), &init))
	must(t, unix.Stat(filepath.Join(at, "sbin/halt"), &halt))
	must(t, unix.Stat(filepath.Join(at, "etc/shadow"), &shadow))
	must(t, unix.Lstat(filepath.Join(at, "bin"), &bin))
	if init.Ino != halt.Ino || shadow.Mode != unix.S_IFREG|0o640 || shadow.Gid != 42 || bin.Uid != 65535 {
		t.Errorf("init %+v halt %+v shadow %+v bin %+v", init, halt, shadow, bin)
	}
	v := make([]byte, 10)
	if n, err := unix.Getxattr(filepath.Join(at, "sbin/init"), "user.kept", v); err != nil || string(v[:n]) != "yes" {
		t.Errorf("user.kept: %v", err)
	}
	if _, err := unix.Getxattr(filepath.Join(at, "sbin/init"), "trusted.overlay.redirect", v); !errors.Is(err, unix.ENODATA) {
		t.Errorf("an attribute that redirects the overlay was imported: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(at, "dev/null")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("dev/null: %v", err)
	}
}

func TestHostileUploadsAreRefusedAndLeaveNothing(t *testing.T) {
	zeros, err := os.Open("/dev/zero")
	must(t, err)
	t.Cleanup(func() { zeros.Close() })
	var bomb bytes.Buffer // the header of 4 GB of zeros, and the first of them
	must(t, tar.NewWriter(&bomb).WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "zeros", Size: 4 << 30}))
	four := io.LimitReader(zeros, 4<<30)
	tests := []struct {
		name, field string
		say         string // what message and hint must name
		body        io.Reader
	}{
		{"dots", "file", "../evil", bytes.NewReader(stream(t, tar.Header{Typeflag: tar.TypeReg, Name: "../evil"}))},
		{"through an absolute link", "file", "x/evil", bytes.NewReader(stream(t,
			tar.Header{Typeflag: tar.TypeSymlink, Name: "x", Linkname: "/etc"}, tar.Header{Typeflag: tar.TypeReg, Name: "x/evil"}))},
		{"hard link out", "file", "x", bytes.NewReader(stream(t, tar.Header{Typeflag: tar.TypeLink, Name: "x", Linkname: "../../etc/passwd"}))},
		{"device", "file", "device node", bytes.NewReader(stream(t, tar.Header{Typeflag: tar.TypeBlock, Name: "srv/sda", Devmajor: 8}))},
		{"owner", "file", "65535", bytes.NewReader(stream(t, tar.Header{Typeflag: tar.TypeReg, Name: "x", Uid: 100000}))},
		{"a file of 4 GB of zeros", "max_size", "--max-size", io.MultiReader(&bomb, four)},
		{"4 GB of zeros", "file", "nothing in the tar", io.LimitReader(zeros, 4<<30)},
		{"text", "file", "not a whole tar", strings.NewReader(strings.Repeat("hello\n", 1000))},
		{"empty", "file", "nothing in the tar", strings.NewReader("")},
		{"cut", "file", "not a whole tar", bytes.NewReader(stream(t, tar.Header{Typeflag: tar.TypeReg, Name: "x", Size: 9000})[:5000])},
		{"cut gzip", "file", "not a whole tar", bytes.NewReader([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0})},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			_, err := newSource(t, dir).Receive(t.Context(), tt.body, 0)
			e, ok := errors.AsType[*errs.Error](err)
			if !ok || e.Kind != errs.Invalid || e.Field != tt.field || e.Hint == "" || !strings.Contains(e.Msg+e.Hint, tt.say) {
				t.Errorf("%+v", err)
			}
			if left, _ := os.ReadDir(dir); len(left) != 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

func TestTheLimitIsForAllFilesTogether(t *testing.T) {
	s := newSource(t, t.TempDir())
	b := stream(t, tar.Header{Typeflag: tar.TypeReg, Name: "a", Size: 600}, tar.Header{Typeflag: tar.TypeReg, Name: "b", Size: 600})
	if _, err := s.Receive(t.Context(), bytes.NewReader(b), 1199); !errs.Is(err, errs.Invalid) {
		t.Error(err)
	}
	if _, err := s.Receive(t.Context(), bytes.NewReader(b), 1200); err != nil {
		t.Error(err)
	}
}

func TestAFullDiskIsNotTheSendersFault(t *testing.T) {
	dir := t.TempDir()
	newSource(t, dir)
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"))
	t.Cleanup(func() { must(t, unix.Unmount(dir, 0)) })
	b := stream(t, tar.Header{Typeflag: tar.TypeReg, Name: "a", Size: 1 << 20})
	if _, err := newSource(t, dir).Receive(t.Context(), bytes.NewReader(b), 0); !errs.Is(err, errs.NoSpace) {
		t.Error(err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// What a crash of the host left may have holes in it.
func TestAnUploadOfAnotherBootDoesNotCount(t *testing.T) {
	s := newSource(t, t.TempDir())
	id, err := s.Receive(t.Context(), bytes.NewReader(good(t)), 0)
	must(t, err)
	spec := image.Spec{Source: "import", Upload: id}
	must(t, s.Check(spec))
	must(t, os.WriteFile(filepath.Join(s.spool.Folder(id), "stamp"), []byte("00000000-0000-0000-0000-000000000000\n1\n"), 0o600))
	if err := s.Check(spec); !errs.Is(err, errs.NotFound) {
		t.Error(err)
	}
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, syscall.ECONNRESET }

func TestABrokenUploadLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	s := newSource(t, dir)
	body := io.MultiReader(bytes.NewReader(good(t)[:2000]), broken{})
	if _, err := s.Receive(t.Context(), body, 0); !errs.Is(err, errs.Cancelled) {
		t.Error(err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func TestSweepKeepsWhatIsWanted(t *testing.T) {
	dir := t.TempDir()
	s := newSource(t, dir)
	wanted, err := s.Receive(t.Context(), bytes.NewReader(good(t)), 0)
	must(t, err)
	_, err = s.Receive(t.Context(), bytes.NewReader(good(t)), 0)
	must(t, err)
	must(t, os.MkdirAll(filepath.Join(dir, ".upload-1/tree"), 0o700))
	must(t, s.spool.Sweep(func(id string) bool { return id == wanted }))
	if left, _ := os.ReadDir(dir); len(left) != 1 || left[0].Name() != wanted {
		t.Errorf("left: %v", left)
	}
}

func FuzzReceive(f *testing.F) {
	f.Add(good(f))
	f.Add(stream(f, tar.Header{Typeflag: tar.TypeSymlink, Name: "x", Linkname: "/etc"}, tar.Header{Typeflag: tar.TypeReg, Name: "x/evil"}))
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd, 0, 0, 0, 0})
	f.Add([]byte("\xfd7zXZ\x00\x00\x04"))
	f.Fuzz(func(t *testing.T, b []byte) {
		base := t.TempDir()
		dir := filepath.Join(base, "uploads")
		id, err := newSource(t, dir).Receive(t.Context(), bytes.NewReader(b), 1<<20)
		left, _ := os.ReadDir(dir)
		if (err == nil) != (len(left) == 1 && left[0].Name() == id) {
			t.Errorf("%v, and left is %v", err, left)
		}
		if outside, _ := os.ReadDir(base); len(outside) != 1 {
			t.Errorf("written outside: %v", outside)
		}
	})
}
