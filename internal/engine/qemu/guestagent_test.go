package qemu

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
	"lodge/internal/base/session"
	"lodge/internal/engine"
	"lodge/internal/engine/qemu/qga"
	"lodge/internal/engine/qemu/qga/qgatest"
	"lodge/internal/model"
	"lodge/internal/model/guest"
	"lodge/test/sandbox"
)

// unfurnished is a guest without a QEMU that an agent was found in.
func unfurnished(t *testing.T, ours net.Conn) (theirVoice, *int) {
	t.Helper()
	l, told := heard()
	l.life, l.end = context.WithCancel(t.Context())
	a := &guestAgent{l: l, name: "g", mark: filepath.Join(t.TempDir(), markFile), poke: make(chan struct{}, 1), client: qga.New(ours)}
	if err := a.greet(a.client); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.end)
	return theirVoice{a, guest.Guest{Meta: model.Meta{ID: "g", Name: "g"}}}, told
}

func imitated(t *testing.T, x *qgatest.Agent) (theirVoice, *int) {
	t.Helper()
	ours, theirs := qgatest.Line(t)
	go x.Serve(theirs)
	return unfurnished(t, ours)
}

// ran runs a program and returns what it said.
func (v theirVoice) ran(t *testing.T, r session.Request, input io.Reader) (out, errOut string, status int, err error) {
	t.Helper()
	var ends [3][2]*os.File
	for i := range ends {
		a, b, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		ends[i] = [2]*os.File{a, b}
	}
	r.Stdin, r.Stdout, r.Stderr = ends[0][0], ends[1][1], ends[2][1]
	s, err := v.Exec(t.Context(), r)
	for _, f := range []*os.File{r.Stdin, r.Stdout, r.Stderr} {
		f.Close()
	}
	if err != nil {
		return "", "", 0, err
	}
	go func() {
		if input != nil {
			io.Copy(ends[0][1], input)
		}
		ends[0][1].Close()
	}()
	said := make(chan string, 2)
	for _, f := range []*os.File{ends[1][0], ends[2][0]} {
		go func() {
			b, _ := io.ReadAll(f)
			said <- string(b)
		}()
		defer f.Close()
	}
	status, err = s.Wait(t.Context())
	all := []string{<-said, <-said}
	slices.Sort(all)
	return all[1], all[0], status, err
}

// testExec holds what answers as QEMU's agent to what programs are promised.
func testExec(t *testing.T, v theirVoice) {
	dir := t.TempDir()
	for name, c := range map[string]struct {
		r      session.Request
		input  string
		out    string // the one of its streams that it wrote to
		status int
	}{
		"output":      {session.Request{Argv: []string{"echo", "a  b", "$HOME"}}, "", "a  b $HOME\n", 0},
		"a status":    {session.Request{Argv: []string{"sh", "-c", "exit 9"}}, "", "", 9},
		"a signal":    {session.Request{Argv: []string{"sh", "-c", "kill -15 $$"}}, "", "", 143},
		"errors":      {session.Request{Argv: []string{"sh", "-c", "echo no >&2; exit 1"}}, "", "no\n", 1},
		"input":       {session.Request{Argv: []string{"cat"}}, "fed", "fed", 0},
		"a folder":    {session.Request{Argv: []string{"pwd"}, Dir: dir}, "", dir + "\n", 0},
		"at home":     {session.Request{Argv: []string{"pwd"}}, "", "/root\n", 0},
		"environment": {session.Request{Argv: []string{"sh", "-c", "echo $A $TERM"}, Env: []string{"A=b"}}, "", "b xterm-256color\n", 0},
		"a user":      {session.Request{Argv: []string{"sh", "-c", "id -un; id -gn"}, User: "nobody:daemon", Dir: "/"}, "", "nobody\ndaemon\n", 0},
		"a number":    {session.Request{Argv: []string{"sh", "-c", "id -u; id -g"}, User: "1", Dir: "/"}, "", "1\n1\n", 0},
		"no program":  {session.Request{Argv: []string{"/no/such"}}, "", "sh: 21: exec: /no/such: not found\n", 127},
	} {
		out, _, status, err := v.ran(t, c.r, strings.NewReader(c.input))
		if err != nil || status != c.status || name != "no program" && out != c.out || !strings.HasPrefix(out, c.out[:min(3, len(c.out))]) {
			t.Errorf("%s: %q, status %d, %v", name, out, status, err)
		}
	}
	if _, err := v.Exec(t.Context(), session.Request{Argv: []string{"sh"}, TTY: true}); !errs.Is(err, errs.Unsupported) {
		t.Errorf("with a terminal: %v", err)
	}
	if _, _, _, err := v.ran(t, session.Request{Argv: []string{"cat"}}, bytes.NewReader(make([]byte, inputMax+1))); !errs.Is(err, errs.Invalid) {
		t.Errorf("with input of no end: %v", err)
	}
	testKill(t, v)
}

