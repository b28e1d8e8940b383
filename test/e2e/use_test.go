package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"lodge/api"
)

// TestExec runs programs in all the ways there are.
func TestExec(t *testing.T) {
	s := newServer(t)
	s.busybox()
	s.lodge("launch", "busybox", "g", "--memory", "64MiB", "--env", "FROM=spec")
	for _, c := range []struct {
		out  string
		code int
		args []string
	}{
		{"root /root\n", 0, []string{"g", "--", "sh", "-c", "echo $(id -un) $PWD"}},
		{"/tmp\n", 0, []string{"--cwd", "/tmp", "g", "--", "pwd"}},
		{"b c\n", 0, []string{"--env", "A=b c", "g", "--", "sh", "-c", "echo $A"}},
		{"65534\n", 0, []string{"--user", "65534", "g", "--", "id", "-u"}},
		{"65534 7\n", 0, []string{"--user", "65534:7", "g", "--", "sh", "-c", "echo $(id -u) $(id -g)"}},
		{"", 42, []string{"g", "--", "sh", "-c", "exit 42"}},
		{"", 137, []string{"g", "--", "sh", "-c", "kill -9 $$"}},
		{"-x --help\n", 0, []string{"g", "--", "echo", "-x", "--help"}},
	} {
		if r := s.try(append([]string{"exec"}, c.args...)...); r.out != c.out || r.code != c.code {
			t.Errorf("%v: %+v", c.args, r)
		}
	}
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	if r := s.tryWith(big, "exec", "-i", "g", "--", "md5sum"); r.out != run(t, big, "md5sum").out {
		t.Errorf("a MiB of input: %+v", r)
	}
	if r := s.tryWith(big, "exec", "-i", "g", "--", "cat"); r.out != string(big) {
		t.Errorf("a MiB there and back: %d bytes", len(r.out))
	}

	m := s.terminal("exec", "-it", "g", "--", "sh")
	m.say("stty size; tty\n")
	m.see("40 100")
	m.see("/dev/pts/")
	m.resize(50, 120)
	m.say("sleep 0.3; stty size\n")
	m.see("50 120")
	m.say("echo be$((1+1))gin; sleep 100\n")
	m.see("be2gin")
	m.say("\x03")
	m.say("echo inter$((1+1))upted; exit 5\n")
	m.see("inter2upted")
	if code := m.ends(); code != 5 {
		t.Errorf("exec -it ended with %d", code)
	}
	m = s.terminal("shell", "g")
	m.say("hostname; exit\n")
	m.see("g\r\n")
	m.ends()

	cmd := exec.Command(binary(t, "lodge"), "exec", "g", "--", "sh", "-c", "trap 'echo told; exit 3' TERM; echo ready; while :; do sleep 0.1; done")
	cmd.Env = append(os.Environ(), "LODGE_HOST=unix://"+s.path("run/lodged.sock"))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 6)
	if _, err := out.Read(buf); err != nil {
		t.Fatal(err)
	}
	cmd.Process.Signal(syscall.SIGTERM)
	rest := make([]byte, 10)
	n, _ := out.Read(rest)
	if cmd.Wait(); string(rest[:n]) != "told\n" || cmd.ProcessState.ExitCode() != 3 {
		t.Errorf("SIGTERM: %q, %d", rest[:n], cmd.ProcessState.ExitCode())
	}
	console(t, s, "g")
	if out := s.lodge("logs", "g", "--tail", "3"); !strings.Contains(out, "42-it") {
		t.Errorf("logs do not hold what was on the console: %q", out)
	}
}

// TestCopy brings files in and out.
func TestCopy(t *testing.T) {
	s := newServer(t)
	s.busybox()
	s.lodge("launch", "busybox", "g", "--memory", "64MiB")
	tree := s.path("tree")
	if err := os.MkdirAll(filepath.Join(tree, "sub"), 0o750); err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]os.FileMode{"a": 0o640, "sub/b": 0o755} {
		if err := os.WriteFile(filepath.Join(tree, name), []byte(name), mode); err != nil {
			t.Fatal(err)
		}
	}
	os.Symlink("sub/b", filepath.Join(tree, "link"))
	os.Chown(filepath.Join(tree, "a"), 12, 34)
	s.lodge("cp", tree, "g:/srv")
	if out := s.lodge("exec", "g", "--", "sh", "-c", "cd /srv/tree 2>/dev/null || cd /srv; stat -c '%n %a %u %g' a sub/b; readlink link; cat link"); out != "a 640 12 34\nsub/b 755 0 0\nsub/b\nsub/b" {
		t.Errorf("inside: %q", out)
	}
	where := strings.TrimSpace(s.lodge("exec", "g", "--", "sh", "-c", "cd /srv/tree 2>/dev/null || cd /srv; pwd"))
	back := s.path("back")
	s.lodge("cp", "g:"+where, back)
	if r := run(t, nil, "diff", "-r", "--no-dereference", tree, back); r.code != 0 {
		t.Errorf("there and back: %s", r.out)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(back, "a"), &st); err != nil || st.Uid != 12 || st.Gid != 34 || st.Mode&0o777 != 0o640 {
		t.Errorf("outside: %+v, %v", st, err)
	}
	stream := s.try("cp", "g:"+where, "-")
	if r := run(t, []byte(stream.out), "tar", "t"); !strings.Contains(r.out, "sub/b") {
		t.Errorf("a tar: %s", r.out)
	}
	if r := s.tryWith([]byte(stream.out), "cp", "-", "g:/mnt"); r.code != 0 {
		t.Errorf("a tar in: %+v", r)
	}
	s.lodge("exec", "g", "--", "sh", "-c", "find /mnt -name b | grep .")
	s.refused(3, []string{"nosuch"}, "cp", "nosuch:/etc/passwd", s.path("x"))
}

