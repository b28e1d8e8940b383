package guest

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lodge/api"
)

// TestDecide has docker cp's table of rules.
func TestDecide(t *testing.T) {
	for _, c := range []struct {
		source string
		dir    bool
		to     string
		at     found
		want   target // empty: refused
	}{
		{"/a/f", false, "/x/new", nothing, target{"/x", "new"}},
		{"/a/f", false, "new", nothing, target{".", "new"}},
		{"/a/f", false, "/x/new/", nothing, target{}},
		{"/a/f", false, "/x/old", aFile, target{"/x", "old"}},
		{"/a/f", false, "/x/old/", aFile, target{}},
		{"/a/f", false, "/x", aDir, target{"/x", "f"}},
		{"/a/d", true, "/x/new", nothing, target{"/x", "new"}},
		{"/a/d", true, "/x/new/", nothing, target{"/x", "new"}},
		{"/a/d/.", true, "/x/new", nothing, target{"/x", "new"}},
		{"/a/d", true, "/x/old", aFile, target{}},
		{"/a/d", true, "/x", aDir, target{"/x", "d"}},
		{"/a/d/.", true, "/x", aDir, target{"/x", "."}},
		{"/", true, "/x", aDir, target{"/x", "."}},
	} {
		base := filepath.Base(filepath.Clean(c.source))
		got, err := decide(c.source, base, c.dir, c.to, c.at)
		if (err != nil) != (c.want == target{}) || got != c.want {
			t.Errorf("decide(%q, dir %v, %q, %v) = %v, %v; want %v", c.source, c.dir, c.to, c.at, got, err, c.want)
		}
	}
}

func TestPlace(t *testing.T) {
	for text, want := range map[string]location{
		"web1:/etc": {"web1", "/etc"}, "web1:etc": {"web1", "/etc"}, "web1:": {"web1", "/"}, "file": {"", "file"},
		"./a:b": {"", "./a:b"}, "/a:b": {"", "/a:b"}, ":x": {"", ":x"}, "-": {"", "-"},
	} {
		if got := place(text); got != want {
			t.Errorf("place(%q) = %v, want %v", text, got, want)
		}
	}
}

func TestLoads(t *testing.T) {
	at := time.Unix(1000, 0)
	before := []api.Usage{{Name: "a", At: at, CPUSeconds: 10, RxBytes: 100}, {Name: "b", At: at, CPUSeconds: 50}}
	now := []api.Usage{
		{Name: "a", At: at.Add(2 * time.Second), CPUSeconds: 13, RxBytes: 300, MemoryBytes: 5},
		{Name: "b", At: at.Add(2 * time.Second), CPUSeconds: 1, MemoryBytes: 7}, // started anew
		{Name: "c", At: at, MemoryBytes: 6},
	}
	list := loads(before, now)
	if list[0].CPUPercent != 150 || list[0].RxRate != 100 || list[1].CPUPercent != 0 || list[2].CPUPercent != 0 {
		t.Errorf("%+v", list)
	}
	names := func() (s string) {
		for _, l := range list {
			s += l.Name
		}
		return s
	}
	for o, want := range map[order]string{{'m', false}: "bca", {'m', true}: "acb", {'c', false}: "abc", {'n', true}: "cba"} {
		if sortLoads(list, o); names() != want {
			t.Errorf("sorted by %c: %s, want %s", o.key, names(), want)
		}
	}
}

func tarOf(t testing.TB, headers ...*tar.Header) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		w.Write(make([]byte, h.Size))
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// unpackBytes unpacks into "in" of a fresh directory and returns that directory.
func unpackBytes(t *testing.T, data []byte) (string, error) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "in"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "secret"), []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(filepath.Join(dir, "in"))
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	in := tar.NewReader(bytes.NewReader(data))
	first, err := in.Next()
	if err != nil {
		return dir, err
	}
	return dir, unpack(context.Background(), root, "got", first, in, func(string, ...any) {})
}

