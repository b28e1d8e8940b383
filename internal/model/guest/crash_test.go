package guest

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"lodge/internal/model"
)

func TestCrash(t *testing.T) {
	for _, c := range []struct {
		x    *Exit
		last string
		want string
	}{
		{nil, "login:", ""},
		{&Exit{}, "login:", ""},
		{&Exit{Code: 3}, "", ""},
		{&Exit{Code: 3}, "a\nb", "ended with status 3; it said last: b"},
		{&Exit{Code: 137, Signal: "killed"}, "b", "ended by signal killed; it said last: b"},
		{&Exit{Code: 1}, "x\n[ 1.2] Kernel panic - not syncing: no init\nmore", "kernel panic: no init"},
	} {
		p := Crash("g", c.x, c.last)
		if (p == nil) != (c.want == "") || p != nil && (p.Message != c.want || !p.Aside || p.Code != model.Crashed || !strings.Contains(p.Hint, "lodge logs g")) {
			t.Errorf("%+v %q: %+v", c.x, c.last, p)
		}
	}
}

func TestSuffering(t *testing.T) {
	t0 := time.Unix(1000, 0)
	p := Suffering("g", "it hangs", nil, t0)
	if again := Suffering("g", "it hangs", p, t0.Add(time.Hour)); !again.Since.Equal(t0) {
		t.Errorf("since %v", again.Since)
	}
	if other := Suffering("g", "it panicked", p, t0.Add(time.Hour)); other.Since.Equal(t0) {
		t.Error("a new trouble is as old as the one before")
	}
	if Suffering("g", "", p, t0) != nil {
		t.Error("a guest that is well suffers")
	}
}

// FuzzWords: what a guest says goes into its record and onto terminals.
func FuzzWords(f *testing.F) {
	f.Add("ok\n\x1b[2Jgone")
	f.Add(strings.Repeat("x\n", 5000))
	f.Fuzz(func(t *testing.T, last string) {
		w := Words(last)
		if len(w) > maxLast || !utf8.ValidString(w) || strings.ContainsFunc(w, func(r rune) bool { return r < ' ' && r != '\n' || r == 0x7f }) {
			t.Errorf("%q", w)
		}
		if p := Crash("g", &Exit{Code: 1}, w); p != nil && (len(p.Message) > maxLastLine+len("…") || !utf8.ValidString(p.Message)) {
			t.Errorf("%q", p.Message)
		}
	})
}
