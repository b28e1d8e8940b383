package e2e

import (
	"archive/tar"
	"bytes"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lodge/test/sandbox"
)

// noticed is how long lodged may take to be sure that a guest does not answer,
// on a busy machine.
const noticed = 3 * time.Minute

// background runs a script in a guest of which nobody hears any more.
func (s *server) background(guest, script string) {
	s.t.Helper()
	s.shell(guest, "(sleep 0.5; "+script+") >/dev/null 2>&1 </dev/null &")
}

// watched is for how long at least is looked at what a guest that is not well
// costs its host.
const watched = 10 * time.Second

// signalAgent sends the agent of a guest with a kernel of its own a signal.
const signalAgent = `for p in /proc/[0-9]*; do grep -q '^@lodge-agent' $p/cmdline && kill -%s ${p#/proc/}; done`

// misbehaviours are scripts by the name of what they do to a guest. What hang
// does stops all of an older kernel; newer ones keep a twentieth of the time for
// ordinary programs, whatever they are told, so that there the agent is stopped
// as well.
var misbehaviours = map[string]string{
	"no-agent": fmt.Sprintf(signalAgent, "KILL"),
	"garbage":  fmt.Sprintf(signalAgent, "KILL") + `; for f in /dev/vport*p* /dev/ttyS1; do cat /dev/urandom >$f & done`,
	"hangs":    `[ ! -e /dev/ubda ] || ` + fmt.Sprintf(signalAgent, "STOP") + `; /root/hang`,
	"stopped":  `sleep 1d`, // which the host does
}

// TestGuestsThatMisbehave has guests with kernels of their own lose their agent,
// answer garbage, hang, be stopped with all of their kernel, and never stop. Each
// is told with what it said last, costs the host little, leaves others alone, and
// ends when it is forced to.
func TestGuestsThatMisbehave(t *testing.T) {
	long(t)
	s := newModels(t)
	s.lodge("launch", "busybox", "good", "--memory", "32MiB")
	hang := compiled(t, "hang/hang.c")
	models := []string{"paravirt", "vm"}
	bad := map[string]string{}
	for what, script := range misbehaviours {
		for _, model := range models {
			name := model + "-" + what
			bad[name] = script
			s.lodge("launch", "busybox", name, "--model", model, "--memory", "128MiB", "--cpus", "1")
		}
	}
	names := slices.Sorted(maps.Keys(bad))
	for _, name := range names {
		s.answers(name)
		s.lodge("cp", hang, name+":/root/hang")
	}
	for _, name := range names {
		s.background(name, "echo last words >/dev/console; "+bad[name])
	}
	for _, name := range names {
		if strings.HasSuffix(name, "-stopped") {
			s.stopped(name)
		}
	}
	for _, name := range names {
		t.Run(name, func(t *testing.T) { s.in(t).silent(name) })
	}
	s.deaf(names)
	s.kill()
	s.start() // of a daemon that never heard them
	for _, name := range names {
		t.Run(name+", afterwards", func(t *testing.T) { s.in(t).forced(name) })
	}
	for _, model := range models {
		t.Run(model+" never stops", func(t *testing.T) { s.in(t).stubborn(model) })
	}
	s.lodge("rm", "-f", "--all")
	s.noLeaks()
}

// compiled makes a program that runs in any guest.
func compiled(t *testing.T, source string) (program string) {
	t.Helper()
	program = filepath.Join(t.TempDir(), strings.TrimSuffix(filepath.Base(source), ".c"))
	if _, err := exec.LookPath("gcc"); err != nil {
		sandbox.Missing(t, "gcc is not installed: scripts/deps.sh build")
	}
	if out, err := exec.Command("gcc", "-O2", "-Wall", "-static", "-o", program, source).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", source, err, out)
	}
	return program
}

// stopped stops what runs a guest, once that has said its last words.
func (s *server) stopped(name string) {
	s.t.Helper()
	until(s.t, "the last words of "+name, func() error {
		if out := s.lodge("logs", name); !strings.Contains(out, "last words") {
			return fmt.Errorf("it says %q", out)
		}
		return nil
	})
	if err := unix.Kill(s.guest(name).Pid, unix.SIGSTOP); err != nil {
		s.t.Fatal(err)
	}
}

// silent checks what is seen of a guest whose agent does not answer any more.
func (s *server) silent(name string) {
	s.t.Helper()
	s.suffers(name, "its agent does not answer", "last words")
	s.lodge("exec", "good", "--", "true")
}

