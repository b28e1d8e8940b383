package enginetest

import (
	"strings"
	"syscall"
	"testing"

	"lodge/internal/keeper"
	"lodge/internal/model/guest"
)

func lifecycle(t *testing.T, h *suite) {
	r := h.boot(t, guest.Spec{})
	if p, err := r.m.Probe(t.Context()); err != nil || p.Paused || p.Trouble != "" {
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

func shutdown(t *testing.T, h *suite) {
	r := h.boot(t, guest.Spec{})
	r.seen("booted")
	if err := r.m.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if e, _ := r.over(); e.Signal != syscall.SIGINT {
		t.Errorf("a clean stop ended as %+v", e)
	}
}

// selfMade checks that a guest's own wish to boot anew can be told from its
// wish to go down.
func selfMade(t *testing.T, h *suite) {
	r := h.boot(t, guest.Spec{})
	for _, c := range []struct {
		program string
		signal  syscall.Signal
	}{{"reboot", syscall.SIGHUP}, {"poweroff", syscall.SIGINT}} {
		r.background(c.program)
		if e, _ := r.over(); e.Signal != c.signal {
			t.Errorf("after %s in the guest it ended as %+v", c.program, e)
		}
		if c.signal == syscall.SIGHUP {
			r.again()
		}
	}
}

func exit(t *testing.T, h *suite) {
	r := h.start(t, guest.Spec{Command: []string{"sh", "-c", "echo $GREETING; exit 3"}, Env: map[string]string{"GREETING": "hello there"}})
	if e, _ := r.over(); e.Code != 3 || e.Signal != 0 {
		t.Errorf("ended as %+v", e)
	}
	r.seen("hello there")
	r = h.start(t, guest.Spec{Command: []string{"sh", "-c", "trap 'exit 4' TERM; echo booted; while :; do sleep 0.1; done"}})
	r.seen("booted")
	r.up()
	if err := r.m.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if e, _ := r.over(); e.Code != 4 {
		t.Errorf("ended as %+v", e)
	}
}

// badInit checks that a first program that is not there is named: by the start
// that fails, or, where only the guest's kernel can know, by the guest's end.
func badInit(t *testing.T, h *suite) {
	const missing = "/no/such/program"
	g, parts := h.Guest(t, guest.Spec{Command: []string{missing}})
	p, err := h.Engine.Program(g, parts)
	if err != nil {
		t.Fatal(err)
	}
	r := &running{t: t, h: h, g: g, parts: parts}
	r.held, err = h.Keepers.Start(t.Context(), g.ID, p)
	if err == nil {
		t.Cleanup(r.end)
	}
	switch {
	case err == nil && !h.Late:
		t.Error("a guest without a program to run started")
	case err == nil:
		e, last := r.over()
		if e.Signal == 0 && e.Code == 0 {
			t.Errorf("a guest without a program to run ended well: %+v", e)
		}
		if !strings.Contains(last, missing) {
			t.Errorf("its end does not name the program: %+v, %q", e, last)
		}
	case !strings.Contains(err.Error(), missing):
		t.Errorf("the failure does not name the program: %v", err)
	}
}

// crash ends what keeps the guest from outside and boots it anew.
func crash(t *testing.T, h *suite) {
	r := h.boot(t, guest.Spec{})
	r.must("echo kept >/root/kept; sync")
	if err := r.held.Signal(t.Context(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if e, _ := r.over(); e.Signal != syscall.SIGKILL {
		t.Errorf("ended as %+v", e)
	}
	r.again()
	if out := r.must("cat /root/kept"); out != "kept" {
		t.Errorf("after the crash its file holds %q", out)
	}
}

// kernelPanic checks that the panic of a guest's own kernel is told, with what
// it said last.
func kernelPanic(t *testing.T, h *suite) {
	if !h.OwnKernel {
		t.Skip("guests have no kernel of their own that could panic")
	}
	r := h.boot(t, guest.Spec{})
	r.background("sleep 0.5; echo c >/proc/sysrq-trigger") // not before whoever asked is answered
	trouble := ""
	r.eventually("the panic is told", func() bool {
		if r.held.State().Exit != nil {
			var e keeper.Exit
			if e, trouble = r.over(); e.Signal == 0 && e.Code == 0 {
				t.Errorf("a guest that panicked ended well: %+v", e)
			}
			return true
		}
		p, err := r.m.Probe(t.Context())
		trouble = p.Trouble
		return err == nil && trouble != ""
	})
	if !strings.Contains(strings.ToLower(trouble), "panic") {
		t.Errorf("a guest that panicked is told to suffer from %q", trouble)
	}
	r.seen("sysrq")
}

func reconnect(t *testing.T, h *suite) {
	r := h.guest(t)
	held, err := h.Keepers.Find(r.g.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.m.Close(); err != nil {
		t.Fatal(err)
	}
	r.held = held
	r.connect()
	r.answers()
}

// keeperKilled checks that guests outlive the keeper and the next one has them.
func keeperKilled(t *testing.T, h *suite) {
	if h.KillKeeper == nil {
		t.Skip("the harness's keeper cannot be killed")
	}
	r := h.guest(t)
	was := r.held.State().Pid
	h.KillKeeper(t)
	r.answers()
	c, err := r.held.Console(t.Context()) // which waits for the next keeper
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if s := r.held.State(); s.Pid != was || s.Exit != nil {
		t.Errorf("the guest was process %d, is %+v", was, s)
	}
	if r.held, err = h.Keepers.Find(r.g.ID); err != nil {
		t.Fatal(err)
	}
	r.connect()
	r.answers()
}

// daemonKilled checks that a daemon that starts finds the guests of the one
// before.
func daemonKilled(t *testing.T, h *suite) {
	if h.Anew == nil {
		t.Skip("the engine keeps nothing in memory that a daemon could lose")
	}
	r := h.guest(t)
	// What was going on between the dead daemon and the guest is in the way of
	// nothing.
	r.background("while :; do echo to nobody; done")
	h.Engine = h.Anew(t)
	r.up()
	r.answers()
	r.eventually("what ran for the daemon that is gone has ended", func() bool {
		return r.shell("grep -l 'to nobod[y]' /proc/[0-9]*/cmdline") == ""
	})
}

// many checks that guests started at the same time do not meet.
func many(t *testing.T, h *suite) {
	var all []*running
	for range h.Crowd {
		all = append(all, h.start(t, guest.Spec{}))
	}
	for _, r := range all {
		r.up()
	}
	for _, r := range all {
		r.answers()
	}
}
