package treetar

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func open(t testing.TB, dir string) *os.File {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// stream makes a tar of headers; a regular file's content is its Size in "x".
func stream(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, strings.Repeat("x", int(h.Size))); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func unpack(t testing.TB, b []byte, dir string) error {
	return Unpack(t.Context(), tar.NewReader(bytes.NewReader(b)), open(t, dir), nil)
}

func file(name string, size int64) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size}
}

func link(name, to string) tar.Header {
	return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}
}

func folder(name string) tar.Header {
	return tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755}
}

func TestRoundTripKeepsEverything(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("sets owners: needs root")
	}
	from, to := t.TempDir(), t.TempDir()
	tree := filepath.Join(from, "tree")
	must(t, os.MkdirAll(filepath.Join(tree, "d/empty"), 0o755))
	must(t, os.WriteFile(filepath.Join(tree, "d/suid"), []byte("program"), 0o700))
	must(t, os.Chown(filepath.Join(tree, "d/suid"), 1000, 65534))
	must(t, os.Chmod(filepath.Join(tree, "d/suid"), 0o755|os.ModeSetuid|os.ModeSetgid))
	must(t, os.Link(filepath.Join(tree, "d/suid"), filepath.Join(tree, "hard")))
	must(t, os.Symlink("../outside", filepath.Join(tree, "soft")))
	must(t, os.Lchown(filepath.Join(tree, "soft"), 7, 8))
	must(t, syscall.Mkfifo(filepath.Join(tree, "fifo"), 0o640))
	sparse, err := os.Create(filepath.Join(tree, "sparse"))
	must(t, err)
	must(t, sparse.Truncate(8<<20))
	_, err = sparse.WriteAt([]byte("end"), 8<<20-3)
	must(t, err)
	must(t, sparse.Close())
	must(t, unix.Setxattr(filepath.Join(tree, "hard"), "user.lodge", []byte("v\x00w"), 0))
	capability := []byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	must(t, unix.Setxattr(filepath.Join(tree, "hard"), "security.capability", capability, 0))
	must(t, os.Chmod(filepath.Join(tree, "d"), 0o751|os.ModeSticky))
	at := time.Unix(1234567890, 987654321)
	for _, n := range []string{"d/suid", "d", "."} {
		must(t, os.Chtimes(filepath.Join(tree, n), at, at))
	}

	var b bytes.Buffer
	w := tar.NewWriter(&b)
	must(t, Pack(t.Context(), w, open(t, tree), "copy", ""))
	must(t, w.Close())
	must(t, unpack(t, b.Bytes(), to))

	for _, n := range []string{".", "d", "d/empty", "d/suid", "hard", "soft", "fifo", "sparse"} {
		var a, b syscall.Stat_t
		must(t, syscall.Lstat(filepath.Join(tree, n), &a))
		must(t, syscall.Lstat(filepath.Join(to, "copy", n), &b))
		if a.Mode != b.Mode || a.Uid != b.Uid || a.Gid != b.Gid || a.Nlink != b.Nlink || a.Mtim != b.Mtim {
			t.Errorf("%s: %+v became %+v", n, a, b)
		}
		if n == "sparse" && (b.Size != a.Size || b.Blocks > 512) {
			t.Errorf("sparse: %d bytes in %d blocks", b.Size, b.Blocks)
		}
	}
	if l, err := os.Readlink(filepath.Join(to, "copy/soft")); err != nil || l != "../outside" {
		t.Errorf("soft: %q %v", l, err)
	}
	for name, want := range map[string]string{"user.lodge": "v\x00w", "security.capability": string(capability)} {
		v := make([]byte, 100)
		n, err := unix.Getxattr(filepath.Join(to, "copy/d/suid"), name, v)
		if err != nil || string(v[:n]) != want {
			t.Errorf("%s: %q %v", name, v[:max(n, 0)], err)
		}
	}
}

func TestHostileEntriesAreRefused(t *testing.T) {
	outside := t.TempDir()
	tests := []struct {
		name    string
		escape  bool
		entries []tar.Header
	}{
		{"dots", true, []tar.Header{file("../evil", 1)}},
		{"dots inside", true, []tar.Header{file("a/../../evil", 1)}},
		{"absolute link", true, []tar.Header{link("x", outside), file("x/evil", 1)}},
		{"relative link", true, []tar.Header{link("x", "../../../../../../.."), folder("x/evil")}},
		{"link of links", true, []tar.Header{folder("a"), link("a/b", ".."), link("a/c", "b/.."), file("a/c/evil", 1)}},
		{"folder over a link out", true, []tar.Header{link("x", outside), folder("x")}},
		{"hard link out by dots", true, []tar.Header{{Typeflag: tar.TypeLink, Name: "x", Linkname: "../../etc/passwd"}}},
		{"hard link out by a link", true, []tar.Header{link("e", "/etc"), {Typeflag: tar.TypeLink, Name: "x", Linkname: "e/passwd"}}},
		{"hard link to nothing", false, []tar.Header{{Typeflag: tar.TypeLink, Name: "x", Linkname: "no"}}},
		{"device", false, []tar.Header{{Typeflag: tar.TypeBlock, Name: "sda", Devmajor: 8}}},
		{"file over a folder", false, []tar.Header{folder("x"), file("x", 1)}},
		{"a long name", false, []tar.Header{file(strings.Repeat("n", 300), 1)}},
		{"a file for a root", false, []tar.Header{file(".", 1)}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := unpack(t, stream(t, tt.entries...), t.TempDir())
			if _, ok := errors.AsType[*Entry](err); !ok {
				t.Errorf("not refused with the entry's name: %v", err)
			}
			if errors.Is(err, ErrEscape) != tt.escape {
				t.Errorf("escape is %v: %v", !tt.escape, err)
			}
			if left, _ := os.ReadDir(outside); len(left) != 0 {
				t.Errorf("written outside: %v", left)
			}
		})
	}
}

