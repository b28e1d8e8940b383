package dial

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lodge/internal/agent"
	"lodge/internal/agent/inside"
	"lodge/internal/base/errs"
	"lodge/internal/base/session"
	"lodge/test/sandbox"
)

func TestMain(m *testing.M) {
	os.Exit(sandbox.Run(func() int {
		defer func() { os.RemoveAll(made.dir) }()
		return m.Run()
	}))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// pair is two ends of a line.
func pair(t testing.TB) (host, guest *os.File) {
	t.Helper()
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	must(t, err)
	host, guest = os.NewFile(uintptr(p[0]), "host"), os.NewFile(uintptr(p[1]), "guest")
	t.Cleanup(func() { host.Close(); guest.Close() })
	return host, guest
}

// mailbox is a file that both ends see, opened twice.
func mailbox(t testing.TB) (host, guest *os.File) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "mailbox")
	host, err := os.Create(name)
	must(t, err)
	must(t, host.Truncate(8*agent.SlotSize))
	guest, err = os.OpenFile(name, os.O_RDWR, 0)
	must(t, err)
	t.Cleanup(func() { guest.Close() })
	return host, guest
}

// house is a link to an agent that takes this sandbox for its guest.
type house struct {
	*Link
	agent *inside.Agent
	guest *os.File
}

type kind struct {
	name         string
	credit, mail bool
}

var kinds = []kind{{name: "plain"}, {name: "credit", credit: true}, {name: "mailbox", credit: true, mail: true}}

func newHouse(t testing.TB, k kind) *house {
	t.Helper()
	host, guest := pair(t)
	a := inside.New(agent.Config{ID: "one", Hostname: "web1", Env: map[string]string{"OWN": "yes"}})
	o := Options{Credit: k.credit}
	if k.mail {
		h, g := mailbox(t)
		m, err := agent.NewMailbox(g)
		must(t, err)
		o.Mailbox, a.Mailbox = h, m
	}
	go a.Converse(guest, k.credit)
	l := Open(host, o)
	t.Cleanup(func() { l.Close() })
	return &house{Link: l, agent: a, guest: guest}
}

func each(t *testing.T, test func(t *testing.T, h *house)) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) { test(t, newHouse(t, k)) })
	}
}

// patiently is how long anything may take here before it counts as stuck.
func patiently(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// outcome runs a program to its end and returns what it said.
func outcome(t testing.TB, l *Link, r session.Request, stdin io.Reader) (code int, out, errOut string, err error) {
	t.Helper()
	ctx := patiently(t)
	var mine, theirs [3]*os.File
	for i := range mine {
		r, w, err := os.Pipe()
		must(t, err)
		mine[i], theirs[i] = r, w
		if i == 0 {
			mine[i], theirs[i] = w, r
		}
	}
	r.Stdin, r.Stdout, r.Stderr = theirs[0], theirs[1], theirs[2]
	p, err := l.Exec(ctx, r)
	for _, f := range theirs {
		f.Close()
	}
	if err != nil {
		for _, f := range mine {
			f.Close()
		}
		return 0, "", "", err
	}
	go func() {
		if stdin != nil {
			io.Copy(mine[0], stdin)
		}
		mine[0].Close()
	}()
	texts := make(chan string, 1)
	go func() { b, _ := io.ReadAll(mine[2]); texts <- string(b) }()
	b, _ := io.ReadAll(mine[1])
	code, err = p.Wait(ctx)
	return code, string(b), <-texts, err
}

func TestExec(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		for _, c := range []struct {
			script, in string
			code       int
			out, err   string
		}{
			{script: "echo out; echo err >&2; exit 7", code: 7, out: "out\n", err: "err\n"},
			{script: "kill -9 $$", code: 137},
			{script: "cat; echo end", in: "some input", out: "some inputend\n"},
			{script: "echo $OWN $HOME $USER $ADDED", out: "yes /root root more\n"},
			{script: "pwd", out: "/root\n"},
		} {
			code, out, errOut, err := outcome(t, h.Link, session.Request{Argv: []string{"sh", "-c", c.script}, Env: []string{"ADDED=more"}}, strings.NewReader(c.in))
			if err != nil || code != c.code || out != c.out || errOut != c.err {
				t.Errorf("%s: %d %q %q %v", c.script, code, out, errOut, err)
			}
		}
	})
}

