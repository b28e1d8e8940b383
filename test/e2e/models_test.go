package e2e

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lodge/internal/base/trees/treestest"
	"lodge/test/sandbox"
)

// The kernels that guests with one of their own boot in these tests.
const (
	umKernel    = "um/debian-sid"
	linuxKernel = "linux/debian-12"
)

// bootPatience is how long a guest with a kernel of its own may take to boot on
// a busy machine.
const bootPatience = 3 * time.Minute

// ofModel has a busybox guest of each model.
var ofModel = map[string]string{"os1": "os", "para1": "paravirt", "vm1": "vm"}

// newModels starts a server that can run all three models.
func newModels(t *testing.T, flags ...string) *server {
	t.Helper()
	t.Setenv("http_proxy", sandbox.Proxy(t))
	s := newServer(t, flags...)
	s.busybox()
	for _, k := range []string{umKernel, linuxKernel} {
		if r := s.try("kernel", "build", k); r.code != 0 {
			sandbox.Missing(t, fmt.Sprintf("the kernel %s cannot be had here: %s", k, r.err))
		}
	}
	return s
}

// answers waits until a guest runs programs.
func (s *server) answers(name string) {
	s.t.Helper()
	var last result
	for end := time.Now().Add(bootPatience); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if last = s.try("exec", name, "--", "hostname"); last.code == 0 && strings.TrimSpace(last.out) == name {
			return
		}
	}
	s.t.Fatalf("%s does not answer: %+v\n%s\n%s", name, last, s.try("show", name).out, s.try("logs", name, "--tail", "30").out)
}

// TestModels has a guest of each model do the same, suffer the same, and become
// the others. It is one test because a server with all models takes long to make.
func TestModels(t *testing.T) {
	files, size := 300, 2000
	if os.Getenv("LODGE_TEST_LONG") != "" {
		files, size = 50_000, 21_000 // a gigabyte
	}
	s := newModels(t, "--pool-size", "12GiB")
	s.sideBySide(t)
	s.faults(t)
	s.changes(t, files, size)
	s.lodge("rm", "-f", "--all")
	s.noLeaks()
}

func (s *server) sideBySide(t *testing.T) {
	for i, name := range slices.Sorted(maps.Keys(ofModel)) {
		s.lodge("launch", "busybox", name, "--model", ofModel[name], "--memory", "128MiB", "--publish", fmt.Sprintf("%d:80", 8080+i), "--restart", "on-failure")
	}
	for name := range ofModel {
		s.answers(name)
	}
	t.Log("\n" + s.lodge("ls"))
	for i, name := range slices.Sorted(maps.Keys(ofModel)) {
		if g := s.guest(name); g.Model != ofModel[name] || g.Phase != "running" {
			t.Errorf("%s is %+v", name, g)
		}
		for other := range ofModel {
			if r := s.try("exec", name, "--", "ping", "-4", "-c1", "-W10", other); r.code != 0 {
				t.Errorf("%s does not reach %s by name: %s%s", name, other, r.out, r.err)
			}
		}
		s.serves(name, 80)
		until(t, "the published port of "+name, func() error {
			if said, err := dial(fmt.Sprintf("127.0.0.1:%d", 8080+i)); said != name {
				return fmt.Errorf("%q, %v", said, err)
			}
			return nil
		})
		s.carries(name)
		s.limits(name)
		s.cares(name)
	}
	for name := range ofModel {
		s.lodge("pause", name)
		s.refused(4, []string{name, "paused"}, "exec", name, "--", "true")
		s.lodge("resume", name)
		s.answers(name)
		s.crashes(name)
		s.lodge("stop", name)
		if g := s.guest(name); g.Phase != "stopped" {
			t.Errorf("%s after stop: %+v", name, g)
		}
		s.lodge("start", name)
		s.answers(name)
		if out := s.lodge("exec", name, "--", "cat", "/root/kept"); out != name+"\n" {
			t.Errorf("%s kept %q", name, out)
		}
	}
	s.daemonDies()
}

