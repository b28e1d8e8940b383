// Package enginetest is the suite that every engine must pass, on real guests
// kept by a real keeper.
package enginetest

import (
	"context"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"lodge/internal/base/errs"
	"lodge/internal/base/session"
	"lodge/internal/engine"
	"lodge/internal/keeper"
	"lodge/internal/model/guest"
)

// Harness is an engine on a host. What may be nil says what the suite leaves
// out without it; the cases that need it are then skipped.
type Harness struct {
	Engine  engine.Engine
	Keepers keeper.Keepers
	// Guest makes a record and everything a boot needs, and cleans it all up
	// with t. Its image has a shell, the usual small programs and a user "ann"
	// (uid 1000, home /home/ann), and its init writes "booted" on the console.
	// Memory and processes that spec leaves at zero are the harness's choice;
	// the writable layer ends at spec.Disk, if that is not zero.
	Guest func(t *testing.T, spec guest.Spec) (guest.Guest, engine.Parts)
	// Processes reads the host's limit on the number of a guest's processes.
	// Nil for engines whose guests count their own.
	Processes func(t *testing.T, parts engine.Parts) int64
	// KillKeeper ends the keeper as a crash would.
	KillKeeper func(t *testing.T)
	// Anew returns what a daemon has that starts while guests run: an engine
	// that has seen none of them. The other one is dead from then on. Nil
	// where an engine keeps nothing in memory.
	Anew func(t *testing.T) engine.Engine
	// NIC makes the n-th guest's network card on one network of the host's,
	// from 1.
	NIC func(t *testing.T, n int) engine.NIC
	// Copy makes a guest whose volume is a copy of that of another, which is
	// paused or ended. For engines that can Renew.
	Copy func(t *testing.T, g guest.Guest, parts engine.Parts) (guest.Guest, engine.Parts)

	// How guests differ, which nobody above the engines may care about:

	Crowd     int  // guests at once; 0: 20
	Slow      bool // a boot takes seconds: cases that leave a guest as it was share one
	OwnKernel bool // guests have a kernel of their own, which can panic
	Late      bool // what is wrong with a guest's first program shows when the guest ended, not when it is started
}

// patience is how long the suite waits for what must happen.
const patience = 120 * time.Second

// suite is one run of it.
type suite struct {
	Harness
	t      *testing.T // whose end is that of the shared guest
	mu     sync.Mutex
	shared *running
}

// Run runs the suite.
func Run(t *testing.T, h Harness) {
	if h.Crowd == 0 {
		h.Crowd = 20
	}
	all := &suite{Harness: h, t: t}
	for _, c := range []struct {
		name string
		test func(t *testing.T, h *suite)
	}{
		// Those that leave their guest as it was:
		{"info", info}, {"program", program}, {"exec", execute}, {"env", env}, {"execMany", executeMany}, {"execGivenUp", givenUp}, {"terminal", terminal},
		{"pause", pause}, {"resize", resize}, {"throttle", throttle}, {"files", files}, {"usage", usage}, {"quiesce", quiesce}, {"screen", screen},
		{"passwords", passwords}, {"authorize", authorize}, {"trim", trim}, {"timekeeping", timekeeping},
		{"diskFull", diskFull}, {"memoryFull", memoryFull}, {"plugDisk", plugDisk}, {"plugNIC", plugNIC},
		{"reconnect", reconnect}, {"keeperKilled", keeperKilled}, {"daemonKilled", daemonKilled},
		// Those that do not:
		{"lifecycle", lifecycle}, {"shutdown", shutdown}, {"selfMade", selfMade}, {"hostFull", hostFull}, {"exit", exit}, {"badInit", badInit}, {"crash", crash}, {"panic", kernelPanic},
		{"console", console}, {"flood", flood}, {"network", network}, {"save", save}, {"debug", debug}, {"many", many},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, all) })
	}
}

// running is one guest of the suite.
type running struct {
	t     *testing.T
	h     *suite
	g     guest.Guest
	parts engine.Parts
	held  keeper.Held
	m     engine.Machine // nil until connect
}

// usual is what a guest is that a case wants nothing special of. Its disk is
// small enough to be filled.
func usual() guest.Spec { return guest.Spec{Memory: 256 << 20, Disk: 64 << 20} }

