package oslevel

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lodge/internal/base/session"
	"lodge/internal/engine"
	"lodge/internal/engine/enginetest"
	"lodge/internal/model/guest"
)

// TestNoWayOut lets a guest's root try what has led out of containers before.
func TestNoWayOut(t *testing.T) {
	r := newRig(t)
	secret := filepath.Join(t.TempDir(), "secret-of-the-host")
	if err := os.WriteFile(secret, []byte("mine"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, m := r.sleeper()
	for _, c := range []struct{ name, try, want string }{
		{"the helper cannot be overwritten", `cat /proc/self/exe >/dev/null; printf '#!/proc/self/exe\n' >/x; chmod +x /x; /x; echo x >>/proc/1/exe`, "Text file busy"},
		{"release agents", `mkdir -p /rel; mount -t cgroup -o memory none /rel; cd /rel && { echo /x >release_agent; echo -1 >memory.limit_in_bytes && echo WROTE; mkdir sub && echo WROTE; }; cd /; umount /rel; echo done`, "done"},
		{"block devices cannot be made", `mknod /disk b 8 0 || echo refused`, "refused"},
		{"character devices cannot be made", `mknod /mem c 1 1 || echo refused`, "refused"},
		{"devices of the host cannot be mounted", `for d in vda sda; do mount -t ext4 /dev/$d /mnt && echo MOUNTED; done; mount -t ext4 $(cut -d' ' -f1 /proc/1/mountinfo | head -1) /tmp || echo refused`, "refused"},
		{"the kernel's files stay as they are", `for f in /proc/sys/kernel/core_pattern /proc/sysrq-trigger /proc/sys/kernel/modprobe /proc/sys/vm/drop_caches /proc/sys/fs/binfmt_misc/register /sys/kernel/uevent_helper /proc/sys/kernel/hotplug; do (echo x >$f) 2>/dev/null && echo WROTE $f; done; echo done`, "done"},
		{"nor after the masks are taken off", `umount /proc/sys/vm /proc/sys/fs /proc/sysrq-trigger 2>/dev/null; mount -t proc proc /tmp 2>/dev/null; for f in /proc /tmp; do for g in sysrq-trigger sys/vm/drop_caches sys/kernel/core_pattern; do (echo h >$f/$g) 2>/dev/null && [ ! -f /tmp/sysrq-trigger ] && echo WROTE $f/$g; done; done; head -c 10 /proc/kcore 2>/dev/null && echo READ kcore; umount /tmp; echo done`, "done"},
		{"the kernel's log stays the host's", `dmesg || echo refused`, "refused"},
		{"the clock stays the host's", `date -s 2001-01-01`, "not permitted"},
		{"modules cannot be loaded", `insmod /x 2>&1 || echo refused`, "refused"},
		{"host processes are out of sight", `ps -o pid | wc -l; ls /proc/1/root/` + secret + ` 2>&1`, "No such file"},
		{"host mounts are out of sight", `grep -c ` + filepath.Dir(secret) + ` /proc/1/mountinfo; grep -v -e lodge -e /dev/console /proc/1/mountinfo; echo done`, "0\ndone"},
		{"descriptors of init", `ls /proc/1/fd | tr '\n' ' '`, "0 1 2"},
		{"group limits are out of reach", `find /sys/fs/cgroup -name 'memory.max' | head -1; echo max >/sys/fs/cgroup/../pids.max; mount -t cgroup2 none /tmp && ls /tmp | grep -c lodge-exec; cat /proc/self/cgroup | grep -c lodge-oslevel`, "0"},
	} {
		out := shell(t, m, c.try+" 2>&1")
		if !strings.Contains(out, c.want) || strings.Contains(out, "WROTE") || strings.Contains(out, "READ") || strings.Contains(out, "MOUNTED") {
			t.Errorf("%s: %q", c.name, out)
		}
	}
	if out := shell(t, m, "ls /proc/self/fd"); out != "0\n1\n2\n3\n" { // 3 is ls' own
		t.Errorf("descriptors of an exec'd program: %q", out)
	}
}

// TestHelperOutOfReach checks that the helper cannot be opened through the
// processes that it makes, and that no namespace of the host can be joined.
func TestHelperOutOfReach(t *testing.T) {
	r := newRig(t)
	d, m := r.sleeper()
	for _, ns := range []string{"user", "mnt", "pid", "net", "uts", "ipc", "cgroup"} {
		host, err := os.Readlink("/proc/self/ns/" + ns)
		if err != nil {
			t.Fatal(err)
		}
		for _, pid := range []string{"1", "self"} {
			if in := strings.TrimSpace(shell(t, m, "readlink /proc/"+pid+"/ns/"+ns)); in == host || in == "" {
				t.Errorf("%s: the %s namespace is %q, the host's %q", pid, ns, in, host)
			}
		}
	}
	// While programs come and go, a guest looks at all processes it can see.
	d2, m2 := r.run(func(g *guest.Guest, _ *engine.Parts) {
		g.Spec.Command = []string{"sh", "-c", `while :; do for p in /proc/[0-9]*; do case $(readlink $p/exe) in *launch*) echo SAW $p; echo x >$p/exe && echo WROTE; ls $p/fd;; esac; done 2>/dev/null; done`}
	})
	for range 100 {
		shell(t, m2, "true")
	}
	if out := d2.output(); strings.Contains(out, "SAW") {
		t.Errorf("the guest saw %q", out)
	}
	_ = d
}

// TestIDsAreDisjoint checks that no id of a guest is one of the host's or of
// another guest's.
func TestIDsAreDisjoint(t *testing.T) {
	r := newRig(t)
	d1, m := r.sleeper()
	d2, _ := r.sleeper()
	var st [2]unix.Stat_t
	for i, d := range []*direct{d1, d2} {
		if err := unix.Stat(fmt.Sprintf("/proc/%d", d.pid), &st[i]); err != nil {
			t.Fatal(err)
		}
	}
	if st[0].Uid < idCount || st[1].Uid < idCount || max(st[0].Uid, st[1].Uid)-min(st[0].Uid, st[1].Uid) < idCount {
		t.Errorf("the guests are %d and %d", st[0].Uid, st[1].Uid)
	}
	// What a guest writes is plain on disk, and cannot be a program of another's root.
	shell(t, m, "echo x >/mine; chown 1000:29 /mine; cp /bin/busybox /su; chmod 4755 /su")
	var f unix.Stat_t
	if err := unix.Stat(m.parts.Root.Writable+"/upper/mine", &f); err != nil || f.Uid != 1000 || f.Gid != 29 {
		t.Errorf("on disk: %d:%d, %v", f.Uid, f.Gid, err)
	}
}

// TestForkBomb checks that a guest that forks without end ends there.
func TestForkBomb(t *testing.T) {
	r := newRig(t)
	_, m := r.run(func(g *guest.Guest, _ *engine.Parts) {
		g.Spec.Processes = 40
		g.Spec.Command = []string{"sh", "-c", "echo up; sleep 1000"}
	})
	// A process of the guest, not of an exec, so that it cannot be waited for.
	s, err := m.Exec(t.Context(), session.Request{Argv: []string{"sh", "-c", "b() { b | b & }; b; sleep 1000"}})
	if err != nil {
		t.Fatal(err)
	}
	full := false
	for end := time.Now().Add(20 * time.Second); !full && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		u, err := m.Usage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if u.Processes > 40 {
			t.Fatalf("%d processes where 40 are the limit", u.Processes)
		}
		full = u.Processes >= 38
	}
	if err := m.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Wait(t.Context()); err != nil {
		t.Error(err)
	}
	if !full {
		t.Log("the limit was never reached, only not passed")
	}
}

// TestLinksStayInside lets a guest lay links for the host's side to follow.
func TestLinksStayInside(t *testing.T) {
	r := newRig(t)
	r.engine.o.Agent = enginetest.Build(t, "lodge/cmd/lodge-agent")
	outside := t.TempDir()
	if err := os.WriteFile(outside+"/secret", []byte("mine"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, m := r.sleeper()
	shell(t, m, "ln -s "+outside+" /out; ln -s /proc/1/root"+outside+" /out2; mkdir /busy")
	for _, path := range []string{"/out/secret", "/out2/secret", "/proc/1/root/" + outside + "/secret", "/../../.." + outside + "/secret"} {
		var b bytes.Buffer
		if err := m.Pack(t.Context(), path, &b); err == nil || bytes.Contains(b.Bytes(), []byte("mine")) {
			t.Errorf("packing %s: %v, %q", path, err, b.String())
		}
	}
	for _, dir := range []string{"/out", "/out2"} {
		if err := m.Unpack(t.Context(), dir, oneFile(t, "planted")); err == nil {
			t.Errorf("unpacking into %s worked", dir)
		}
	}
	// A directory that turns into a link and back while files go in and out.
	s, err := m.Exec(t.Context(), session.Request{Argv: []string{"sh", "-c", "while :; do rm -rf /race; ln -s " + outside + " /race; rm -f /race; mkdir /race; done"}})
	if err != nil {
		t.Fatal(err)
	}
	for range 30 {
		_ = m.Unpack(t.Context(), "/race", oneFile(t, "planted"))
		var b bytes.Buffer
		_ = m.Pack(t.Context(), "/race/secret", &b)
		if bytes.Contains(b.Bytes(), []byte("mine")) {
			t.Error("a file of the host was packed")
		}
	}
	_ = s.Signal(unix.SIGKILL)
	_, _ = s.Wait(t.Context())
	if _, err := os.Stat(outside + "/planted"); err == nil {
		t.Error("a file was planted on the host")
	}
}

func oneFile(t *testing.T, name string) io.Reader {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: 1}); err != nil {
		t.Fatal(err)
	}
	io.WriteString(w, "x")
	w.Close()
	return &b
}

// TestHostileRoot starts guests whose tree was prepared to mislead the start:
// what should be a directory or a file is a link, or a pipe that nobody reads.
func TestHostileRoot(t *testing.T) {
	r := newRig(t)
	outside := t.TempDir()
	for _, place := range []string{"proc", "sys", "dev", "run"} {
		g, p := r.guest(func(g *guest.Guest, p *engine.Parts) {
			g.Spec.Command = []string{"sleep", "1000"}
			upper := p.Root.Writable + "/upper/" + place
			if err := os.Symlink(outside, upper); err != nil {
				t.Fatal(err)
			}
		})
		prog, err := r.engine.Program(g, p)
		if err != nil {
			t.Fatal(err)
		}
		d, err := keep(prog)
		if err == nil {
			d.end()
		}
		if err == nil || !strings.Contains(err.Error(), "/"+place+" of the guest: is a symbolic link") {
			t.Errorf("%s is a link: %v", place, err)
		}
	}
	open, err := os.MkdirTemp("", "lodge-open-") // where everybody may write, as in /tmp
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(open) })
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	out := r.script("cat /etc/hostname", func(g *guest.Guest, p *engine.Parts) {
		etc := p.Root.Writable + "/upper/etc"
		if err := os.MkdirAll(etc, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mkfifo(etc+"/hosts", 0o666); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(outside+"/planted", etc+"/resolv.conf"); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(open, p.Root.Writable+"/upper/var"); err != nil {
			t.Fatal(err)
		}
		g.Spec.UserData = "#cloud-config\n"
		p.DNS = nil
	})
	if !strings.Contains(out, "guest") {
		t.Errorf("said %q", out)
	}
	for _, dir := range []string{outside, open} {
		if left, err := exec.Command("ls", "-A", dir).CombinedOutput(); err != nil || len(left) > 0 {
			t.Errorf("the host's directory holds %s", left)
		}
	}
}
