package trees

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"lodge/internal/base/trees/treestest"
)

func needRoot(t testing.TB) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: owners, devices and trusted attributes")
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func folder(t testing.TB, dir string) *os.File {
	t.Helper()
	f, err := os.Open(dir)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func deepDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	t.Cleanup(func() { must(t, Clear(context.Background(), folder(t, dir))) }) // testing's own cannot remove what is so deep
	return dir
}

func TestACopyIsTheSame(t *testing.T) {
	needRoot(t)
	for _, share := range []bool{false, true} {
		t.Run("share "+strconv.FormatBool(share), func(t *testing.T) {
			from, to := deepDir(t), deepDir(t)
			treestest.Odd(t, from, 300, 3<<20)
			want := treestest.Manifest(t, from)
			var last Size
			told := func(s Size) {
				if s.Files < last.Files || s.Bytes < last.Bytes {
					t.Errorf("told %+v after %+v", s, last)
				}
				last = s
			}
			must(t, Copy(t.Context(), folder(t, from), folder(t, to), Options{Share: share, Told: told}))
			treestest.Same(t, treestest.Manifest(t, to), want)
			treestest.Same(t, treestest.Manifest(t, from), want)
			size, err := Count(t.Context(), folder(t, from))
			must(t, err)
			copied, err := Count(t.Context(), folder(t, to))
			must(t, err)
			if size.Files != copied.Files || size.Files != last.Files || last.Bytes == 0 {
				t.Errorf("%+v became %+v, told %+v", size, copied, last)
			}
		})
	}
}

// A process may have few files open; a guest's tree may be deeper.
func TestNoDepthExhaustsDescriptors(t *testing.T) {
	needRoot(t)
	var was unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &was))
	from, to := deepDir(t), deepDir(t)
	fd, err := unix.Open(from, folderFlags, 0)
	must(t, err)
	for range 2000 {
		must(t, unix.Mkdirat(fd, "d", 0o755))
		must(t, unix.Mkdirat(fd, "e", 0o755))
		must(t, unix.Mknodat(fd, "f", unix.S_IFREG|0o644, 0))
		next, err := unix.Openat(fd, "d", folderFlags, 0)
		must(t, err)
		unix.Close(fd)
		fd = next
	}
	unix.Close(fd)
	src, dst := folder(t, from), folder(t, to)
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 250, Max: was.Max}))
	defer func() { must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &was)) }()
	must(t, Copy(t.Context(), src, dst, Options{}))
	size, err := Count(t.Context(), dst)
	must(t, err)
	if size.Files != 6001 {
		t.Errorf("%d files, want 6001", size.Files)
	}
	must(t, Clear(t.Context(), dst))
	if left, err := os.ReadDir(to); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestALostAttributeIsAnError(t *testing.T) {
	needRoot(t)
	fs, err := unix.Fsopen("ramfs", unix.FSOPEN_CLOEXEC) // which keeps no attributes at all
	must(t, err)
	defer unix.Close(fs)
	must(t, unix.FsconfigCreate(fs))
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	must(t, err)
	ramfs := os.NewFile(uintptr(fd), "ramfs")
	defer ramfs.Close()
	from := deepDir(t)
	must(t, os.WriteFile(filepath.Join(from, "f"), nil, 0o600))
	must(t, unix.Setxattr(filepath.Join(from, "f"), "user.x", []byte("y"), 0))
	if err := Copy(t.Context(), folder(t, from), ramfs, Options{}); !errors.Is(err, unix.EOPNOTSUPP) {
		t.Errorf("copying an attribute to where it cannot be kept: %v", err)
	}
}

func TestClearFollowsNoLink(t *testing.T) {
	outside, dir := t.TempDir(), t.TempDir()
	must(t, os.WriteFile(filepath.Join(outside, "kept"), nil, 0o600))
	must(t, os.Symlink(outside, filepath.Join(dir, "link")))
	must(t, os.MkdirAll(filepath.Join(dir, "a/b/c"), 0o700))
	must(t, Clear(t.Context(), folder(t, dir)))
	if _, err := os.Stat(filepath.Join(outside, "kept")); err != nil {
		t.Error(err)
	}
}

func TestCancelStops(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "f"), nil, 0o600))
	if err := Clear(ctx, folder(t, dir)); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
