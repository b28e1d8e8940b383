package e2e

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"lodge/test/sandbox"
)

// TestBadRequests asks for what cannot be, and wants to be told which field is
// wrong and what to do; nothing may come of it.
func TestBadRequests(t *testing.T) {
	s := newServer(t)
	s.busybox()
	s.lodge("launch", "busybox", "taken", "--memory", "32MiB", "--publish", "8080:80")
	for _, c := range []struct {
		name  string
		code  int
		words []string
		args  []string
	}{
		{"unknown image", 3, []string{"image", "nosuch", "hint"}, []string{"launch", "nosuch", "bad"}},
		{"unbuildable image", 1, []string{"debian/99", "hint", "debian/12"}, []string{"launch", "debian/99", "bad"}},
		{"bad name", 1, []string{"name", "Bad_Name", "hint"}, []string{"launch", "busybox", "Bad_Name"}},
		{"name that ends with a hyphen", 1, []string{"name", "hint"}, []string{"launch", "busybox", "x-"}},
		{"long name", 1, []string{"name", "63", "hint"}, []string{"launch", "busybox", strings.Repeat("a", 64)}},
		{"no memory", 1, []string{"memory", "hint"}, []string{"launch", "busybox", "bad", "--memory", "0"}},
		{"more memory than there is", 1, []string{"memory", "hint"}, []string{"launch", "busybox", "bad", "--memory", "900TiB"}},
		{"less memory than a guest needs", 1, []string{"memory", "hint"}, []string{"launch", "busybox", "bad", "--memory", "4KiB"}},
		{"memory that is no number", 2, []string{"memory", "much"}, []string{"launch", "busybox", "bad", "--memory", "much"}},
		{"negative memory", 2, []string{"memory"}, []string{"launch", "busybox", "bad", "--memory", "-1MiB"}},
		{"negative processors", 1, []string{"cpus"}, []string{"launch", "busybox", "bad", "--cpus=-1"}},
		{"more processors than there are", 1, []string{"cpus", "hint"}, []string{"launch", "busybox", "bad", "--cpus", "100000"}},
		{"weight", 1, []string{"cpu_weight", "10000"}, []string{"launch", "busybox", "bad", "--cpu-weight", "10001"}},
		{"name in use", 4, []string{"taken", "hint"}, []string{"launch", "busybox", "taken"}},
		{"one of many names in use", 4, []string{"n-2"}, []string{"launch", "busybox", "n", "--count", "3"}},
		{"unknown pool", 3, []string{"pool", "nosuch"}, []string{"launch", "busybox", "bad", "--pool", "nosuch"}},
		{"unknown network", 3, []string{"network", "nosuch"}, []string{"launch", "busybox", "bad", "--network", "nosuch"}},
		{"bad publish", 1, []string{"publish", "http", "hint"}, []string{"launch", "busybox", "bad", "--publish", "http:80"}},
		{"port out of range", 1, []string{"publish", "99999"}, []string{"launch", "busybox", "bad", "--publish", "99999:80"}},
		{"port that another guest has", 4, []string{"8080", "taken"}, []string{"launch", "busybox", "bad", "--publish", "8080:80"}},
		{"port twice", 1, []string{"8081"}, []string{"launch", "busybox", "bad", "--publish", "8081:80", "--publish", "8081:81"}},
		{"bad restart policy", 2, []string{"restart", "sometimes"}, []string{"launch", "busybox", "bad", "--restart", "sometimes"}},
		{"unknown engine", 1, []string{"engine", "nosuch", "hint"}, []string{"launch", "busybox", "bad", "--engine", "nosuch"}},
		{"engine of another model", 1, []string{"engine", "oslevel", "--model os"}, []string{"launch", "busybox", "bad", "--model", "vm", "--engine", "oslevel"}},
		{"machine on the host's kernel", 1, []string{"machine", "hint"}, []string{"launch", "busybox", "bad", "--machine", "q35"}},
		{"disk on the host's kernel", 1, []string{"disks", "--model vm"}, []string{"launch", "busybox", "bad", "--disk", "data=1GiB"}},
		{"disc on the host's kernel", 1, []string{"disks", "hint"}, []string{"attach", "iso", "taken", "/nosuch.iso"}},
		{"kernel on the host's kernel", 1, []string{"kernel", "hint"}, []string{"launch", "busybox", "bad", "--kernel", "linux/debian-12"}},
		{"screen on the host's kernel", 1, []string{"screen", "lodge engine ls"}, []string{"screenshot", "taken"}},
		{"card of a guest that runs", 4, []string{"lodge stop taken"}, []string{"detach", "nic", "taken", "eth0"}},
		{"unknown model", 2, []string{"model"}, []string{"launch", "busybox", "bad", "--model", "xyz"}},
		{"bad variable", 2, []string{"--env", "KEY=VALUE"}, []string{"launch", "busybox", "bad", "--env", "=x"}},
		{"bad variable's name", 1, []string{"env", "A-B", "hint"}, []string{"launch", "busybox", "bad", "--env", "A-B=x"}},
		{"no name", 2, []string{"NAME", "--help"}, []string{"launch", "busybox"}},
		{"unknown flag", 2, []string{"--nosuch", "--help"}, []string{"launch", "busybox", "bad", "--nosuch"}},
		{"unknown command", 2, []string{"lanuch", "launch"}, []string{"lanuch"}},
		{"unknown guest", 3, []string{"nosuch", "lodge ls"}, []string{"stop", "nosuch"}},
		{"unknown guest to look at", 3, []string{"nosuch"}, []string{"show", "nosuch"}},
		{"rename to a name in use", 4, []string{"n-2"}, []string{"rename", "taken", "n-2"}},
		{"limit of a guest that runs", 1, []string{"memory"}, []string{"set", "taken", "--memory", "0"}},
		{"unknown image to build", 1, []string{"plan9", "hint"}, []string{"image", "build", "plan9"}},
		{"image in use", 4, []string{"busybox", "taken"}, []string{"image", "rm", "busybox"}},
		{"pool in use", 4, []string{"default", "taken"}, []string{"pool", "rm", "default"}},
		{"network in use", 4, []string{"default", "taken"}, []string{"network", "rm", "default"}},
		{"network that overlaps", 4, []string{"ipv4", "overlaps", "hint"}, []string{"network", "create", "other", "--ipv4", s.subnet("default")}},
		{"network without room", 1, []string{"ipv4"}, []string{"network", "create", "other", "--ipv4", "10.99.0.1/32"}},
		{"pool in a relative directory", 1, []string{"source", "absolute", "hint"}, []string{"pool", "create", "p", "--driver", "dir", "--source", "relative/path"}},
		{"unknown operation", 3, []string{"nosuch"}, []string{"op", "show", "nosuch"}},
		{"unknown label form", 2, []string{"label"}, []string{"launch", "busybox", "bad", "--label", "x y"}},
		{"no program", 2, []string{"COMMAND"}, []string{"exec", "taken"}},
		{"program that is not there", 127, []string{"nosuchprogram"}, []string{"exec", "taken", "--", "nosuchprogram"}},
		{"unknown user", 3, []string{"user", "nosuch"}, []string{"exec", "--user", "nosuch", "taken", "--", "true"}},
		{"unknown directory", 3, []string{"/nosuch"}, []string{"exec", "--cwd", "/nosuch", "taken", "--", "true"}},
		{"file that is not there", 3, []string{"/nosuch"}, []string{"cp", "taken:/nosuch", "/tmp"}},
		{"no daemon", 6, []string{"lodged", "hint"}, []string{"--host", "unix:///nosuch.sock", "ls"}},
	} {
		if c.name == "one of many names in use" {
			s.lodge("create", "busybox", "n-2", "--memory", "32MiB")
		}
		t.Run(c.name, func(t *testing.T) {
			sub := *s
			sub.t = t
			sub.refused(c.code, c.words, c.args...)
		})
	}
	guests := s.guests()
	if len(guests) != 2 {
		t.Errorf("something came of it: %v", s.lodge("ls"))
	}
	s.noLeaks()
}

