// Package enginetest is the suite that every engine must pass, on real guests
// kept by a real keeper.
package enginetest

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"lodge/internal/base/errs"
	"lodge/internal/base/session"
	"lodge/internal/engine"
	"lodge/internal/keeper"
	"lodge/internal/model/guest"
)

// Harness is an engine on a host.
type Harness struct {
	Engine  engine.Engine
	Keepers keeper.Keepers
	// Guest makes a record and everything a boot needs, and cleans it all up
	// with t. Its image has a shell, the usual small programs and a user "ann"
	// (uid 1000, home /home/ann), and its init writes "booted" on the console.
	Guest func(t *testing.T, spec guest.Spec) (guest.Guest, engine.Parts)
	// Processes reads the host's limit on the number of a guest's processes.
	Processes func(t *testing.T, parts engine.Parts) int64
}

// patience is how long the suite waits for what must happen.
const patience = 60 * time.Second

// Run runs the suite.
func Run(t *testing.T, h Harness) {
	for _, c := range []struct {
		name string
		test func(t *testing.T, h Harness)
	}{
		{"info", info}, {"program", program}, {"lifecycle", lifecycle}, {"shutdown", shutdown}, {"exit", exit},
		{"badInit", badInit}, {"reconnect", reconnect}, {"exec", execute}, {"terminal", terminal}, {"console", console},
		{"pause", pause}, {"resize", resize}, {"files", files}, {"usage", usage}, {"many", many},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, h) })
	}
}

// running is one guest of the suite.
type running struct {
	t     *testing.T
	g     guest.Guest
	parts engine.Parts
	held  keeper.Held
	m     engine.Machine
}

func (h Harness) boot(t *testing.T, spec guest.Spec) *running {
	t.Helper()
	ctx := t.Context()
	g, parts := h.Guest(t, spec)
	p, err := h.Engine.Program(g, parts)
	if err != nil {
		t.Fatal(err)
	}
	held, err := h.Keepers.Start(ctx, g.ID, p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.end(t, g, parts, held) })
	m, err := h.Engine.Connect(ctx, g, parts, held)
	if err != nil {
		t.Fatal(err)
	}
	return &running{t: t, g: g, parts: parts, held: held, m: m}
}

// end ends what a test left running.
func (h Harness) end(t *testing.T, g guest.Guest, parts engine.Parts, held keeper.Held) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if m, err := h.Engine.Connect(ctx, g, parts, held); err == nil {
		if err := m.Kill(ctx); err != nil {
			t.Error(err)
		}
	}
	if _, err := held.Wait(ctx); err != nil {
		t.Error(err)
	}
	if err := h.Keepers.Forget(ctx, g.ID); err != nil && !errs.Is(err, errs.NotFound) {
		t.Error(err)
	}
}

// wait returns how the guest ended.
func (r *running) wait() keeper.Exit {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	e, err := r.held.Wait(ctx)
	if err != nil {
		r.t.Fatal(err)
	}
	return e
}

// run runs a program without a terminal.
func (r *running) run(q session.Request) (string, int) {
	r.t.Helper()
	in, out, err := os.Pipe()
	if err != nil {
		r.t.Fatal(err)
	}
	defer in.Close()
	q.Stdout, q.Stderr = out, out
	s, err := r.m.(engine.Execer).Exec(r.t.Context(), q)
	out.Close()
	if err != nil {
		r.t.Fatal(err)
	}
	text, err := io.ReadAll(in)
	if err != nil {
		r.t.Fatal(err)
	}
	code, err := s.Wait(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	return string(text), code
}

func (r *running) shell(command string) string {
	r.t.Helper()
	out, _ := r.run(session.Request{Argv: []string{"sh", "-c", command}})
	return strings.TrimSpace(out)
}

// eventually waits until what holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

func info(t *testing.T, h Harness) {
	i, err := h.Engine.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if i.Name == "" || i.Model == "" || i.Version == "" {
		t.Errorf("the engine does not say what it is: %+v", i)
	}
	if i.Missing != "" {
		t.Fatalf("the engine says it cannot run here: %s", i.Missing)
	}
	m := h.boot(t, guest.Spec{}).m
	if is := abilities(m, i.Can.Disk); is != i.Can {
		t.Errorf("the engine says it can %+v, its machines can %+v", i.Can, is)
	}
}

// abilities is what a machine can, seen by what it is. Whether its engine boots
// disks cannot be seen.
func abilities(m engine.Machine, disk bool) engine.Can {
	is := engine.Can{Disk: disk}
	_, is.Pause = m.(engine.Pauser)
	_, is.Resize = m.(engine.Resizer)
	_, is.Exec = m.(engine.Execer)
	_, is.Files = m.(engine.Filer)
	_, is.Usage = m.(engine.Meter)
	_, is.Plug = m.(engine.Plugger)
	_, is.Save = m.(engine.Saver)
	_, is.Screen = m.(engine.Screener)
	_, is.Debug = m.(engine.Debugger)
	_, is.Quiesce = m.(engine.Quiescer)
	_, is.Renew = m.(engine.Renewer)
	return is
}

func program(t *testing.T, h Harness) {
	g, parts := h.Guest(t, guest.Spec{Env: map[string]string{"A": "1", "B": "2", "C": "3"}})
	first, err := h.Engine.Program(g, parts)
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		again, err := h.Engine.Program(g, parts)
		if err != nil || !bytes.Equal(first.Input, again.Input) || !slices.Equal(first.Argv, again.Argv) || !slices.Equal(first.Env, again.Env) {
			t.Fatalf("the same guest gave another program (%v)", err)
		}
	}
}