// faults has guests go wrong.
func (s *server) faults(t *testing.T) {
	s.lodge("set", "para1", "vm1", "--restart", "never")
	for _, name := range []string{"para1", "vm1"} {
		attempt(s, "exec", name, "--", "sh", "-c", "echo c >/proc/sysrq-trigger")
		until(t, name+" is told to have panicked", func() error {
			if g := s.guest(name); !strings.Contains(strings.ToLower(fmt.Sprint(g.Problem)+s.lodge("show", name)), "panic") {
				return fmt.Errorf("it is %+v", g)
			}
			return nil
		})
		if out := s.lodge("logs", name); !strings.Contains(out, "sysrq triggered crash") {
			t.Errorf("the log of %s does not end with its panic:\n%s", name, lastPart([]byte(out), 2000))
		}
		s.lodge("stop", "--force", name)
		s.lodge("start", name)
		s.answers(name)
	}
	// One that does not want to stop.
	s.lodge("launch", "busybox", "stubborn", "--model", "paravirt", "--memory", "128MiB", "--", "/bin/sh", "-c", "trap '' TERM INT; echo ready; while :; do sleep 1; done")
	until(t, "it is there", func() error {
		if out := s.lodge("logs", "stubborn"); !strings.Contains(out, "ready") {
			return errors.New(out)
		}
		return nil
	})
	s.lodge("stop", "--force", "stubborn")
	s.lodge("rm", "-f", "stubborn")
	s.badKernel(t)
	s.noQEMU(t)
}

// badKernel spoils a kernel on disk.
func (s *server) badKernel(t *testing.T) {
	s.lodge("stop", "vm1")
	kernel := ""
	filepath.WalkDir(s.path("data/kernels/"+linuxKernel), func(p string, d os.DirEntry, err error) error {
		if i, e := os.Stat(p); e == nil && err == nil && i.Mode().IsRegular() && strings.HasPrefix(d.Name(), "vmlinuz") || d != nil && d.Name() == "kernel" && !d.IsDir() {
			kernel = p
		}
		return nil
	})
	good, err := os.ReadFile(kernel)
	if err != nil {
		t.Fatalf("there is no kernel's file: %v", err)
	}
	if err := os.WriteFile(kernel, []byte("no kernel"), 0o644); err != nil {
		t.Fatal(err)
	}
	attempt(s, "start", "vm1")
	until(t, "the spoilt kernel is told", func() error {
		if out := s.lodge("show", "vm1"); !strings.Contains(out, "stopped") || !strings.Contains(out, "qemu: linux kernel too old") {
			return errors.New(out)
		}
		return nil
	})
	if err := os.WriteFile(kernel, good, 0o644); err != nil {
		t.Fatal(err)
	}
	s.lodge("stop", "--force", "vm1")
	s.lodge("start", "vm1")
	s.answers("vm1")
}

