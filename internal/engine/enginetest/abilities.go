package enginetest

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"image/png"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"lodge/internal/base/errs"
	"lodge/internal/base/session"
	"lodge/internal/engine"
	"lodge/internal/model/guest"
)

const killed = syscall.SIGKILL

func info(t *testing.T, h *suite) {
	i, err := h.Engine.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if i.Name == "" || i.Model == "" || i.Version == "" || i.Form == "" {
		t.Errorf("the engine does not say what it is: %+v", i)
	}
	if i.Missing != "" {
		t.Fatalf("the engine says it cannot run here: %s", i.Missing)
	}
	if i.Can.Debug != (len(i.Debugs) > 0) {
		t.Errorf("the engine says it can debug: %v, and how: %v", i.Can.Debug, i.Debugs)
	}
	if is := abilities(h.guest(t).m, i.Can.Disk); is != i.Can {
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
	_, is.Admit = m.(engine.Admitter)
	_, is.Trim = m.(engine.Trimmer)
	_, is.Clock = m.(engine.Timekeeper)
	_, is.Move = m.(engine.Mover)
	return is
}

func program(t *testing.T, h *suite) {
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

// whilePaused is what a paused guest can and cannot.
func whilePaused(t *testing.T, r *running, p engine.Pauser) {
	t.Helper()
	if pr, err := r.m.Probe(t.Context()); err != nil || !pr.Paused {
		t.Errorf("paused, and the probe says %+v, %v", pr, err)
	}
	if _, err := r.exec(session.Request{Argv: []string{"true"}}); !errs.Is(err, errs.Conflict) {
		t.Errorf("exec in a paused guest: %v", err)
	}
	if err := p.Pause(t.Context()); err != nil {
		t.Errorf("pausing it again: %v", err)
	}
	if z, ok := r.m.(engine.Resizer); ok {
		if err := z.Resize(t.Context(), r.g.Spec); err != nil { // as whoever pauses it looks at its limits too
			t.Errorf("a paused guest keeps its limits: %v", err)
		}
	}
}

// clock is a program that goes on as long as the guest does.
const clock = "while :; do echo x >>/run/ticks; sleep 0.01; done"

func pause(t *testing.T, h *suite) {
	r := h.guest(t)
	p, ok := r.m.(engine.Pauser)
	if !ok {
		t.Skip("the engine cannot pause guests")
	}
	ticking, _ := r.begin(session.Request{Argv: []string{"sh", "-c", clock}})
	r.eventually("the clock starts", func() bool { return r.shell("wc -l </run/ticks 2>/dev/null") != "" })
	if err := p.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	whilePaused(t, r, p)
	if err := p.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	if pr, err := r.m.Probe(t.Context()); err != nil || pr.Paused {
		t.Errorf("resumed, and the probe says %+v, %v", pr, err)
	}
	was := r.shell("wc -l </run/ticks")
	r.eventually("the clock goes on", func() bool { return r.shell("wc -l </run/ticks") != was })
	if err := ticking.Signal(killed); err != nil {
		t.Error(err)
	}
	ticking.Wait(t.Context())
	r.shell("rm /run/ticks")
	if h.Slow {
		return // what follows ends the guest; crash and flood end theirs
	}
	if err := p.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := r.m.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if e := r.wait(); e.Signal != killed {
		t.Errorf("killed while paused, it ended as %+v", e)
	}
}

// quiesce checks that nothing reaches the volume while its file systems rest,
// and that all does that the guest writes meanwhile.
func quiesce(t *testing.T, h *suite) {
	r := h.guest(t)
	q, ok := r.m.(engine.Quiescer)
	if !ok {
		t.Skip("the engine cannot bring file systems to rest")
	}
	r.must("echo before >/root/quiet")
	writer, _ := r.begin(session.Request{Argv: []string{"sh", "-c", "while :; do date >>/root/busy; sync; done"}})
	release, err := q.Quiesce(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if r.parts.Root.Volume != "" {
		before := sum(t, r.parts.Root.Volume)
		time.Sleep(300 * time.Millisecond) // in which a guest at work would write
		if sum(t, r.parts.Root.Volume) != before {
			t.Error("the volume changed while it was to rest")
		}
	}
	if err := release(); err != nil {
		t.Fatal(err)
	}
	if err := writer.Signal(killed); err != nil {
		t.Error(err)
	}
	writer.Wait(t.Context())
	if out := r.must("echo after >>/root/quiet; sync; cat /root/quiet; rm /root/quiet /root/busy"); out != "before\nafter" {
		t.Errorf("said %q", out)
	}
}

func sum(t *testing.T, path string) [32]byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s := sha256.New()
	if _, err := io.Copy(s, f); err != nil {
		t.Fatal(err)
	}
	return [32]byte(s.Sum(nil))
}

func screen(t *testing.T, h *suite) {
	r := h.guest(t)
	s, ok := r.m.(engine.Screener)
	if !ok {
		t.Skip("guests have no screen")
	}
	var picture bytes.Buffer
	if err := s.Screenshot(t.Context(), &picture); err != nil {
		t.Fatal(err)
	}
	if p, err := png.Decode(&picture); err != nil || p.Bounds().Dx() < 100 {
		t.Errorf("the picture: %v", err)
	}
	if err := s.SendKeys(t.Context(), []string{"shift", "a"}); err != nil {
		t.Error(err)
	}
	if err := s.SendKeys(t.Context(), []string{"no-such-key"}); !errs.Is(err, errs.Invalid) {
		t.Errorf("a key that is not there: %v", err)
	}
	d, err := s.Display(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	hello := make([]byte, 12)
	if _, err := io.ReadFull(d, hello); err != nil || !strings.HasPrefix(string(hello), "RFB 003.") {
		t.Errorf("the screen greets with %q, %v", hello, err)
	}
}

// plugDisk gives a running guest a disk and takes it away. It is known by its
// size, which no other has.
func plugDisk(t *testing.T, h *suite) {
	r := h.guest(t)
	p, ok := r.m.(engine.Plugger)
	if !ok {
		t.Skip("the engine cannot change devices of a running guest")
	}
	const kib = 17_412
	d := engine.Disk{Name: "data", Path: filepath.Join(r.parts.Dir, "data.raw"), Format: "raw"}
	content := make([]byte, kib<<10)
	copy(content, "a disk of data")
	if err := os.WriteFile(d.Path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(d.Path, int(r.parts.IDBase), int(r.parts.IDBase)); err != nil {
		t.Fatal(err)
	}
	find := fmt.Sprintf("awk '$3 == %d {print $4}' /proc/partitions", kib)
	known := r.parts
	for range 2 {
		if err := p.PlugDisk(t.Context(), d); err != nil {
			t.Fatal(err)
		}
		r.eventually("the disk is there", func() bool { return r.shell(find) != "" })
		if out := r.must("head -c 14 /dev/$(" + find + ")"); out != "a disk of data" {
			t.Errorf("the disk begins with %q", out)
		}
		if err := p.PlugDisk(t.Context(), d); err == nil {
			t.Error("a disk can be plugged in twice")
		}
		r.must("printf written | dd of=/dev/$(" + find + ") bs=512 seek=8 conv=sync; sync")
		if err := p.UnplugDisk(t.Context(), d.Name); err != nil {
			t.Fatal(err)
		}
		r.eventually("the disk is gone", func() bool { return r.shell(find) == "" })
		// A daemon that has just started does not look for a running guest's kernel.
		known.Kernel = engine.Kernel{}
		m, err := h.Engine.Connect(t.Context(), r.g, known, r.held)
		if err != nil {
			t.Fatal(err)
		}
		p = m.(engine.Plugger)
	}
	if err := p.UnplugDisk(t.Context(), d.Name); !errs.Is(err, errs.NotFound) {
		t.Errorf("taking away what is not there: %v", err)
	}
	if b, err := os.ReadFile(d.Path); err != nil || string(b[4096:4103]) != "written" {
		t.Errorf("what the guest wrote is not in the file: %v", err)
	}
}

func plugNIC(t *testing.T, h *suite) {
	r := h.guest(t)
	p, ok := r.m.(engine.Plugger)
	if !ok || h.NIC == nil {
		t.Skip("the engine cannot change devices of a running guest, or the harness has no network")
	}
	n := h.NIC(t, 9)
	n.Name = "eth7"
	if err := p.PlugNIC(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	r.eventually("the card is there", func() bool { return r.shell("cat /sys/class/net/eth7/address") == n.MAC })
	if err := p.UnplugNIC(t.Context(), n.Name); err != nil {
		t.Fatal(err)
	}
	r.eventually("the card is gone", func() bool { return !strings.Contains(r.shell("ls /sys/class/net"), "eth7") })
	if err := p.UnplugNIC(t.Context(), n.Name); !errs.Is(err, errs.NotFound) {
		t.Errorf("taking away what is not there: %v", err)
	}
}

// save writes a guest's memory to files, ends it and has it go on from them;
// and then a copy of it, under a name of its own.
func save(t *testing.T, h *suite) {
	if i, err := h.Engine.Info(t.Context()); err != nil || !i.Can.Save {
		t.Skip("the engine cannot save the memory of guests")
	}
	r := h.boot(t, guest.Spec{})
	r.must("mkdir -p /run/here; sleep 4711 >/dev/null 2>&1 & sync")
	if err := r.m.(engine.Pauser).Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, into := range []string{t.TempDir(), dir} { // as for two snapshots of a guest that somebody paused
		if err := r.m.(engine.Saver).Save(t.Context(), into); err != nil {
			t.Fatal(err)
		}
	}
	if p, err := r.m.Probe(t.Context()); err != nil || !p.Paused {
		t.Errorf("saved, and the probe says %+v, %v", p, err)
	}
	if err := r.m.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.wait()
	renew(t, h, r, dir)
	r.parts.Memory = dir
	r.again()
	r.goesOn(r.g.Name)
}

// renew makes a copy of r, whose memory is saved in dir.
func renew(t *testing.T, h *suite, r *running, dir string) {
	if i, err := h.Engine.Info(t.Context()); err != nil || !i.Can.Renew || h.Copy == nil {
		t.Log("copies of a running guest are not tried")
		return
	}
	g, parts := h.Copy(t, r.g, r.parts)
	parts.Memory = dir
	c := &running{t: t, h: h, g: g, parts: parts}
	c.start()
	t.Cleanup(c.end)
	c.up()
	if err := c.m.(engine.Renewer).Renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.goesOn(g.Name)
}

// goesOn checks that what ran in the guest when it was saved runs.
func (r *running) goesOn(name string) {
	r.t.Helper()
	if out := r.shell("ls -d /run/here; hostname; grep -l '471[1]' /proc/[0-9]*/cmdline | wc -l"); out != "/run/here\n"+name+"\n1" {
		r.t.Errorf("after it was saved and continued: %q", out)
	}
}

func debug(t *testing.T, h *suite) {
	i, err := h.Engine.Info(t.Context())
	if err != nil || !i.Can.Debug {
		t.Skip("the engine has nothing for guests that hang")
	}
	r := h.boot(t, guest.Spec{})
	d := r.m.(engine.Debugger)
	if err := d.Debug(t.Context(), "no-such-thing", io.Discard); !errs.Is(err, errs.Invalid) && !errs.Is(err, errs.NotFound) {
		t.Errorf("what is not there: %v", err)
	}
	// A guest that is being reset is in no state for the others: the processor may
	// have nobody yet to take an interrupt, and ends the machine.
	all := slices.DeleteFunc(slices.Clone(i.Debugs), func(what string) bool { return what == "reset" })
	if len(all) < len(i.Debugs) {
		all = append(all, "reset")
	}
	for _, what := range all {
		var out bytes.Buffer
		if err := d.Debug(t.Context(), what, &out); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		t.Logf("%s: %d bytes", what, out.Len())
	}
}