// deaf runs a program in each of these guests, which comes to an end although
// none of them answers.
func (s *server) deaf(names []string) {
	s.t.Helper()
	var all sync.WaitGroup
	for _, name := range names {
		all.Go(func() {
			if r := s.try("exec", name, "--", "true"); r.code == 0 || !strings.Contains(r.err, "hint") {
				s.t.Errorf("exec in %s: %+v", name, r)
			}
		})
	}
	all.Wait()
}

// forced ends such a guest, which is well after a new start.
func (s *server) forced(name string) {
	s.t.Helper()
	s.suffers(name, "not answer", "last words") // its agent or its monitor
	s.lodge("exec", "good", "--", "true")
	s.lodge("stop", "--force", name)
	s.lodge("start", name)
	s.answers(name)
	if g := s.guest(name); g.Problem != nil {
		s.t.Errorf("after a new start: %+v", g)
	}
	s.lodge("rm", "-f", name)
}

// stubborn has a guest that never stops, which ends when its time is over.
func (s *server) stubborn(model string) {
	s.t.Helper()
	name := model + "-stubborn"
	s.lodge("launch", "busybox", name, "--model", model, "--memory", "128MiB", "--stop-timeout", "3s", "--",
		"/bin/sh", "-c", "trap '' TERM INT; echo ready; while :; do sleep 1; done")
	until(s.t, "it is there", func() error {
		if out := s.lodge("logs", name); !strings.Contains(out, "ready") {
			return fmt.Errorf("it says %q", out)
		}
		return nil
	})
	s.lodge("stop", name)
	if g := s.guest(name); g.Phase != "stopped" {
		s.t.Errorf("it is %+v", g)
	}
	s.lodge("rm", "-f", name)
}

// suffers waits until a guest that runs has a Problem with these words, and is
// shown with what it said last. Meanwhile lodged and the keeper rest.
func (s *server) suffers(name, problem, last string) {
	s.t.Helper()
	used, begun := s.used(), time.Now()
	for end := begun.Add(noticed); ; time.Sleep(time.Second) {
		g := s.guest(name)
		if g.Problem != nil && strings.Contains(g.Problem.Message, problem) && g.Phase == "running" {
			s.t.Logf("%s: seen after %v", name, time.Since(begun).Round(time.Second))
			break
		}
		if time.Now().After(end) {
			s.t.Fatalf("nobody sees that %s is not well: %s, %+v", name, g.Phase, g.Problem)
		}
	}
	time.Sleep(watched - time.Since(begun))
	share := (s.used() - used).Seconds() / time.Since(begun).Seconds()
	s.t.Logf("%s: lodged and the keeper took %.1f %% of a processor for %v", name, 100*share, time.Since(begun).Round(time.Second))
	if share > 0.5 {
		s.t.Errorf("%s costs the host %.0f %% of a processor", name, 100*share)
	}
	if out := s.lodge("show", name); !strings.Contains(out, last) || !strings.Contains(out, problem) {
		s.t.Errorf("%s is shown without what it said last:\n%s", name, out)
	}
}

// used is the processor time that lodged and the keeper have taken.
func (s *server) used() (sum time.Duration) {
	s.t.Helper()
	for _, pid := range []int{s.cmd.Process.Pid, s.keeper()} {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			s.t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(stat), ") ")
		f := strings.Fields(rest)
		for _, ticks := range f[11:13] {
			n, err := strconv.Atoi(ticks)
			if err != nil {
				s.t.Fatal(err)
			}
			sum += time.Duration(n) * time.Second / 100
		}
	}
	return sum
}