// noQEMU takes QEMU away from the host.
func (s *server) noQEMU(t *testing.T) {
	path, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("/dev/null", path, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	s.end()
	s.start()
	s.refused(1, []string{"vm", "apt-get install"}, "launch", "busybox", "vm2", "--model", "vm")
	if out := s.lodge("engine", "ls"); !strings.Contains(out, "qemu-system") {
		t.Errorf("the engines do not say what is missing:\n%s", out)
	}
	s.lodge("exec", "os1", "--", "true")
	s.lodge("exec", "para1", "--", "true")
}

// carries copies files in and out.
func (s *server) carries(name string) {
	s.t.Helper()
	file := s.path("carried")
	content := make([]byte, 1<<20)
	for i := range content {
		content[i] = byte(rand.IntN(256))
	}
	if err := os.WriteFile(file, content, 0o640); err != nil {
		s.t.Fatal(err)
	}
	s.lodge("cp", file, name+":/root/carried")
	s.lodge("cp", name+":/root/carried", file+".back")
	if back, err := os.ReadFile(file + ".back"); err != nil || !bytes.Equal(back, content) {
		s.t.Errorf("%s: %d bytes came back for %d, %v", name, len(back), len(content), err)
	}
	os.Remove(file + ".back")
	s.lodge("exec", name, "--", "sh", "-c", "hostname >/root/kept; rm /root/carried; sync")
}

// limits looks at a guest's memory from within, and changes what it may use.
func (s *server) limits(name string) {
	s.t.Helper()
	if ofModel[name] != "os" {
		out := s.lodge("exec", name, "--", "sh", "-c", "awk '/MemTotal/ {print $2}' /proc/meminfo; grep -c ^processor /proc/cpuinfo")
		var kib, cpus int
		if _, err := fmt.Sscan(out, &kib, &cpus); err != nil || kib > 128<<10 || kib < 60<<10 || cpus != 1 {
			s.t.Errorf("%s with 128 MiB and one processor sees %q", name, out)
		}
	}
	s.lodge("set", name, "--cpu-weight", "50")
	if g := s.guest(name); g.CPUWeight != 50 || g.Phase != "running" {
		s.t.Errorf("%s after set: %+v", name, g)
	}
}

// crashes kills what runs a guest and waits for the restart policy to act.
func (s *server) crashes(name string) {
	s.t.Helper()
	was := s.guest(name)
	if err := unix.Kill(was.Pid, unix.SIGKILL); err != nil {
		s.t.Fatal(err)
	}
	until(s.t, name+" is started again", func() error {
		if g := s.guest(name); g.Pid == was.Pid || g.Phase != "running" || g.Restarts == 0 && g.Exit == nil {
			return fmt.Errorf("it is %s, pid %d, was %d", g.Phase, g.Pid, was.Pid)
		}
		return nil
	})
	s.answers(name)
}

// daemonDies kills lodged under guests of all models.
func (s *server) daemonDies() {
	s.t.Helper()
	before := s.guests()
	s.kill()
	alive(s.t, before)
	s.start()
	for name, was := range before {
		s.answers(name)
		if g := s.guest(name); g.Pid != was.Pid {
			s.t.Errorf("%s was process %d, is %d", name, was.Pid, g.Pid)
		}
	}
}

// awkward makes a tree that a careless copy would spoil.
func awkward(t *testing.T, dir string, files, size int) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(filepath.Join(dir, "sub/deep"), 0o750))
	must(os.WriteFile(filepath.Join(dir, "plain"), []byte("plain"), 0o600))
	must(os.Chown(filepath.Join(dir, "plain"), 1000, 29))
	must(os.Link(filepath.Join(dir, "plain"), filepath.Join(dir, "sub/hard link")))
	must(os.Symlink("../plain", filepath.Join(dir, "sub/symlink")))
	must(os.Symlink("/nowhere", filepath.Join(dir, "dangling")))
	must(os.WriteFile(filepath.Join(dir, "suid"), []byte("suid"), 0o600))
	must(os.Chown(filepath.Join(dir, "suid"), 65535, 65534))
	must(os.Chmod(filepath.Join(dir, "suid"), 0o755|os.ModeSetuid|os.ModeSetgid))
	must(os.WriteFile(filepath.Join(dir, "capable"), []byte("capable"), 0o755))
	must(unix.Setxattr(filepath.Join(dir, "capable"), "security.capability", []byte("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0)) // cap_net_raw=ep
	must(os.WriteFile(filepath.Join(dir, "marked"), nil, 0o644))
	must(unix.Setxattr(filepath.Join(dir, "marked"), "user.colour", []byte("blue"), 0))
	must(os.WriteFile(filepath.Join(dir, "listed"), []byte("for a few"), 0o640))
	must(unix.Setxattr(filepath.Join(dir, "listed"), "system.posix_acl_access", []byte(treestest.ACL(6, 1234, 5, 4, 7, 0)), 0))
	must(os.Mkdir(filepath.Join(dir, "inherits"), 0o750))
	must(unix.Setxattr(filepath.Join(dir, "inherits"), "system.posix_acl_default", []byte(treestest.ACL(7, 77, 7, 5, 7, 0)), 0))
	must(os.Mkdir(filepath.Join(dir, "sticky"), 0o700))
	must(os.Chmod(filepath.Join(dir, "sticky"), 0o777|os.ModeSticky))
	must(unix.Mkfifo(filepath.Join(dir, "fifo"), 0o622))
	f, err := os.Create(filepath.Join(dir, "sparse"))
	must(err)
	must(f.Truncate(64 << 20))
	_, err = f.WriteAt([]byte("in the middle"), 32<<20)
	must(errors.Join(err, f.Close()))
	body := make([]byte, size)
	for i := range files {
		at := filepath.Join(dir, "many", fmt.Sprint(i/100))
		must(os.MkdirAll(at, 0o755))
		copy(body, fmt.Sprintf("file %d of many", i))
		must(os.WriteFile(filepath.Join(at, fmt.Sprint(i)), body, os.FileMode(0o600+i%8)))
	}
	must(os.Chtimes(filepath.Join(dir, "plain"), time.Unix(1_000_000_000, 0), time.Unix(1_000_000_000, 0)))
}

// fingerprint is all that a guest's files are, a line each: what lodge cp carries
// out of it, in order.
func (s *server) fingerprint(name, dir string) []string {
	s.t.Helper()
	r := s.try("cp", name+":"+dir, "-")
	if r.code != 0 {
		s.t.Fatalf("cp %s:%s: %s", name, dir, r.err)
	}
	var lines []string
	for tr := tar.NewReader(strings.NewReader(r.out)); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			s.t.Fatal(err)
		}
		sum := sha256.New()
		if _, err := io.Copy(sum, tr); err != nil {
			s.t.Fatal(err)
		}
		var extra []string
		for k, v := range h.PAXRecords {
			if strings.HasPrefix(k, "SCHILY.xattr.") {
				extra = append(extra, fmt.Sprintf("%s=%q", k, v))
			}
		}
		slices.Sort(extra)
		lines = append(lines, fmt.Sprintf("%s %c %o %d:%d %d %d:%d %q %s %x %s", path.Clean(h.Name), h.Typeflag, h.Mode, h.Uid, h.Gid, h.Size,
			h.Devmajor, h.Devminor, h.Linkname, h.ModTime.UTC().Format(time.RFC3339Nano), sum.Sum(nil), extra))
	}
	slices.Sort(lines)
	return lines
}