// TestApply makes what files say, twice.
func TestApply(t *testing.T) {
	s := newServer(t)
	file := s.path("shop.yaml")
	text := `kind: image
name: busybox
---
kind: network
name: lab
ipv4: 10.88.0.0/24
---
kind: guest
name: web
image: busybox
memory: 64MiB
networks: [lab]
labels: {tier: front}
publish: ["18080:80"]
power: on
---
kind: guest
name: spare
image: busybox
memory: 32MiB
power: off
`
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	s.lodge("image", "build", "busybox")
	if r := s.try("diff", "--exit-code", "-f", file); r.code != 1 || !strings.Contains(r.out, "web") {
		t.Errorf("diff before: %+v", r)
	}
	s.lodge("apply", "-f", file)
	if g := s.guest("web"); g.Phase != "running" || g.MemoryBytes != 64<<20 || g.Labels["tier"] != "front" || g.NICs[0].Network != "lab" {
		t.Errorf("web: %+v", g)
	}
	if g := s.guest("spare"); g.Phase != "stopped" {
		t.Errorf("spare: %s", g.Phase)
	}
	if r := s.try("diff", "--exit-code", "-f", file); r.code != 0 {
		t.Errorf("diff after: %+v", r)
	}
	before := s.guest("web")
	s.lodge("apply", "-f", file)
	if after := s.guest("web"); after.Pid != before.Pid || after.Generation != before.Generation {
		t.Error("applying again changed something")
	}
	os.WriteFile(file, []byte(strings.Replace(text, "memory: 64MiB", "memory: 96MiB", 1)), 0o644)
	if out := s.try("diff", "-f", file).out; !strings.Contains(out, "memory") {
		t.Errorf("diff does not name the field: %s", out)
	}
	s.lodge("apply", "-f", file)
	if g := s.guest("web"); g.MemoryBytes != 96<<20 || g.Pid != before.Pid {
		t.Errorf("changed: %d bytes, pid %d, was %d", g.MemoryBytes, g.Pid, before.Pid)
	}
	if out := s.lodge("ls", "--label", "tier=front", "-q"); out != "web\n" {
		t.Errorf("by label: %q", out)
	}
}

// TestLook asks for everything that can be looked at, in every form.
func TestLook(t *testing.T) {
	s := newServer(t)
	s.busybox()
	s.lodge("launch", "busybox", "g", "--memory", "64MiB", "--publish", "18081:80")
	for _, what := range [][]string{{"ls"}, {"ps"}, {"image", "ls"}, {"pool", "ls"}, {"network", "ls"}, {"forward", "ls"}, {"op", "ls", "--all"}, {"stats", "--no-stream"}} {
		if all := list[map[string]any](s, what...); len(all) == 0 {
			t.Errorf("%v shows nothing", what)
		}
		if out := s.lodge(append(what, "-o", "yaml")...); !strings.Contains(out, ":") {
			t.Errorf("%v as YAML: %s", what, out)
		}
		if out := s.lodge(what...); strings.Count(out, "\n") < 2 {
			t.Errorf("%v as a table: %s", what, out)
		}
	}
	var keys []map[string]json.RawMessage
	if err := json.Unmarshal([]byte(s.lodge("ls", "-o", "json")), &keys); err != nil {
		t.Fatal(err)
	}
	for _, k := range []string{"name", "model", "image", "phase", "addresses", "cpus", "memory_bytes", "host", "created"} {
		if _, there := keys[0][k]; !there {
			t.Errorf("ls -o json has no %s", k)
		}
	}
	for _, what := range [][]string{{"show", "g"}, {"image", "show", "busybox"}, {"pool", "show", "default"}, {"network", "show", "default"},
		{"host", "show"}, {"top"}, {"version"}, {"debug", "graph"}, {"completion", "bash"}, {"completion", "zsh"}, {"completion", "fish"}, {"help", "exit-codes"}} {
		if out := s.lodge(what...); out == "" {
			t.Errorf("%v shows nothing", what)
		}
	}
	if out := s.lodge("__complete", "stop", ""); !strings.Contains(out, "g\n") {
		t.Errorf("names of guests are not completed: %q", out)
	}
	if r := s.try("doctor"); !strings.Contains(r.out, "cgroup") && !strings.Contains(r.out, "control groups") {
		t.Errorf("doctor: %+v", r)
	}
	id := strings.TrimSpace(s.lodge("stop", "--no-wait", "g"))
	s.lodge("op", "wait", id)
	var op api.Operation
	if err := json.Unmarshal([]byte(s.lodge("op", "show", id, "-o", "json")), &op); err != nil || op.State != "done" || op.Verb != "guest.stop" {
		t.Errorf("the operation: %+v, %v", op, err)
	}
	events(t, s)
}