// TestFlood has guests of all models write to their consoles as fast as they can.
// What is kept is bounded, and so is what it costs.
func TestFlood(t *testing.T) {
	s := newModels(t)
	for name, model := range ofModel {
		s.lodge("launch", "busybox", name, "--model", model, "--memory", "128MiB")
	}
	for name, model := range ofModel {
		s.answers(name)
		used, begun := s.used(), time.Now()
		s.background(name, "tr '\\0' x </dev/zero >/dev/console")
		dir := s.path("data/guests/" + s.guest(name).ID)
		until(t, "the log of "+name+" begins anew", func() error {
			_, err := os.Stat(filepath.Join(dir, "console.log.1"))
			return err
		})
		time.Sleep(3 * time.Second) // of flood
		s.lodge("exec", name, "--", "true")
		share := (s.used() - used).Seconds() / time.Since(begun).Seconds()
		t.Logf("model %s: a flood takes %.0f %% of a processor of lodged and the keeper", model, 100*share)
		if share > 0.6 {
			t.Errorf("model %s: a flood takes %.0f %% of a processor", model, 100*share)
		}
		var kept int64
		logs, _ := filepath.Glob(dir + "/console.log*")
		for _, l := range logs {
			if info, err := os.Stat(l); err == nil {
				kept += info.Size()
			}
		}
		if kept > 4<<20 {
			t.Errorf("model %s: %d bytes of a flood are kept", model, kept)
		}
		s.lodge("stop", "--force", name)
	}
	s.lodge("rm", "-f", "--all")
	s.noLeaks()
}

// TestForeignImage imports a tree for another processor.
func TestForeignImage(t *testing.T) {
	s := newServer(t)
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	elf := make([]byte, 64)
	copy(elf, "\x7fELF\x02\x01\x01")
	elf[18] = 183 // arm64
	entry(w, tar.Header{Name: "bin/sh"}, string(elf))
	entry(w, tar.Header{Name: "sbin/init"}, string(elf))
	w.Close()
	if r := s.tryWith(b.Bytes(), "image", "import", "-", "foreign"); r.code != 0 {
		t.Fatalf("import: %+v", r)
	}
	for _, model := range []string{"os", "vm", "paravirt"} {
		s.refused(1, []string{"image", "arm64", "hint"}, "launch", "foreign", "bad", "--model", model)
	}
	if len(s.guests()) > 0 {
		t.Error("something came of it")
	}
}

// TestHostDiskFull fills the disk of the host under guests of all models. Those
// with disks of their own wait until there is room, which is told, and lose
// nothing; programs in the other are refused. Who writes nothing does not notice.
func TestHostDiskFull(t *testing.T) {
	small := smallFileSystem(t, "3G")
	s := newModels(t, "--data-dir", small, "--pool", "dir", "--template-memory", "0") // making one would give back room
	for name, model := range ofModel {
		s.lodge("launch", "busybox", name, "--model", model, "--memory", "128MiB")
	}
	for name := range ofModel {
		s.answers(name)
		s.shell(name, "echo kept >/root/kept; sync")
	}
	ballast := filepath.Join(small, "ballast")
	t.Cleanup(func() { os.Remove(ballast) })
	fill(t, ballast)
	t.Log("the disk is full")
	const write = "dd if=/dev/urandom of=/root/big bs=64k count=640 && sync && md5sum </root/big >/root/sum && sync"
	if r := s.try("exec", "os1", "--", "sh", "-c", write); r.code == 0 || !strings.Contains(r.err, "No space left on device") {
		t.Errorf("model os: %+v", r)
	}
	t.Log("model os was told")
	wait := []string{"vm1", "para1"}
	for _, name := range wait {
		s.background(name, write)
	}
	for _, name := range wait {
		s.suffers(name, "no space left for its disk root", "")
	}
	s.lodge("exec", "os1", "--", "true")
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	for _, name := range wait {
		inTime(t, name+" goes on", func() error {
			r := s.try("exec", name, "--", "sh", "-c", "md5sum </root/big | cmp - /root/sum && cat /root/kept")
			if g := s.guest(name); r.code != 0 || r.out != "kept\n" || g.Problem != nil {
				return fmt.Errorf("%+v, %+v", r, g.Problem)
			}
			return nil
		})
	}
	s.lodge("rm", "-f", "--all")
	s.noLeaks()
}

// smallFileSystem gives the server that is made next a data directory of size
// bytes on a file system like a host's.
func smallFileSystem(t *testing.T, size string) (dir string) {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "lodge-small-")
	if err != nil {
		t.Fatal(err)
	}
	file := dir + ".img"
	t.Cleanup(func() { os.Remove(file); os.Remove(dir) })
	for _, argv := range [][]string{{"truncate", "-s", size, file}, {"mkfs.ext4", "-q", "-F", "-m", "0", file}, {"mount", "-o", "loop", file, dir}} {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", argv, err, out)
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmounting the small file system: %v", err)
			unix.Unmount(dir, unix.MNT_DETACH)
		}
	})
	return dir
}