// sameTree compares fingerprints.
func sameTree(t *testing.T, when string, before, after []string) {
	t.Helper()
	if slices.Equal(before, after) {
		return
	}
	shown := 0
	for _, pair := range [][2][]string{{before, after}, {after, before}} {
		in := map[string]bool{}
		for _, l := range pair[1] {
			in[l] = true
		}
		for _, l := range pair[0] {
			if !in[l] && shown < 20 {
				t.Errorf("%s: only %s: %s", when, map[bool]string{true: "before", false: "after"}[&pair[0][0] == &before[0]], l)
				shown++
			}
		}
	}
	if shown == 0 {
		t.Errorf("%s: %d entries, were %d", when, len(after), len(before))
	}
}

// changes takes a guest through all models and back.
func (s *server) changes(t *testing.T, files, size int) {
	s.lodge("launch", "busybox", "g", "--memory", "128MiB", "--publish", "8090:80")
	dir := s.path("tree")
	awkward(t, dir, files, size)
	s.lodge("cp", dir, "g:/srv")
	// Of the image's own: a file that is gone, a folder that is another's.
	s.lodge("exec", "g", "--", "sh", "-c", "rm /bin/vi; mv /etc/profile /etc/moved; rm -rf /var/www; mkdir /var/www; echo mine >/var/www/mine; sync")
	where := strings.TrimSpace(s.lodge("exec", "g", "--", "sh", "-c", "if [ -d /srv/tree ]; then echo /srv/tree; else echo /srv; fi"))
	tree, etc := s.fingerprint("g", where), s.fingerprint("g", "/etc")
	if len(tree) < files {
		t.Fatalf("only %d files arrived", len(tree))
	}
	for _, what := range []string{"security.capability", "posix_acl_access", "posix_acl_default", "user.colour"} {
		if !strings.Contains(strings.Join(tree, "\n"), what) {
			t.Errorf("no file has %s", what)
		}
	}
	was := s.guest("g")
	device := "mknod -m 640 /root/device c 10 77" // only guests with a kernel of their own can make one; lodge cp carries none
	for _, model := range []string{"paravirt", "vm", "os"} {
		begun := time.Now()
		s.lodge("model", "g", model, "--restart")
		s.answers("g")
		t.Logf("%s answered after %v", model, time.Since(begun))
		g := s.guest("g")
		if g.Model != model || g.NICs[0].MAC != was.NICs[0].MAC || !slices.Equal(g.Addresses, was.Addresses) || g.MemoryBytes != was.MemoryBytes || !slices.Equal(g.Publish, was.Publish) {
			t.Errorf("as %s it is %+v, was %+v", model, g, was)
		}
		sameTree(t, "as "+model, tree, s.fingerprint("g", where))
		sameTree(t, "/etc as "+model, withoutOwn(etc), withoutOwn(s.fingerprint("g", "/etc")))
		s.lodge("exec", "g", "--", "sh", "-c", device)
		device = "test \"$(stat -c '%F %a %t %T' /root/device)\" = 'character special file 640 a 4d'"
		if kib, err := strconv.Atoi(s.shell("g", "sync; du -k "+where+"/sparse | cut -f1")); err != nil || kib > 64 {
			t.Errorf("as %s: a file of 64 MiB with nothing but a few words takes %d KiB, %v", model, kib, err)
		}
		if r := s.try("exec", "g", "--", "sh", "-c", "test ! -e /bin/vi && test ! -e /etc/profile && ls /var/www"); r.code != 0 || r.out != "mine\n" {
			t.Errorf("as %s: what was removed is back, or what was put there is not: %+v", model, r)
		}
	}
	s.lodge("rm", "-f", "g")
}

