package oslevel

import (
	"context"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
	"lodge/internal/base/session"
	"lodge/internal/engine"
	"lodge/internal/model/guest"
)

// sleeper is a guest that does nothing.
func (r *rig) sleeper() (*direct, *Machine) {
	return r.run(func(g *guest.Guest, _ *engine.Parts) {
		g.Spec.Command = []string{"sh", "-c", "trap 'exit 3' TERM; echo up; while :; do sleep 1 & wait; done"}
	})
}

// output runs a program and returns what it wrote and its status.
func output(t testing.TB, m *Machine, r session.Request) (string, int) {
	t.Helper()
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	r.Stdout, r.Stderr = out, out
	s, err := m.Exec(context.Background(), r)
	out.Close()
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(in)
	if err != nil {
		t.Fatal(err)
	}
	code, err := s.Wait(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return string(text), code
}

func shell(t testing.TB, m *Machine, command string) string {
	t.Helper()
	out, _ := output(t, m, session.Request{Argv: []string{"sh", "-c", command}})
	return out
}

func TestExec(t *testing.T) {
	r := newRig(t)
	_, m := r.sleeper()
	for _, c := range []struct {
		r    session.Request
		want string
		code int
	}{
		{session.Request{Argv: []string{"true"}}, "", 0},
		{session.Request{Argv: []string{"sh", "-c", "exit 7"}}, "", 7},
		{session.Request{Argv: []string{"sh", "-c", "kill -9 $$"}}, "", 137},
		{session.Request{Argv: []string{"sh", "-c", "echo $X $container $PWD $HOME $USER; id"}, Env: []string{"X=y"}},
			"y lodge /root /root root\nuid=0(root) gid=0(root)", 0},
		{session.Request{Argv: []string{"sh", "-c", "echo $HOME; id; grep Cap[EP] /proc/self/status"}, User: "ann", Dir: "/tmp"},
			"/home/ann\nuid=1000(ann) gid=1000(ann) groups=29(audio),1000(ann)\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000", 0},
		{session.Request{Argv: []string{"id"}, User: "1000:29"}, "uid=1000(ann) gid=29(audio)", 0},
		{session.Request{Argv: []string{"id"}, User: "4711"}, "uid=4711 gid=0", 0},
		{session.Request{Argv: []string{"sh", "-c", "cat /proc/self/cgroup | grep ^0:; hostname; ls /proc/self/ns | wc -l"}}, "0::/lodge-exec\nguest1\n", 0},
	} {
		out, code := output(t, m, c.r)
		if code != c.code || !strings.HasPrefix(out, c.want) {
			t.Errorf("%v: %d %q, want %d %q", c.r.Argv, code, out, c.code, c.want)
		}
	}
	for _, c := range []struct {
		r    session.Request
		kind errs.Kind
		want string
	}{
		{session.Request{Argv: []string{"nope"}}, errs.NotFound, "nope: not found in guest"},
		{session.Request{Argv: []string{"/etc/passwd"}}, errs.Denied, "/etc/passwd: permission denied"},
		{session.Request{Argv: []string{"true"}, User: "bob"}, errs.NotFound, `no user "bob"`},
		{session.Request{Argv: []string{"true"}, User: "ann:bob"}, errs.NotFound, `no group "bob"`},
		{session.Request{Argv: []string{"true"}, Dir: "/nowhere"}, errs.NotFound, "/nowhere: no such file"},
		{session.Request{}, errs.Invalid, "no program"},
	} {
		s, err := m.Exec(context.Background(), c.r)
		if err == nil {
			s.Wait(context.Background())
		}
		if !errs.Is(err, c.kind) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: %v", c.r, err)
		}
	}
}

func TestExecTerminal(t *testing.T) {
	r := newRig(t)
	_, m := r.sleeper()
	s, err := m.Exec(context.Background(), session.Request{Argv: []string{"sh", "-c", "tty; stty size; read x; echo got $x; read y; stty size; ls -l $(tty); sleep 100"}, TTY: true, Rows: 33, Cols: 77, User: "ann"})
	if err != nil {
		t.Fatal(err)
	}
	seen := ""
	until := func(want string) {
		t.Helper()
		b := make([]byte, 1024)
		for !strings.Contains(seen, want) {
			n, err := s.Terminal().Read(b)
			seen += string(b[:n])
			if err != nil {
				t.Fatalf("%v before %q in %q", err, want, seen)
			}
		}
	}
	until("/dev/pts/0\r\n33 77\r\n")
	s.Terminal().WriteString("hello\n")
	until("got hello\r\n")
	if err := s.Resize(44, 88); err != nil {
		t.Fatal(err)
	}
	s.Terminal().WriteString("\n")
	until("44 88\r\n")
	until("1 ann")
	if err := s.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code, err := s.Wait(context.Background()); code != 128+15 || err != nil {
		t.Errorf("status %d, %v", code, err)
	}
}

// TestExecCancelled checks that who gives up waiting leaves nothing running.
func TestExecCancelled(t *testing.T) {
	r := newRig(t)
	_, m := r.sleeper()
	s, err := m.Exec(context.Background(), session.Request{Argv: []string{"sleep", "1000"}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if code, err := s.Wait(ctx); code != 137 || err == nil {
		t.Errorf("status %d, %v", code, err)
	}
	if out := shell(t, m, "ps | grep -c '[s]leep 1000'"); out != "0\n" {
		t.Errorf("it still runs: %s", out)
	}
}

// TestExecWhileFrozen checks that an exec that lost the race against a pause
// can be given up, and leaves nothing behind.
func TestExecWhileFrozen(t *testing.T) {
	r := newRig(t)
	_, m := r.sleeper()
	group := r.tree.Join(m.parts.Cgroup).Dir + "/" + execGroup
	shell(t, m, "true") // makes the group
	if err := os.WriteFile(group+"/cgroup.freeze", []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(200*time.Millisecond, cancel)
	if _, err := m.Exec(ctx, session.Request{Argv: []string{"true"}}); !errs.Is(err, errs.Cancelled) {
		t.Errorf("given up: %v", err)
	}
	if left, err := os.ReadFile(group + "/cgroup.procs"); err != nil || len(left) > 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
}

// TestExecAfterTheEnd checks what is said when the guest is gone.
func TestExecAfterTheEnd(t *testing.T) {
	r := newRig(t)
	d, m := r.sleeper()
	if err := m.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Exec(t.Context(), session.Request{Argv: []string{"true"}}); !errs.Is(err, errs.Conflict) {
		t.Errorf("exec in a guest that ended: %v", err)
	}
}