func TestExecRefusals(t *testing.T) {
	h := newHouse(t, kinds[0])
	for _, c := range []struct {
		r    session.Request
		kind errs.Kind
		says string
	}{
		{session.Request{Argv: []string{"no-such-program"}}, errs.NotFound, "no-such-program: not found in guest"},
		{session.Request{Argv: []string{"/etc/passwd"}}, errs.Denied, "/etc/passwd"},
		{session.Request{Argv: []string{"sh"}, User: "nobody-here"}, errs.NotFound, "no user"},
		{session.Request{Argv: []string{"sh"}, User: "root:no-group"}, errs.NotFound, "no group"},
		{session.Request{Argv: []string{"sh"}, Dir: "/no/such"}, errs.NotFound, "/no/such"},
		{session.Request{}, errs.Invalid, "no program"},
		{session.Request{Argv: []string{"sh", "-c", strings.Repeat("x", 600<<10)}}, errs.Invalid, "bytes"},
	} {
		_, err := h.Exec(patiently(t), c.r)
		if !errs.Is(err, c.kind) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%.60v: %v %v", c.r.Argv, errs.KindOf(err), err)
		}
	}
}

func TestMuchThroughAProgram(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		in := make([]byte, 3<<20)
		for i := range in {
			in[i] = byte(i * i >> 7)
		}
		code, out, _, err := outcome(t, h.Link, session.Request{Argv: []string{"cat"}}, bytes.NewReader(in))
		if err != nil || code != 0 || out != string(in) {
			t.Errorf("%d, %d of %d bytes: %v", code, len(out), len(in), err)
		}
	})
}

// TestStreamsDoNotWaitForEachOther: one that nobody reads holds up neither the
// other nor the end.
func TestStreamsDoNotWaitForEachOther(t *testing.T) {
	h := newHouse(t, kinds[1])
	ctx := patiently(t)
	outR, outW, err := os.Pipe()
	must(t, err)
	errR, errW, err := os.Pipe()
	must(t, err)
	defer outR.Close()
	defer errR.Close()
	p, err := h.Exec(ctx, session.Request{Argv: []string{"sh", "-c", "head -c 1000000 /dev/zero & sleep 0.2; echo heard >&2; exit 3"}, Stdout: outW, Stderr: errW})
	must(t, err)
	outW.Close()
	errW.Close()
	b := make([]byte, 6)
	if _, err := io.ReadFull(errR, b); err != nil || string(b) != "heard\n" {
		t.Errorf("%q %v", b, err)
	}
	if code, err := p.Wait(ctx); err != nil || code != 3 {
		t.Errorf("%d %v", code, err)
	}
}

func TestTerminal(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		ctx := patiently(t)
		p, err := h.Exec(ctx, session.Request{Argv: []string{"sh", "-c", "tty; stty size; trap 'stty size; exit 5' WINCH; read line; echo got $line; while :; do sleep 0.05; done"}, TTY: true, Rows: 33, Cols: 77})
		must(t, err)
		var said strings.Builder
		waitFor := func(text string) {
			b := make([]byte, 512)
			for !strings.Contains(said.String(), text) {
				n, err := p.Terminal().Read(b)
				said.Write(b[:n])
				if err != nil {
					t.Fatalf("%q, then %v", said.String(), err)
				}
			}
		}
		waitFor("33 77")
		if !strings.Contains(said.String(), "/dev/pts/") {
			t.Errorf("the terminal has no name: %q", said.String())
		}
		_, err = p.Terminal().WriteString("hello\n")
		must(t, err)
		waitFor("got hello")
		must(t, p.Resize(44, 88))
		waitFor("44 88")
		if _, err := io.Copy(&said, p.Terminal()); err != nil {
			t.Errorf("the terminal does not end: %v", err)
		}
		if code, err := p.Wait(ctx); err != nil || code != 5 {
			t.Errorf("%d %v", code, err)
		}
	})
}

func TestSignalAndCancel(t *testing.T) {
	h := newHouse(t, kinds[0])
	ctx := patiently(t)
	p, err := h.Exec(ctx, session.Request{Argv: []string{"sleep", "1000"}})
	must(t, err)
	must(t, p.Signal(unix.SIGTERM))
	if code, err := p.Wait(ctx); err != nil || code != 128+15 {
		t.Errorf("%d %v", code, err)
	}
	p, err = h.Exec(ctx, session.Request{Argv: []string{"sleep", "1000"}})
	must(t, err)
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if code, err := p.Wait(cancelled); err != context.Canceled || code != 137 {
		t.Errorf("%d %v", code, err)
	}
}