// TestNoMonitor: without QEMU the model says what to install, without a kernel for
// paravirtual guests, which cannot be had here, those say so; all else works.
func TestNoMonitor(t *testing.T) {
	t.Setenv("PATH", pathWithout(t, "qemu-system"))
	s := newServer(t)
	s.busybox()
	s.refused(1, []string{"model", "vm cannot run here", "hint", "apt-get install"}, "launch", "busybox", "bad", "--model", "vm")
	if out := s.lodge("engine", "ls"); !strings.Contains(out, "hint: apt-get install") {
		t.Errorf("engine ls: %s", out)
	}
	s.refused(6, []string{"kernel/um/", "hint"}, "launch", "busybox", "bad", "--model", "paravirt")
	if guests := s.guests(); len(guests) > 0 {
		t.Errorf("something came of it: %v", guests)
	}
	s.lodge("launch", "busybox", "good", "--memory", "32MiB")
	s.noLeaks()
	s.lodge("rm", "-f", "good")
}

// pathWithout is a PATH with all programs but those that begin so.
func pathWithout(t *testing.T, prefix string) string {
	t.Helper()
	dir := t.TempDir()
	for _, from := range filepath.SplitList(os.Getenv("PATH")) {
		entries, err := os.ReadDir(from)
		if err != nil {
			continue // PATH may name what is not there
		}
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), prefix) {
				continue
			}
			if err := os.Symlink(filepath.Join(from, e.Name()), filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, os.ErrExist) {
				t.Fatal(err)
			}
		}
	}
	return dir
}