func TestNamesAreTakenAsRelative(t *testing.T) {
	dir := t.TempDir()
	must(t, unpack(t, stream(t, folder("./"), file("/etc/a", 1), file("./etc//b", 1)), dir))
	for _, n := range []string{"etc/a", "etc/b"} {
		if _, err := os.Stat(filepath.Join(dir, n)); err != nil {
			t.Error(err)
		}
	}
}

func TestFoldersAndLinksToThemAreKept(t *testing.T) {
	dir := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(dir, "usr/lib"), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "usr/lib/old"), nil, 0o644))
	must(t, os.Symlink("usr/lib", filepath.Join(dir, "lib")))
	must(t, os.Symlink("/etc/passwd", filepath.Join(dir, "file")))
	must(t, unpack(t, stream(t, folder("lib"), file("lib/new", 3), file("file", 2)), dir))
	for name, size := range map[string]int64{"usr/lib/old": 0, "usr/lib/new": 3, "file": 2} {
		if fi, err := os.Lstat(filepath.Join(dir, name)); err != nil || !fi.Mode().IsRegular() || fi.Size() != size {
			t.Errorf("%s: %v %v", name, fi, err)
		}
	}
}

func TestACutStreamIsAnError(t *testing.T) {
	whole := stream(t, file("a", 100_000))
	for _, n := range []int{600, 66_048, 100_000} {
		if err := unpack(t, whole[:n], t.TempDir()); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut at %d: %v", n, err)
		}
	}
}

// Somebody in the guest swaps a folder for a link that leads out, all the time
// while a tree is unpacked: nothing may ever arrive outside.
func TestSwappedLinksDoNotLeadOut(t *testing.T) {
	outside, dir := t.TempDir(), t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, "folder"), 0o755))
	must(t, os.Symlink(outside, filepath.Join(dir, "link")))
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				_ = unix.Renameat2(unix.AT_FDCWD, filepath.Join(dir, "folder"), unix.AT_FDCWD, filepath.Join(dir, "link"), unix.RENAME_EXCHANGE)
			}
		}
	}()
	entries := []tar.Header{folder("folder")}
	for _, n := range []string{"a", "b", "c", "d"} {
		entries = append(entries, file("folder/"+n, 10), folder("folder/sub"), file("folder/sub/"+n, 10),
			tar.Header{Typeflag: tar.TypeLink, Name: "folder/h" + n, Linkname: "folder/" + n}, link("folder/s"+n, "x"))
	}
	b := stream(t, entries...)
	escapes, wins := 0, 0
	for range 2000 {
		switch err := unpack(t, b, dir); {
		case err == nil:
			wins++
		case errors.Is(err, ErrEscape):
			escapes++
		}
	}
	close(stop)
	<-stopped
	if left, _ := os.ReadDir(outside); len(left) != 0 {
		t.Errorf("written outside: %v", left)
	}
	if fi, err := os.Stat(outside); err != nil || fi.Mode().Perm() != 0o755 && fi.Mode().Perm() != 0o700 {
		t.Errorf("the folder outside was changed: %v %v", fi, err)
	}
	if escapes == 0 {
		t.Skipf("no race was seen (%d unpacked); nothing proved", wins)
	}
}

func TestCancelStops(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := Unpack(ctx, tar.NewReader(bytes.NewReader(stream(t, file("a", 1)))), open(t, t.TempDir()), nil)
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func FuzzUnpack(f *testing.F) {
	f.Add(stream(f, folder("d"), file("d/f", 10), link("l", "d"), file("l/g", 3)))
	f.Add(stream(f, tar.Header{Typeflag: tar.TypeLink, Name: "x", Linkname: "../y"}))
	f.Add(stream(f, tar.Header{Typeflag: tar.TypeReg, Name: "x", PAXRecords: map[string]string{"SCHILY.xattr.user.a": "b"}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		base := t.TempDir()
		inner := filepath.Join(base, "inner")
		must(t, os.Mkdir(inner, 0o755))
		// Only what fits into a test: sizes come from the stream.
		total := int64(0)
		_ = Unpack(t.Context(), tar.NewReader(bytes.NewReader(b)), open(t, inner), func(h *tar.Header) (bool, error) {
			if total += h.Size; total > 1<<20 {
				return false, errors.New("too large")
			}
			return true, nil
		})
		if left, _ := os.ReadDir(base); len(left) != 1 {
			t.Errorf("written outside: %v", left)
		}
	})
}