// FuzzUnpack gives a guest's tar every shape: nothing outside the target may
// come to be, change, or be linked to.
func FuzzUnpack(f *testing.F) {
	f.Add(tarOf(f, &tar.Header{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o755}, &tar.Header{Name: "d/f", Typeflag: tar.TypeReg, Mode: 0o4755, Size: 3}))
	f.Add(tarOf(f, &tar.Header{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o755}, &tar.Header{Name: "d/../../x", Typeflag: tar.TypeReg, Size: 3}))
	f.Add(tarOf(f, &tar.Header{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o755}, &tar.Header{Name: "d/l", Typeflag: tar.TypeSymlink, Linkname: "../.."}, &tar.Header{Name: "d/l/x", Typeflag: tar.TypeReg, Size: 3}))
	f.Add(tarOf(f, &tar.Header{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o755}, &tar.Header{Name: "d/l", Typeflag: tar.TypeSymlink, Linkname: "../../secret"}, &tar.Header{Name: "d/h", Typeflag: tar.TypeLink, Linkname: "d/l"}))
	f.Add(tarOf(f, &tar.Header{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o755}, &tar.Header{Name: "d/h", Typeflag: tar.TypeLink, Linkname: "../secret"}))
	f.Add(tarOf(f, &tar.Header{Name: "d/", Typeflag: tar.TypeDir, Mode: 0}, &tar.Header{Name: "d/c", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}))
	f.Fuzz(func(t *testing.T, data []byte) {
		if claimed(data) > 1<<20 {
			t.Skip("a sparse entry that is only long")
		}
		dir, _ := unpackBytes(t, data)
		entries, err := os.ReadDir(dir)
		if err != nil || len(entries) != 2 {
			t.Fatalf("something escaped: %v %v", entries, err)
		}
		secret, err := os.Lstat(filepath.Join(dir, "secret"))
		if err != nil || secret.Size() != 6 || secret.Mode() != 0o600 || links(secret) != 1 {
			t.Fatalf("the file outside was reached: %v %v", secret, err)
		}
		filepath.WalkDir(filepath.Join(dir, "in"), func(p string, d fs.DirEntry, err error) error {
			if err != nil {
				return nil
			}
			if d.Type()&(fs.ModeDevice|fs.ModeNamedPipe) != 0 {
				t.Errorf("%s is a device", p)
			}
			if fi, err := d.Info(); err == nil && fi.Mode()&(fs.ModeSetuid|fs.ModeSetgid) != 0 {
				t.Errorf("%s has a set-id bit", p)
			}
			return nil
		})
	})
}

// claimed is how many bytes the entries say to hold.
func claimed(data []byte) (sum int64) {
	in := tar.NewReader(bytes.NewReader(data))
	for {
		h, err := in.Next()
		if err != nil {
			return sum
		}
		// Reading on would be as long; so the first long one decides.
		if sum += h.Size; sum > 1<<20 {
			return sum
		}
	}
}

// TestPackAndUnpack sends a tree there and back.
func TestPackAndUnpack(t *testing.T) {
	src := t.TempDir()
	write := func(name, text string, mode fs.FileMode) {
		p := filepath.Join(src, name)
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(p, mode); err != nil {
			t.Fatal(err)
		}
	}
	write("a", "alpha", 0o640)
	write("empty", "", 0o444)
	if err := os.Mkdir(filepath.Join(src, "closed"), 0o755); err != nil {
		t.Fatal(err)
	}
	write("closed/x", "in a directory that cannot be written", 0o400)
	if err := os.Chmod(filepath.Join(src, "closed"), 0o555); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Chmod(filepath.Join(src, "closed"), 0o755) })
	if err := os.Link(filepath.Join(src, "a"), filepath.Join(src, "b")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/nowhere", filepath.Join(src, "l")); err != nil {
		t.Fatal(err)
	}
	old := time.Unix(1e9, 0)
	if err := os.Chtimes(filepath.Join(src, "empty"), old, old); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := pack(context.Background(), &b, src, "tree", t.Logf); err != nil {
		t.Fatal(err)
	}
	dir, err := unpackBytes(t, b.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	got := filepath.Join(dir, "in/got")
	t.Cleanup(func() { os.Chmod(filepath.Join(got, "closed"), 0o755) })
	for name, mode := range map[string]fs.FileMode{"a": 0o640, "b": 0o640, "empty": 0o444, "closed": fs.ModeDir | 0o555, "closed/x": 0o400} {
		fi, err := os.Lstat(filepath.Join(got, name))
		if err != nil || fi.Mode() != mode {
			t.Errorf("%s: %v, %v; want %v", name, fi, err, mode)
		}
	}
	a, _ := os.Stat(filepath.Join(got, "a"))
	other, _ := os.Stat(filepath.Join(got, "b"))
	if !os.SameFile(a, other) {
		t.Error("a and b are no longer one file")
	}
	if to, err := os.Readlink(filepath.Join(got, "l")); to != "/nowhere" {
		t.Errorf("link to %q, %v", to, err)
	}
	if fi, _ := os.Stat(filepath.Join(got, "empty")); !fi.ModTime().Equal(old) {
		t.Errorf("time %v", fi.ModTime())
	}
}

// TestTruncatedTar checks that half a file is an error and not half a file.
func TestTruncatedTar(t *testing.T) {
	data := tarOf(t, &tar.Header{Name: "f", Typeflag: tar.TypeReg, Size: 4096, Mode: 0o600})
	if _, err := unpackBytes(t, data[:1024]); err == nil {
		t.Error("no error")
	}
}

func TestDetachKey(t *testing.T) {
	n := 0
	d := &detachable{in: strings.NewReader("ls\n\x1drm -rf"), detached: func() { n++ }}
	b, err := io.ReadAll(d)
	if string(b) != "ls\n" || err != nil || n != 1 {
		t.Errorf("%q, %v, %d", b, err, n)
	}
}