// subnet returns a network's IPv4 prefix.
func (s *server) subnet(name string) string {
	s.t.Helper()
	for _, n := range list[struct{ Name, IPv4 string }](s, "network", "ls") {
		if n.Name == name {
			return n.IPv4
		}
	}
	s.t.Fatalf("there is no network %s", name)
	return ""
}

// TestBadManifests applies files that are wrong.
func TestBadManifests(t *testing.T) {
	s := newServer(t)
	s.busybox()
	for _, c := range []struct {
		name, text string
		words      []string
	}{
		{"unknown field", "kind: guest\nname: a\nimage: busybox\nmemmory: 1GiB\n", []string{"memmory", "memory"}},
		{"unknown kind", "kind: gest\nname: a\n", []string{"gest", "guest"}},
		{"no kind", "name: a\n", []string{"kind"}},
		{"field twice", "kind: guest\nname: a\nname: b\nimage: busybox\n", []string{"name"}},
		{"wrong type", "kind: guest\nname: a\nimage: busybox\ncpus: many\n", []string{"cpus"}},
		{"second document", "kind: guest\nname: a\nimage: busybox\n---\nkind: guest\nname: b\nimage: busybox\nmemory: 0\n", []string{"memory"}},
		{"unknown image", "kind: guest\nname: a\nimage: nosuch\n", []string{"nosuch"}},
		{"not YAML", "kind: [guest\n", []string{"line"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := s.tryWith([]byte(c.text), "apply", "-f", "-")
			if r.code == 0 {
				t.Errorf("it was taken: %s", r.out)
			}
			for _, w := range c.words {
				if !strings.Contains(r.err, w) {
					t.Errorf("the error does not name %q: %s", w, r.err)
				}
			}
		})
	}
	if n := len(s.guests()); n != 0 {
		t.Errorf("something came of it: %s", s.lodge("ls"))
	}
}

// entry is a file in a tar.
func entry(w *tar.Writer, h tar.Header, body string) {
	h.Size = int64(len(body))
	if h.Typeflag == 0 {
		h.Typeflag = tar.TypeReg
	}
	if h.Mode == 0 {
		h.Mode = 0o755
	}
	w.WriteHeader(&h)
	io.WriteString(w, body)
}