// events checks that what happened can be read again from any point.
func events(t *testing.T, s *server) {
	read := func(args ...string) (all []api.Event) {
		t.Helper()
		for _, line := range strings.Split(strings.TrimSpace(s.lodge(append([]string{"events", "-o", "json"}, args...)...)), "\n") {
			var e api.Event
			if err := json.Unmarshal([]byte(line), &e); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			all = append(all, e)
		}
		return all
	}
	all := read("--kind", "guest")
	if len(all) < 3 {
		t.Fatalf("only %d events", len(all))
	}
	middle := all[len(all)/2].Rev
	for _, e := range read("--kind", "guest", "--since", fmt.Sprint(middle)) {
		if e.Rev <= middle {
			t.Errorf("event %d is not after %d", e.Rev, middle)
		}
	}
}

// TestRun does what people do with docker.
func TestRun(t *testing.T) {
	s := newServer(t)
	s.busybox()
	if r := s.try("run", "--rm", "busybox", "echo", "hello"); r.code != 0 || strings.TrimSpace(r.out) != "hello" {
		t.Errorf("run: %+v", r)
	}
	if r := s.try("run", "--rm", "busybox", "sh", "-c", "echo bye; exit 6"); r.code != 6 || strings.TrimSpace(r.out) != "bye" {
		t.Errorf("run: %+v", r)
	}
	if left := s.guests(); len(left) > 0 {
		t.Errorf("--rm leaves %v", s.lodge("ls"))
	}
	m := s.terminal("run", "--rm", "-it", "busybox", "sh")
	m.say("echo in-$((40+2)); exit 4\n")
	m.see("in-42")
	if code := m.ends(); code != 4 {
		t.Errorf("run -it: %d\n%s", code, m.text())
	}
	s.lodge("run", "-d", "--name", "d", "busybox", "sh", "-c", "echo started; i=0; while :; do echo line $i; i=$((i+1)); sleep 0.1; done")
	until(t, "it speaks", func() error {
		if out := s.lodge("logs", "d"); !strings.Contains(out, "started") || !strings.Contains(out, "line 2") {
			return errors.New(out)
		}
		return nil
	})
	if out := s.lodge("logs", "d", "--tail", "2"); strings.Count(out, "\n") != 2 {
		t.Errorf("the last two lines: %q", out)
	}
	f := s.terminal("logs", "-f", "--tail", "1", "d")
	f.see("line 5")
	f.say("\x03")
	f.ends()
	s.lodge("rm", "-f", "d")
	s.noLeaks()
}

// TestBoot lets the host go down and come up: who is to come back does.
func TestBoot(t *testing.T) {
	s := newServer(t)
	s.busybox()
	s.lodge("launch", "busybox", "second", "--memory", "32MiB", "--autostart", "--autostart-order", "2")
	s.lodge("launch", "busybox", "first", "--memory", "32MiB", "--autostart", "--autostart-order", "1")
	s.lodge("launch", "busybox", "always", "--memory", "32MiB", "--restart", "always")
	s.lodge("launch", "busybox", "never", "--memory", "32MiB")
	s.lodge("exec", "never", "--", "touch", "/root/kept")
	if r := s.down(); r.code != 0 {
		t.Fatalf("down: %s%s", r.out, r.err)
	}
	nothingLeft(t, s.dir, s.flag("--cgroup"), s.flag("--prefix"))
	s.start()
	until(t, "they come back", func() error {
		all := s.guests()
		for _, name := range []string{"first", "second", "always"} {
			if g := all[name]; g.Phase != "running" {
				return fmt.Errorf("%s: %s, %+v", name, g.Phase, g.Problem)
			}
		}
		return nil
	})
	all := s.guests()
	if all["first"].Started.After(*all["second"].Started) {
		t.Errorf("first started at %v, second at %v", all["first"].Started, all["second"].Started)
	}
	t.Logf("never is %s", all["never"].Phase)
	s.try("start", "never")
	s.lodge("exec", "never", "--", "test", "-e", "/root/kept")
	s.lodge("rm", "-f", "--all")
	s.noLeaks()
}
