package keeper_test

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"lodge/internal/keeper"
)

// TestSaid: what a program said is told from what others said before in the same
// log, whatever becomes of keeper and log meanwhile.
func TestSaid(t *testing.T) {
	h := newHouse(t)
	log := filepath.Join(h.dir, "c.log")
	said := func() string {
		text, n := keeper.Said(log, 100)
		if int64(len(text)) != min(n, 100) {
			t.Errorf("%d bytes are said to be kept, %q", n, text)
		}
		return strings.ReplaceAll(string(text), "\r", "")
	}
	run := func(script string) {
		t.Helper()
		p := sh(script)
		p.Console, p.Log, p.LogMax = true, log, 1000
		h.wait(h.start("p", p))
		if err := h.Forget(h.ctx(), "p"); err != nil {
			t.Fatal(err)
		}
	}
	if s := said(); s != "" {
		t.Errorf("without a log: %q", s)
	}
	run("echo first")
	if s := said(); s != "first\n" {
		t.Errorf("the first: %q", s)
	}
	h.kill() // the next keeper was not there
	run("echo second")
	if s := said(); s != "second\n" {
		t.Errorf("after a crash of the keeper: %q", s)
	}
	run("true")
	if s := said(); s != "" {
		t.Errorf("one that said nothing: %q", s)
	}
	// Its beginning is rotated away, then all that was before it, then its own.
	for _, lines := range []string{"60", "150", "400"} {
		run("for i in $(seq " + lines + "); do echo line $i; done")
		s := said()
		if !strings.HasSuffix(s, "line "+lines+"\n") || strings.Contains(s, "second") || len(s) < 80 {
			t.Errorf("%s lines: %q", lines, s)
		}
	}

	// Two keepers see one program.
	p := sh("echo here; read x; echo $x; read y; echo $y")
	p.Console, p.Log = true, log
	held := h.start("p", launcher(t, p))
	c, err := held.Console(h.ctx())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, say := range []string{"there\n", "elsewhere\n"} {
		if err := h.Upgrade(h.ctx(), newer(t)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, say); err != nil {
			t.Fatal(err)
		}
	}
	h.wait(held)
	if s := said(); !strings.HasPrefix(s, "here\n") || !strings.HasSuffix(s, "elsewhere\n") || strings.Contains(s, "line") {
		t.Errorf("across keepers: %q", s)
	}
}

// TestSaidOfOld: a log of whose runs nobody took note counts as a whole.
func TestSaidOfOld(t *testing.T) {
	log := filepath.Join(t.TempDir(), "c.log")
	for name, text := range map[string]string{log: "new", log + ".1": "old "} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if text, n := keeper.Said(log, 5); string(text) != "d new" || n != 7 {
		t.Errorf("%q of %d", text, n)
	}
	if err := os.Link(log, log+".2"); err != nil { // as if it were rotated this moment
		t.Fatal(err)
	}
	if err := os.Rename(log+".2", log+".1"); err != nil {
		t.Fatal(err)
	}
	if text, n := keeper.Said(log, 5); string(text) != "new" || n != 3 {
		t.Errorf("%q of %d", text, n)
	}
}