func TestFilesThereAndBack(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("sets owners: needs root")
	}
	each(t, func(t *testing.T, h *house) {
		ctx := patiently(t)
		from, to := t.TempDir(), t.TempDir()
		must(t, os.Mkdir(filepath.Join(from, "app"), 0o750))
		big := bytes.Repeat([]byte("\xf5\xf5M0123456789abcdef and so on\xf5"), 200_000)
		must(t, os.WriteFile(filepath.Join(from, "app/big"), big, 0o640))
		must(t, os.WriteFile(filepath.Join(from, "app/small"), []byte("s"), 0o600))
		must(t, os.Chown(filepath.Join(from, "app/small"), 12, 34))
		var packed bytes.Buffer
		must(t, h.Pack(ctx, filepath.Join(from, "app"), &packed))
		must(t, h.Unpack(ctx, to, bytes.NewReader(packed.Bytes())))
		got, err := os.ReadFile(filepath.Join(to, "app/big"))
		if err != nil || !bytes.Equal(got, big) {
			t.Errorf("%d of %d bytes: %v", len(got), len(big), err)
		}
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(to, "app/small"), &st); err != nil || st.Uid != 12 || st.Gid != 34 || st.Mode&0o777 != 0o600 {
			t.Errorf("%+v %v", st, err)
		}
	})
}

func TestFileRefusals(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		ctx := patiently(t)
		for _, c := range []struct {
			kind errs.Kind
			err  error
		}{
			{errs.NotFound, h.Pack(ctx, "/no/such/file", io.Discard)},
			{errs.NotFound, h.Unpack(ctx, "/no/such/folder", strings.NewReader(""))},
			{errs.Invalid, h.Pack(ctx, "relative", io.Discard)},
			{errs.Invalid, h.Unpack(ctx, "/", strings.NewReader(strings.Repeat("no tar ", 1000)))},
		} {
			if !errs.Is(c.err, c.kind) {
				t.Errorf("%v, want %v", c.err, c.kind)
			}
		}
		// A feeder that never ends does not keep the agent's refusal back.
		r, w := io.Pipe()
		defer w.Close()
		if err := h.Unpack(ctx, "/no/such/folder", r); !errs.Is(err, errs.NotFound) {
			t.Error(err)
		}
	})
}

// TestAnotherHostTakesOver: a daemon that just started finds the agent in the
// middle of what the last one left.
func TestAnotherHostTakesOver(t *testing.T) {
	for _, credit := range []bool{false, true} {
		host, guest := pair(t)
		a := inside.New(agent.Config{})
		go a.Converse(guest, credit)
		for range 3 {
			fd, err := unix.FcntlInt(host.Fd(), unix.F_DUPFD_CLOEXEC, 0)
			must(t, err)
			must(t, unix.SetNonblock(fd, true))
			l := Open(os.NewFile(uintptr(fd), "line"), Options{Credit: credit})
			if _, err := l.Stats(patiently(t)); err != nil {
				t.Fatal(err)
			}
			go l.Exec(context.Background(), session.Request{Argv: []string{"cat", "/dev/zero"}})
			l.Close()
			host.Write([]byte("\x00\x00 half a frame \xf5M123")) // what a killed one leaves
		}
	}
}

func TestStateIsPushed(t *testing.T) {
	host, guest := pair(t)
	a := inside.New(agent.Config{})
	go a.Converse(guest, false)
	changed := make(chan struct{}, 100)
	l := Open(host, Options{Changed: func() { changed <- struct{}{} }})
	defer l.Close()
	must(t, l.until(patiently(t), func() bool { return l.state.Connected }))
	if l.State().Ready {
		t.Error("ready before the agent said so")
	}
	a.Ready()
	must(t, l.Await(patiently(t)))
	<-changed
	guest.Close()
	<-l.Done()
	if s := l.State(); s.Connected || s.Ready {
		t.Errorf("%+v after the guest ended", s)
	}
	if _, err := l.Stats(patiently(t)); !errs.Is(err, errs.Conflict) {
		t.Error(err)
	}
}