func lifecycle(t *testing.T, h Harness) {
	r := h.boot(t, guest.Spec{})
	if p, err := r.m.Probe(t.Context()); err != nil || p.Paused {
		t.Fatalf("%+v, %v", p, err)
	}
	if err := r.m.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if e := r.wait(); e.Signal != syscall.SIGKILL {
		t.Errorf("a killed guest ended as %+v", e)
	}
	if err := r.m.Kill(t.Context()); err != nil {
		t.Errorf("killing it again: %v", err)
	}
	if _, err := h.Engine.Connect(t.Context(), r.g, r.parts, r.held); err == nil {
		t.Error("a guest that ended can be connected to")
	}
}

func shutdown(t *testing.T, h Harness) {
	r := h.boot(t, guest.Spec{})
	r.seen("booted")
	if err := r.m.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if e := r.wait(); e.Signal == syscall.SIGKILL {
		t.Errorf("a clean stop ended as %+v", e)
	}
}

// seen waits for a text on the console, of which a log is kept.
func (r *running) seen(text string) {
	r.t.Helper()
	eventually(r.t, text+" on the console", func() bool {
		p, err := os.ReadFile(r.parts.Dir + "/console.log")
		return err == nil && strings.Contains(string(p), text)
	})
}

func exit(t *testing.T, h Harness) {
	r := h.boot(t, guest.Spec{Command: []string{"sh", "-c", "echo $GREETING; exit 3"}, Env: map[string]string{"GREETING": "hello there"}})
	if e := r.wait(); e.Code != 3 || e.Signal != 0 {
		t.Errorf("ended as %+v", e)
	}
	r.seen("hello there")
	r = h.boot(t, guest.Spec{Command: []string{"sh", "-c", "trap 'exit 4' TERM; echo booted; while :; do sleep 0.1; done"}})
	r.seen("booted")
	if err := r.m.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if e := r.wait(); e.Code != 4 {
		t.Errorf("ended as %+v", e)
	}
}

func badInit(t *testing.T, h Harness) {
	g, parts := h.Guest(t, guest.Spec{Command: []string{"/no/such/program"}})
	p, err := h.Engine.Program(g, parts)
	if err != nil {
		t.Fatal(err)
	}
	held, err := h.Keepers.Start(t.Context(), g.ID, p)
	if err == nil {
		h.end(t, g, parts, held)
		t.Fatal("a guest without a program to run started")
	}
	if !strings.Contains(err.Error(), "/no/such/program") {
		t.Errorf("the failure does not name the program: %v", err)
	}
}