// testKill ends a program by a signal, and one that nobody waits for any more.
func testKill(t *testing.T, v theirVoice) {
	s, err := v.Exec(t.Context(), session.Request{Argv: []string{"sleep", "600"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Signal(unix.SIGTERM); err != nil { // perhaps before it runs
		t.Error(err)
	}
	if status, err := s.Wait(t.Context()); status != 143 || err != nil {
		t.Errorf("ended by SIGTERM: %d, %v", status, err)
	}
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	if s, err = v.Exec(ctx, session.Request{Argv: []string{"sh", "-c", "echo $$ >pid; exec sleep 600"}, Dir: dir}); err != nil {
		t.Fatal(err)
	}
	go func() {
		for waitFor(func() bool { b, _ := os.ReadFile(filepath.Join(dir, "pid")); return len(b) > 0 }) {
		}
		cancel()
	}()
	if _, err := s.Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("nobody waits: %v", err)
	}
	pid, _ := os.ReadFile(filepath.Join(dir, "pid"))
	for waitFor(func() bool { return exec.Command("kill", "-0", strings.TrimSpace(string(pid))).Run() != nil }) {
	}
}

// waitFor reports whether one has to go on waiting.
func waitFor(is func() bool) bool {
	time.Sleep(5 * time.Millisecond)
	return !is()
}

// testFiles copies a tree in and out.
func testFiles(t *testing.T, v theirVoice) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "from/a tree"), 0o750); err != nil {
		t.Fatal(err)
	}
	content := bytes.Repeat([]byte("content "), 100_000)
	write(t, filepath.Join(dir, "from/a tree/f"), content)
	if err := errors.Join(os.Chown(filepath.Join(dir, "from/a tree/f"), 12345, 54321), os.Symlink("f", filepath.Join(dir, "from/a tree/l")), os.Mkdir(filepath.Join(dir, "to"), 0o755)); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := v.Pack(t.Context(), filepath.Join(dir, "from/a tree"), &b); err != nil {
		t.Fatal(err)
	}
	first, err := tar.NewReader(bytes.NewReader(b.Bytes())).Next()
	if err != nil || strings.TrimSuffix(first.Name, "/") != "a tree" {
		t.Errorf("%+v, %v", first, err)
	}
	if err := v.Unpack(t.Context(), filepath.Join(dir, "to"), &b); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	err = unix.Stat(filepath.Join(dir, "to/a tree/f"), &st)
	got, _ := os.ReadFile(filepath.Join(dir, "to/a tree/f"))
	if link, _ := os.Readlink(filepath.Join(dir, "to/a tree/l")); err != nil || !bytes.Equal(got, content) || st.Uid != 12345 || st.Gid != 54321 || link != "f" {
		t.Errorf("%d bytes of %d:%d, link to %q, %v", len(got), st.Uid, st.Gid, link, err)
	}
	if err := v.Pack(t.Context(), filepath.Join(dir, "none"), io.Discard); !errs.Is(err, errs.NotFound) {
		t.Errorf("what is not there: %v", err)
	}
	if err := v.Unpack(t.Context(), filepath.Join(dir, "to/a tree/f"), &b); !errs.Is(err, errs.Invalid) {
		t.Errorf("into a file: %v", err)
	}
	if err := v.Unpack(t.Context(), filepath.Join(dir, "to"), strings.NewReader("no tar")); !errs.Is(err, errs.Conflict) {
		t.Errorf("no tar: %v", err)
	}
	if left, _ := filepath.Glob(parcelIn + "*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestTheirAgent(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: runs programs as others")
	}
	v, _ := imitated(t, &qgatest.Agent{})
	testExec(t, v)
	testFiles(t, v)
}

// TestTheRealAgent holds QEMU's own agent to the same, without a machine
// around it.
func TestTheRealAgent(t *testing.T) {
	if _, err := exec.LookPath("qemu-ga"); err != nil || os.Geteuid() != 0 {
		sandbox.Missing(t, "qemu-ga is not installed, or this is not root")
	}
	dir := t.TempDir()
	socket := filepath.Join(dir, "line")
	c := exec.Command("qemu-ga", "--method=unix-listen", "--path="+socket, "--statedir="+dir, "--pidfile="+filepath.Join(dir, "pid"),
		"--block-rpcs=guest-shutdown,guest-set-time,guest-fsfreeze-freeze") // of the machine that the tests run on
	var said bytes.Buffer
	c.Stdout, c.Stderr = &said, &said
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Process.Kill(); c.Wait() })
	var conn net.Conn
	for end := time.Now().Add(time.Minute); conn == nil; time.Sleep(10 * time.Millisecond) {
		var err error
		if conn, err = net.Dial("unix", socket); err != nil && time.Now().After(end) {
			t.Fatalf("%v: %s", err, said.String())
		}
	}
	v, _ := unfurnished(t, conn)
	testExec(t, v)
	testFiles(t, v)
	if _, err := v.Freeze(t.Context(), time.Minute); !errs.Is(err, errs.Unsupported) {
		t.Errorf("what the guest's administrator forbade: %v", err)
	}
	var p engine.Probe
	if v.a.probe(&p, nil); !p.Ready || !strings.HasPrefix(p.Agent, "QEMU guest agent ") {
		t.Errorf("%+v", p)
	}
}

