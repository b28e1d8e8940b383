package enginetest

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"lodge/internal/base/errs"
	"lodge/internal/base/session"
	"lodge/internal/engine"
	"lodge/internal/model/guest"
)

func execute(t *testing.T, h *suite) {
	r := h.guest(t)
	for _, c := range []struct {
		q    session.Request
		want string
		code int
	}{
		{session.Request{Argv: []string{"true"}}, "", 0},
		{session.Request{Argv: []string{"sh", "-c", "exit 42"}}, "", 42},
		{session.Request{Argv: []string{"sh", "-c", "kill -TERM $$"}}, "", 143},
		{session.Request{Argv: []string{"sh", "-c", "echo $MINE"}, Env: []string{"MINE=call"}}, "call\n", 0},
		{session.Request{Argv: []string{"pwd"}, Dir: "/etc"}, "/etc\n", 0},
		{session.Request{Argv: []string{"pwd"}}, "/root\n", 0},
		{session.Request{Argv: []string{"sh", "-c", "id -u; pwd"}, User: "ann"}, "1000\n/home/ann\n", 0},
		{session.Request{Argv: []string{"hostname"}}, r.g.Name + "\n", 0},
		{session.Request{Argv: []string{"sh", "-c", "echo err >&2; echo out"}}, "out\nerr\n", 0},
	} {
		if out, code := r.run(c.q); out != c.want || code != c.code {
			t.Errorf("%v: %d %q, want %d %q", c.q.Argv, code, out, c.code, c.want)
		}
	}
	_, err := r.exec(session.Request{Argv: []string{"no-such-program"}})
	if !errs.Is(err, errs.NotFound) || !strings.Contains(err.Error(), "no-such-program: not found in guest") {
		t.Errorf("a program that is not there: %v", err)
	}
	if _, err = r.exec(session.Request{Argv: []string{"true"}, User: "nobody-here"}); !errs.Is(err, errs.NotFound) {
		t.Errorf("a user who is not there: %v", err)
	}
	r.input()
	if n := len(r.shell("head -c 1000000 /dev/zero | tr '\\0' x")); n != 1_000_000 {
		t.Errorf("of a million bytes %d came out", n)
	}
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

// executeMany checks that programs that run at once do not meet.
func executeMany(t *testing.T, h *suite) {
	r := h.guest(t)
	var all sync.WaitGroup
	for i := range 10 {
		s, text := r.begin(session.Request{Argv: []string{"sh", "-c", fmt.Sprintf("echo begun %d; sleep 0.2; echo done %d; exit %d", i, i, i)}})
		all.Go(func() {
			said := text()
			code, err := s.Wait(t.Context())
			if want := fmt.Sprintf("begun %d\ndone %d\n", i, i); said != want || code != i || err != nil {
				t.Errorf("program %d: %q, status %d, %v", i, said, code, err)
			}
		})
	}
	all.Wait()
}

// givenUp checks that nothing runs on for whoever went away.
func givenUp(t *testing.T, h *suite) {
	r := h.guest(t)
	s, _ := r.begin(session.Request{Argv: []string{"sleep", "4711"}})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s.Wait(ctx)
	r.eventually("the program has ended", func() bool { return r.shell("grep -l '471[1]' /proc/[0-9]*/cmdline") == "" })
}

func terminal(t *testing.T, h *suite) {
	r := h.guest(t)
	s, err := r.exec(session.Request{Argv: []string{"sh", "-c", "tty; stty size; read x; stty size; exit 5"}, TTY: true, Rows: 40, Cols: 132})
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

func console(t *testing.T, h *suite) {
	r := h.start(t, guest.Spec{Command: []string{"sh", "-c", "echo booted; while read x; do echo you said $x; done"}})
	r.seen("booted")
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

// flood checks that a guest that says all the time fills no disk and can be
// spoken to and ended.
func flood(t *testing.T, h *suite) {
	r := h.boot(t, guest.Spec{})
	p, err := h.Engine.Program(r.g, r.parts)
	if err != nil {
		t.Fatal(err)
	}
	limit := p.LogMax
	if limit == 0 {
		limit = 1 << 20 // what the keeper takes
	}
	r.background("yes " + strings.Repeat("flood", 20) + " >/dev/console")
	log := engine.ConsoleLog(r.parts.Dir)
	r.eventually("the log begins anew", func() bool {
		_, err := os.Stat(log + ".1")
		return err == nil
	})
	r.answers()
	time.Sleep(time.Second) // of flood
	sum := int64(0)
	all, err := os.ReadDir(r.parts.Dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		if i, err := f.Info(); err == nil && strings.HasPrefix(f.Name(), "console.log") {
			sum += i.Size()
		}
	}
	if sum > 2*limit {
		t.Errorf("the console's log has %d bytes, is to have at most %d", sum, 2*limit)
	}
	if err := r.m.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.wait()
}

// network checks that guests on one network reach each other.
func network(t *testing.T, h *suite) {
	if h.NIC == nil {
		t.Skip("the harness has no network")
	}
	var all []*running
	for i := range 2 {
		g, parts := h.Guest(t, guest.Spec{})
		parts.NICs = []engine.NIC{h.NIC(t, i+1)}
		r := &running{t: t, h: h, g: g, parts: parts}
		r.start()
		t.Cleanup(r.end)
		all = append(all, r)
	}
	for _, r := range all {
		r.up()
		n := r.parts.NICs[0]
		if out := r.must("cat /sys/class/net/" + n.Name + "/address"); out != n.MAC {
			t.Errorf("the card's address is %s, not %s", out, n.MAC)
		}
	}
	for i, r := range all {
		to := all[1-i].parts.NICs[0].IPv4.Addr()
		r.must(fmt.Sprintf("ping -c 2 -w 20 %s", to))
	}
}