func reconnect(t *testing.T, h Harness) {
	r := h.boot(t, guest.Spec{})
	held, err := h.Keepers.Find(r.g.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.m.Close(); err != nil {
		t.Fatal(err)
	}
	if r.m, err = h.Engine.Connect(t.Context(), r.g, r.parts, held); err != nil {
		t.Fatal(err)
	}
	if out := r.shell("echo still here"); out != "still here" {
		t.Errorf("said %q", out)
	}
}

func execute(t *testing.T, h Harness) {
	r := h.boot(t, guest.Spec{Env: map[string]string{"OF": "guest"}})
	for _, c := range []struct {
		q    session.Request
		want string
		code int
	}{
		{session.Request{Argv: []string{"true"}}, "", 0},
		{session.Request{Argv: []string{"sh", "-c", "exit 42"}}, "", 42},
		{session.Request{Argv: []string{"sh", "-c", "kill -TERM $$"}}, "", 143},
		{session.Request{Argv: []string{"sh", "-c", "echo $OF $MINE"}, Env: []string{"MINE=call"}}, "guest call\n", 0},
		{session.Request{Argv: []string{"pwd"}, Dir: "/etc"}, "/etc\n", 0},
		{session.Request{Argv: []string{"pwd"}}, "/root\n", 0},
		{session.Request{Argv: []string{"sh", "-c", "id -u; pwd"}, User: "ann"}, "1000\n/home/ann\n", 0},
		{session.Request{Argv: []string{"hostname"}}, r.g.Name + "\n", 0},
		{session.Request{Argv: []string{"sh", "-c", "echo out; echo err >&2"}}, "out\nerr\n", 0},
	} {
		if out, code := r.run(c.q); out != c.want || code != c.code {
			t.Errorf("%v: %d %q, want %d %q", c.q.Argv, code, out, c.code, c.want)
		}
	}
	_, err := r.m.(engine.Execer).Exec(t.Context(), session.Request{Argv: []string{"no-such-program"}})
	if !errs.Is(err, errs.NotFound) || !strings.Contains(err.Error(), "no-such-program: not found in guest") {
		t.Errorf("a program that is not there: %v", err)
	}
	if _, err = r.m.(engine.Execer).Exec(t.Context(), session.Request{Argv: []string{"true"}, User: "nobody-here"}); !errs.Is(err, errs.NotFound) {
		t.Errorf("a user who is not there: %v", err)
	}
	r.input()
}

// input checks that a program reads what it is sent, to the end.
func (r *running) input() {
	in, out, err := os.Pipe()
	if err != nil {
		r.t.Fatal(err)
	}
	go func() {
		_, _ = io.WriteString(out, strings.Repeat("x", 200_000))
		out.Close()
	}()
	text, code := r.run(session.Request{Argv: []string{"wc", "-c"}, Stdin: in})
	in.Close()
	if strings.TrimSpace(text) != "200000" || code != 0 {
		r.t.Errorf("wc: %d %q", code, text)
	}
}

func terminal(t *testing.T, h Harness) {
	r := h.boot(t, guest.Spec{})
	s, err := r.m.(engine.Execer).Exec(t.Context(), session.Request{Argv: []string{"sh", "-c", "tty; stty size; read x; stty size; exit 5"}, TTY: true, Rows: 40, Cols: 132})
	if err != nil {
		t.Fatal(err)
	}
	seen, b := "", make([]byte, 1024)
	until := func(want string) {
		t.Helper()
		for !strings.Contains(seen, want) {
			n, err := s.Terminal().Read(b)
			if seen += string(b[:n]); err != nil {
				t.Fatalf("%v before %q in %q", err, want, seen)
			}
		}
	}
	until("/dev/")
	until("40 132")
	if err := s.Resize(50, 99); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Terminal().WriteString("\n"); err != nil {
		t.Fatal(err)
	}
	until("50 99")
	if code, err := s.Wait(t.Context()); code != 5 || err != nil {
		t.Errorf("status %d, %v", code, err)
	}
}

func console(t *testing.T, h Harness) {
	r := h.boot(t, guest.Spec{Command: []string{"sh", "-c", "while read x; do echo you said $x; done"}})
	c, err := r.held.Console(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "salut\n"); err != nil {
		t.Fatal(err)
	}
	seen, b := "", make([]byte, 1024)
	for !strings.Contains(seen, "you said salut") {
		n, err := c.Read(b)
		if seen += string(b[:n]); err != nil {
			t.Fatalf("%v after %q", err, seen)
		}
	}
	r.seen("you said salut")
}

func pause(t *testing.T, h Harness) {
	r := h.boot(t, guest.Spec{})
	p, ok := r.m.(engine.Pauser)
	if !ok {
		t.Skip("the engine cannot pause guests")
	}
	r.shell("(while :; do echo x >>/ticks; sleep 0.01; done) >/dev/null 2>&1 &")
	eventually(t, "the clock starts", func() bool { return r.shell("wc -l </ticks 2>/dev/null") != "" })
	if err := p.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	if pr, err := r.m.Probe(t.Context()); err != nil || !pr.Paused {
		t.Errorf("paused, and the probe says %+v, %v", pr, err)
	}
	if _, err := r.m.(engine.Execer).Exec(t.Context(), session.Request{Argv: []string{"true"}}); !errs.Is(err, errs.Conflict) {
		t.Errorf("exec in a paused guest: %v", err)
	}
	if err := p.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	was := r.shell("wc -l </ticks")
	eventually(t, "the clock goes on", func() bool { return r.shell("wc -l </ticks") != was })
	if err := p.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := r.m.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if e := r.wait(); e.Signal != syscall.SIGKILL {
		t.Errorf("killed while paused, it ended as %+v", e)
	}
}

func resize(t *testing.T, h Harness) {
	r := h.boot(t, guest.Spec{Processes: 50})
	z, ok := r.m.(engine.Resizer)
	if !ok {
		t.Skip("the engine cannot resize guests")
	}
	spec := r.g.Spec
	for _, n := range []int64{70, 20} {
		spec.Processes = n
		if err := z.Resize(t.Context(), spec); err != nil {
			t.Fatal(err)
		}
		if is := h.Processes(t, r.parts); is != n {
			t.Errorf("the limit of processes is %d, not %d", is, n)
		}
	}
}

func files(t *testing.T, h Harness) {
	r := h.boot(t, guest.Spec{})
	f, ok := r.m.(engine.Filer)
	if !ok {
		t.Skip("the engine cannot carry files")
	}
	in := smallTree(t)
	if err := f.Unpack(t.Context(), "/root", in); err != nil {
		t.Fatal(err)
	}
	if out := r.shell("cd /root; stat -c '%n %u:%g %a %Y' tree/a; cat tree/link; stat -c %a tree"); out != "tree/a 1000:29 640 1000000000\nhello750" {
		t.Errorf("in the guest it is %q", out)
	}
	var out bytes.Buffer
	if err := f.Pack(t.Context(), "/root/tree", &out); err != nil {
		t.Fatal(err)
	}
	names := readTree(t, &out)
	if len(names) != 3 || names[0] != "tree" {
		t.Errorf("came back: %v", names)
	}
	if err := f.Pack(t.Context(), "/nowhere", io.Discard); !errs.Is(err, errs.NotFound) {
		t.Errorf("packing what is not there: %v", err)
	}
}

// smallTree is a folder with a file and a link, as a tar stream.
func smallTree(t *testing.T) io.Reader {
	t.Helper()
	var in bytes.Buffer
	w := tar.NewWriter(&in)
	for _, e := range []tar.Header{
		{Name: "tree/", Typeflag: tar.TypeDir, Mode: 0o750, Uid: 1000, Gid: 1000},
		{Name: "tree/a", Typeflag: tar.TypeReg, Mode: 0o640, Uid: 1000, Gid: 29, Size: 5, ModTime: time.Unix(1_000_000_000, 0)},
		{Name: "tree/link", Typeflag: tar.TypeSymlink, Linkname: "a", Mode: 0o777},
	} {
		if err := w.WriteHeader(&e); err != nil {
			t.Fatal(err)
		}
		if e.Size > 0 {
			io.WriteString(w, "hello")
		}
	}
	w.Close()
	return &in
}

// readTree checks what came back of smallTree and returns the entries' names.
func readTree(t *testing.T, out io.Reader) []string {
	t.Helper()
	var names []string
	for tr := tar.NewReader(out); ; {
		e, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, strings.TrimSuffix(e.Name, "/"))
		if strings.HasSuffix(e.Name, "/a") && (e.Uid != 1000 || e.Gid != 29 || e.Mode&0o777 != 0o640) {
			t.Errorf("came back as %+v", e)
		}
	}
	return names
}

func usage(t *testing.T, h Harness) {
	r := h.boot(t, guest.Spec{Memory: 128 << 20})
	m, ok := r.m.(engine.Meter)
	if !ok {
		t.Skip("the engine cannot tell what guests use")
	}
	before, err := m.Usage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r.shell("i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done")
	after, err := m.Usage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if after.CPUSeconds <= before.CPUSeconds || after.Memory == 0 || after.Processes == 0 || after.MemoryLimit != 128<<20 {
		t.Errorf("before %+v, after %+v", before, after)
	}
}

// many checks that guests started at the same time do not meet.
func many(t *testing.T, h Harness) {
	var all []*running
	for range 8 {
		all = append(all, h.boot(t, guest.Spec{}))
	}
	for _, r := range all {
		if out := r.shell("hostname; echo $(ls /proc | grep -c '^[0-9]')"); !strings.HasPrefix(out, r.g.Name+"\n") {
			t.Errorf("%s says %q", r.g.Name, out)
		}
	}
}