// guest returns a running guest that the case leaves as it was.
func (h *suite) guest(t *testing.T) *running {
	t.Helper()
	if !h.Slow {
		return h.boot(t, usual())
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.shared == nil || h.shared.held.State().Exit != nil {
		h.shared = h.boot(h.t, usual())
	}
	h.shared.t = t
	return h.shared
}

// start starts a guest and does not wait for it.
func (h *suite) start(t *testing.T, spec guest.Spec) *running {
	t.Helper()
	g, parts := h.Guest(t, spec)
	r := &running{t: t, h: h, g: g, parts: parts}
	r.start()
	t.Cleanup(r.end)
	return r
}

// start starts the guest, which does not run.
func (r *running) start() {
	r.t.Helper()
	p, err := r.h.Engine.Program(r.g, r.parts)
	if err != nil {
		r.t.Fatal(err)
	}
	if r.held, err = r.h.Keepers.Start(r.t.Context(), r.g.ID, p); err != nil {
		r.t.Fatal(err)
	}
}

// boot starts a guest and waits until its init says that it is up.
func (h *suite) boot(t *testing.T, spec guest.Spec) *running {
	t.Helper()
	r := h.start(t, spec)
	r.up()
	return r
}

// up connects to a guest that was started and waits until it is ready.
func (r *running) up() {
	r.t.Helper()
	r.connect()
	r.eventually("its init says that it is up", func() bool {
		p, err := r.m.Probe(r.t.Context())
		return err == nil && p.Ready
	})
}

func (r *running) connect() {
	r.t.Helper()
	var err error
	if r.m, err = r.h.Engine.Connect(r.t.Context(), r.g, r.parts, r.held); err != nil {
		r.t.Fatalf("connecting: %v\n%s", err, r.log())
	}
}

// again boots a guest anew that has ended, from the same parts.
func (r *running) again() {
	r.t.Helper()
	r.forget()
	r.start()
	r.up()
}

// end ends what a test left running.
func (r *running) end() {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if m, err := r.h.Engine.Connect(ctx, r.g, r.parts, r.held); err == nil {
		if err := m.Kill(ctx); err != nil {
			r.t.Error(err)
		}
	}
	if _, err := r.held.Wait(ctx); err != nil {
		r.t.Error(err)
	}
	r.forget()
}

func (r *running) forget() {
	if err := r.h.Keepers.Forget(context.Background(), r.g.ID); err != nil && !errs.Is(err, errs.NotFound) {
		r.t.Error(err)
	}
}

// wait returns how the guest's program ended.
func (r *running) wait() keeper.Exit {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	e, err := r.held.Wait(ctx)
	if err != nil {
		r.t.Fatalf("the guest does not end: %v\n%s", err, r.log())
	}
	return e
}

// over returns how the guest ended and what it said last, as its engine reads it.
func (r *running) over() (e keeper.Exit, last string) {
	r.t.Helper()
	e = r.wait()
	if x, ok := r.h.Engine.(engine.Ender); ok {
		return x.Ended(r.g, r.parts, e)
	}
	return e, ""
}

// log is the end of the guest's console, for a failure.
func (r *running) log() string {
	p, err := os.ReadFile(engine.ConsoleLog(r.parts.Dir))
	if err != nil {
		return ""
	}
	return "its console said last:\n" + string(p[max(0, len(p)-1500):])
}

// run runs a program without a terminal and returns what it wrote on standard
// output, then on standard error.
func (r *running) run(q session.Request) (string, int) {
	r.t.Helper()
	s, text := r.begin(q)
	said := text()
	code, err := s.Wait(r.t.Context())
	if err != nil {
		r.t.Fatalf("%v: %v\n%s", q.Argv, err, r.log())
	}
	return said, code
}

// begin starts a program without a terminal; text waits for all that it writes.
func (r *running) begin(q session.Request) (s session.Session, text func() string) {
	r.t.Helper()
	out, stdout, err1 := os.Pipe()
	errors, stderr, err2 := os.Pipe()
	if err1 != nil || err2 != nil {
		r.t.Fatal(err1, err2)
	}
	q.Stdout, q.Stderr = stdout, stderr
	s, err := r.exec(q)
	stdout.Close()
	stderr.Close()
	if err != nil {
		r.t.Fatalf("%v: %v\n%s", q.Argv, err, r.log())
	}
	texts := []chan string{make(chan string, 1), make(chan string, 1)}
	for i, f := range []*os.File{out, errors} {
		go func() {
			defer f.Close()
			p, _ := io.ReadAll(f)
			texts[i] <- string(p)
		}()
	}
	return s, func() string { return <-texts[0] + <-texts[1] }
}

// exec starts a program in the guest. A case that needs one is left out for
// engines that cannot.
func (r *running) exec(q session.Request) (session.Session, error) {
	r.t.Helper()
	x, ok := r.m.(engine.Execer)
	if !ok {
		r.t.Skip("the engine runs no programs inside guests")
	}
	return x.Exec(r.t.Context(), q)
}

// background starts a shell command of which nobody wants to hear.
func (r *running) background(command string) {
	r.t.Helper()
	s, _ := r.begin(session.Request{Argv: []string{"sh", "-c", command}})
	go s.Wait(context.Background())
}

func (r *running) shell(command string) string {
	r.t.Helper()
	out, _ := r.run(session.Request{Argv: []string{"sh", "-c", command}})
	return strings.TrimSpace(out)
}

// must runs a shell command that has to succeed.
func (r *running) must(command string) string {
	r.t.Helper()
	out, code := r.run(session.Request{Argv: []string{"sh", "-c", command}})
	if code != 0 {
		r.t.Fatalf("%s: status %d: %s", command, code, out)
	}
	return strings.TrimSpace(out)
}

// answers checks that the guest is up and itself.
func (r *running) answers() {
	r.t.Helper()
	if s := r.held.State(); s.Exit != nil {
		r.t.Fatalf("the guest has ended: %+v\n%s", s, r.log())
	}
	if p, err := r.m.Probe(r.t.Context()); err != nil || p.Paused || p.Trouble != "" {
		r.t.Errorf("the probe says %+v, %v", p, err)
	}
	if _, ok := r.m.(engine.Execer); !ok {
		return
	}
	if out := r.shell("hostname"); out != r.g.Name {
		r.t.Errorf("asked for its name it says %q", out)
	}
}

// seen waits for a text on the console, of which a log is kept.
func (r *running) seen(text string) {
	r.t.Helper()
	r.eventually(text+" on the console", func() bool {
		p, err := os.ReadFile(engine.ConsoleLog(r.parts.Dir))
		return err == nil && strings.Contains(string(p), text)
	})
}

// eventually waits until what holds.
func (r *running) eventually(what string, holds func() bool) {
	r.t.Helper()
	for end := time.Now().Add(patience); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("never: %s\n%s", what, r.log())
		}
	}
}