// withoutOwn leaves out what is written anew for each boot.
func withoutOwn(lines []string) []string {
	return slices.DeleteFunc(slices.Clone(lines), func(l string) bool {
		for _, own := range []string{"etc/resolv.conf ", "etc/hosts ", "etc/hostname ", "etc/machine-id ", "etc/.lodge ", "etc "} {
			if strings.HasPrefix(l, own) {
				return true
			}
		}
		return false
	})
}

// TestModelsKilledAnywhere kills lodged at all moments of launches and changes
// of model.
func TestModelsKilledAnywhere(t *testing.T) {
	if os.Getenv("LODGE_TEST_LONG") == "" {
		t.Skip("takes minutes: set LODGE_TEST_LONG")
	}
	s := newModels(t)
	s.lodge("launch", "busybox", "stays", "--model", "paravirt", "--memory", "128MiB")
	s.lodge("launch", "busybox", "g", "--memory", "128MiB")
	dir := s.path("tree")
	awkward(t, dir, 500, 20_000)
	s.lodge("cp", dir, "g:/srv")
	s.answers("stays")
	stays := s.guest("stays")
	where := strings.TrimSpace(s.lodge("exec", "g", "--", "sh", "-c", "if [ -d /srv/tree ]; then echo /srv/tree; else echo /srv; fi"))
	tree := s.fingerprint("g", where)
	models := []string{"paravirt", "vm", "os"}
	for round := range 12 {
		var work sync.WaitGroup
		for _, argv := range [][]string{
			{"model", "g", models[round%3], "--restart"},
			{"launch", "busybox", fmt.Sprintf("n%d", round), "--model", models[round%2], "--memory", "128MiB"},
			{"rm", "-f", fmt.Sprintf("n%d", round-1)},
			{"snapshot", "stays", fmt.Sprintf("s%d", round)},
		} {
			work.Go(func() { attempt(s, argv...) })
		}
		time.Sleep(time.Duration(rand.IntN(2500)) * time.Millisecond)
		s.kill()
		work.Wait()
		s.start()
		if g := s.guest("stays"); g.Pid != stays.Pid || g.Phase != "running" {
			t.Fatalf("round %d: the bystander is %s with pid %d, was %d", round, g.Phase, g.Pid, stays.Pid)
		}
		settled(s) // until then g may go down to become what it was asked to be
		s.answers("g")
		sameTree(t, fmt.Sprintf("round %d, as %s", round, s.guest("g").Model), tree, s.fingerprint("g", where))
	}
	s.answers("stays")
	s.lodge("rm", "-f", "--all")
	s.noLeaks()
}
