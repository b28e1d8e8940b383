package agent

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func do(t *testing.T, in io.Reader, args ...string) (status int, out []byte, errText string) {
	t.Helper()
	var o, e bytes.Buffer
	status = Main(t.Context(), args, in, &o, &e)
	return status, o.Bytes(), e.String()
}

func TestPackThenUnpack(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("sets owners: needs root")
	}
	from, to := t.TempDir(), t.TempDir()
	must(t, os.MkdirAll(filepath.Join(from, "app/conf"), 0o750))
	must(t, os.WriteFile(filepath.Join(from, "app/conf/file"), []byte("content"), 0o640))
	must(t, os.Chown(filepath.Join(from, "app/conf/file"), 33, 34))
	status, packed, errText := do(t, nil, "files", "pack", filepath.Join(from, "app"))
	if status != Done || errText != "" {
		t.Fatal(status, errText)
	}
	must(t, os.Symlink(to, filepath.Join(from, "link"))) // the target itself may be a link
	if status, _, errText := do(t, bytes.NewReader(packed), "files", "unpack", filepath.Join(from, "link")); status != Done {
		t.Fatal(status, errText)
	}
	b, err := os.ReadFile(filepath.Join(to, "app/conf/file"))
	if err != nil || string(b) != "content" {
		t.Errorf("%q %v", b, err)
	}
	if fi, err := os.Stat(filepath.Join(to, "app")); err != nil || fi.Mode().Perm() != 0o750 {
		t.Errorf("%v %v", fi, err)
	}
}

func TestTheFirstEntryIsTheBaseName(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
	must(t, os.Mkdir(filepath.Join(dir, "folder"), 0o700))
	must(t, os.Symlink("folder", filepath.Join(dir, "link")))
	for path, want := range map[string]tar.Header{
		"file":     {Name: "file", Typeflag: tar.TypeReg},
		"folder/":  {Name: "folder/", Typeflag: tar.TypeDir},
		"link":     {Name: "link", Typeflag: tar.TypeSymlink, Linkname: "folder"},
		"link/":    {Name: "link/", Typeflag: tar.TypeDir},
		"folder/.": {Name: "folder/", Typeflag: tar.TypeDir},
	} {
		status, out, errText := do(t, nil, "files", "pack", dir+"/"+path)
		if status != Done {
			t.Fatal(path, errText)
		}
		h, err := tar.NewReader(bytes.NewReader(out)).Next()
		if err != nil || h.Name != want.Name || h.Typeflag != want.Typeflag || h.Linkname != want.Linkname {
			t.Errorf("%s: %+v %v", path, h, err)
		}
	}
}

func TestExitStatus(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	must(t, os.WriteFile(file, nil, 0o600))
	for _, tt := range []struct {
		args []string
		want int
	}{
		{[]string{"files", "pack", dir + "/no"}, NotFound},
		{[]string{"files", "pack", ""}, Failed},
		{[]string{"files", "unpack", dir + "/no"}, NotFound},
		{[]string{"files", "unpack", file}, Failed},
		{[]string{"files", "unpack", dir}, Failed}, // the stream is no tar
		{[]string{"files", "move", dir}, Failed},
		{nil, Failed},
	} {
		status, out, errText := do(t, strings.NewReader(strings.Repeat("no tar ", 200)), tt.args...)
		if status != tt.want || len(out) != 0 || strings.Count(errText, "\n") != 1 || !strings.HasPrefix(errText, "lodge-agent: ") {
			t.Errorf("%v: %d %q %q", tt.args, status, out, errText)
		}
	}
}