// TestHostileTars imports what tries to get out of its directory, or to fill
// the disk.
func TestHostileTars(t *testing.T) {
	s := newServer(t)
	outside := s.path("outside")
	if err := os.Mkdir(outside, 0o777); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		code int
		make func(*tar.Writer)
	}{
		{"parent", 1, func(w *tar.Writer) { entry(w, tar.Header{Name: "../../../../../../../.." + outside + "/x"}, "x") }},
		{"absolute", -1, func(w *tar.Writer) { entry(w, tar.Header{Name: outside + "/x"}, "x") }},
		{"symlink", -1, func(w *tar.Writer) {
			entry(w, tar.Header{Name: "out", Typeflag: tar.TypeSymlink, Linkname: outside}, "")
			entry(w, tar.Header{Name: "out/x"}, "x")
		}},
		{"relative symlink", -1, func(w *tar.Writer) {
			entry(w, tar.Header{Name: "a/out", Typeflag: tar.TypeSymlink, Linkname: "../../../../../../../../../.." + outside}, "")
			entry(w, tar.Header{Name: "a/out/x"}, "x")
		}},
		{"hard link", 1, func(w *tar.Writer) {
			entry(w, tar.Header{Name: "shadow", Typeflag: tar.TypeLink, Linkname: "/etc/../../../../../../../etc/shadow"}, "")
		}},
		{"device", -1, func(w *tar.Writer) {
			entry(w, tar.Header{Name: "dev/sda", Typeflag: tar.TypeBlock, Devmajor: 8, Mode: 0o666}, "")
		}},
		{"garbage", 1, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			var b bytes.Buffer
			if c.make != nil {
				w := tar.NewWriter(&b)
				c.make(w)
				w.Close()
			} else {
				b.WriteString(strings.Repeat("no tar at all ", 1000))
			}
			r := s.tryWith(b.Bytes(), "image", "import", "-", "hostile")
			if c.code >= 0 && r.code != c.code {
				t.Errorf("exit status %d, want %d: %s%s", r.code, c.code, r.out, r.err)
			}
			if r.code == 0 {
				t.Logf("taken, and made harmless: %s", r.out)
				if c.name == "device" && hasDevice(t, s) {
					t.Error("the image holds a device")
				}
				s.lodge("image", "rm", "hostile")
			} else if !strings.Contains(r.err, "hint") {
				t.Errorf("no hint: %s", r.err)
			}
			if left := dirs(outside); len(left) > 0 {
				t.Errorf("it wrote %v", left)
			}
			if files, _ := os.ReadDir(outside); len(files) > 0 {
				t.Errorf("it wrote %v", files)
			}
		})
	}
	t.Run("zeros", func(t *testing.T) { zeros(t, s) })
	for _, dir := range []string{"data/spool", "data/images/tmp", "data/images/blobs"} {
		if left, _ := os.ReadDir(s.path(dir)); len(left) > 0 {
			t.Errorf("%s still holds %v", dir, left)
		}
	}
	if left := list[struct{ Name string }](s, "image", "ls"); len(left) > 0 {
		t.Errorf("images are left: %v", left)
	}
}

func hasDevice(t *testing.T, s *server) bool {
	t.Helper()
	r := s.try("image", "export", "hostile", s.path("out.tar"))
	if r.code != 0 {
		t.Fatalf("export: %s", r.err)
	}
	f, err := os.Open(s.path("out.tar"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for tr := tar.NewReader(f); ; {
		h, err := tr.Next()
		if err != nil {
			return false
		}
		if h.Typeflag == tar.TypeBlock || h.Typeflag == tar.TypeChar && (h.Devmajor != 0 || h.Devminor != 0) {
			return true
		}
	}
}

// zeros imports 4 GiB of zeros that are a few MiB compressed.
func zeros(t *testing.T, s *server) {
	zstd, err := exec.LookPath("zstd")
	if err != nil {
		sandbox.Missing(t, "zstd is not installed")
	}
	file := s.path("zeros.tar.zst")
	cmd := exec.Command(zstd, "-q", "-1", "-o", file)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(in)
	w.WriteHeader(&tar.Header{Name: "zeros", Mode: 0o644, Size: 4 << 30, Typeflag: tar.TypeReg})
	block := make([]byte, 1<<20)
	for range 4 << 10 {
		if _, err := w.Write(block); err != nil {
			t.Fatal(err)
		}
	}
	w.Close()
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(file)
	r := s.try("image", "import", "--max-size", "1GiB", file, "hostile")
	if r.code == 0 || !strings.Contains(r.err, "1") || !strings.Contains(r.err, "hint") {
		t.Errorf("4 GiB into 1: %d %s%s", r.code, r.out, r.err)
	}
	var used int64
	filepath.Walk(s.path("data/spool"), func(_ string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().IsRegular() {
			used += info.Size()
		}
		return nil
	})
	if used > 0 {
		t.Errorf("%d bytes are left in the spool", used)
	}
}