// TestRest: a snapshot is only called consistent if nothing was written
// meanwhile.
func TestRest(t *testing.T) {
	x := &qgatest.Agent{Systems: 2}
	v, _ := imitated(t, x)
	release, err := v.Freeze(t.Context(), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Freeze(t.Context(), time.Minute); !errs.Is(err, errs.Busy) {
		t.Errorf("twice at a time: %v", err)
	}
	if err := release(); err != nil {
		t.Error(err)
	}
	if release, err = v.Freeze(t.Context(), time.Minute); err != nil {
		t.Fatal(err)
	}
	if _, err := v.a.client.Thaw(t.Context()); err != nil { // as its administrator may
		t.Fatal(err)
	}
	if err := release(); !errs.Is(err, errs.Busy) {
		t.Errorf("it went on by itself: %v", err)
	}
	// One whose host forgets it goes on.
	if release, err = v.Freeze(t.Context(), time.Millisecond); err != nil {
		t.Fatal(err)
	}
	for waitFor(func() bool { f, err := v.a.client.Frozen(t.Context()); return err == nil && !f }) {
	}
	if err := release(); !errs.Is(err, errs.Busy) {
		t.Errorf("too late: %v", err)
	}
}

// TestAGuestThatWasLeftFrozen: the daemon that brought it to rest died.
func TestAGuestThatWasLeftFrozen(t *testing.T) {
	x := &qgatest.Agent{Systems: 2}
	ours, theirs := qgatest.Line(t)
	go x.Serve(theirs)
	if _, err := qga.New(ours).Freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	v, told := unfurnished(t, ours)
	if f, err := v.a.client.Frozen(t.Context()); f || err != nil {
		t.Errorf("%v, %v", f, err)
	}
	if *told != 1 {
		t.Errorf("told %d times of the agent", *told)
	}
}

// TestWhenAnAgentIsExpected: only a guest that is known to have an agent is not
// ready before it answers, and not for ever.
func TestWhenAnAgentIsExpected(t *testing.T) {
	now, long := time.Now(), time.Now().Add(-2*bootTime)
	for name, c := range map[string]struct {
		a       *guestAgent
		started *time.Time
		ready   bool
		err     errs.Kind
	}{
		"unknown, boots":   {&guestAgent{}, &now, true, errs.Busy},
		"unknown, is up":   {&guestAgent{}, &long, true, errs.Unsupported},
		"expected, boots":  {&guestAgent{expected: true}, &now, false, errs.Busy},
		"expected, absent": {&guestAgent{expected: true}, &long, true, errs.Busy},
		"answered":         {&guestAgent{expected: true, up: true}, &now, true, errs.Busy},
	} {
		var p engine.Probe
		if c.a.probe(&p, c.started); p.Ready != c.ready {
			t.Errorf("%s: ready %v", name, p.Ready)
		}
		if _, err := c.a.speaker(c.started, "guest-exec"); errs.KindOf(err) != c.err {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestCareByTheirAgent has owners of guests of disks let in.
func TestCareByTheirAgent(t *testing.T) {
	v, _ := imitated(t, &qgatest.Agent{Forbidden: "guest-set-time"})
	const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHJ1bm5pbmctb3V0LW9mLWlkZWFzLWZvci1rZXlzLiEh ann@desk"
	if err := v.SetPassword(t.Context(), "root", "open, sesame"); err != nil {
		t.Error(err)
	}
	if err := v.Authorize(t.Context(), "root", []string{key}); err != nil {
		t.Error(err)
	}
	if n, err := v.Trim(t.Context()); err != nil || n != 7 {
		t.Errorf("trimmed %d: %v", n, err)
	}
	for what, err := range map[string]error{
		"another user":      v.SetPassword(t.Context(), "ann", "x"),
		"what is forbidden": v.SetClock(t.Context(), time.Now()),
	} {
		if !errs.Is(err, errs.Unsupported) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for what, err := range map[string]error{
		"no password": v.SetPassword(t.Context(), "root", ""),
		"no name":     v.SetPassword(t.Context(), "a:b", "x"),
		"no key":      v.Authorize(t.Context(), "root", []string{"x"}),
	} {
		if !errs.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
