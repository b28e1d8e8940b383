package cli

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"lodge/api"
)

func TestTimes(t *testing.T) {
	for text, want := range map[string]int{"30": 30, "30s": 30, "2m": 120, "1500ms": 2, "0": 0} {
		if got, err := ParseSeconds(text); err != nil || got != want {
			t.Errorf("ParseSeconds(%q) = %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "-1", "-3s", "soon"} {
		if _, err := ParseSeconds(text); err == nil {
			t.Errorf("ParseSeconds(%q): no error", text)
		}
	}
	for d, want := range map[time.Duration]string{-time.Second: "0s", 59 * time.Second: "59s", 90 * time.Minute: "1h", 47 * time.Hour: "47h", 72 * time.Hour: "3d"} {
		if got := Span(d); got != want {
			t.Errorf("Span(%v) = %s, want %s", d, got, want)
		}
	}
}

// TestExitCodes has every way to end, wrapped as commands wrap.
func TestExitCodes(t *testing.T) {
	kind := func(k string) error { return &api.Error{Kind: k} }
	for _, c := range []struct {
		err  error
		want int
	}{
		{nil, 0},
		{errors.New("any"), 1},
		{kind(api.KindInternal), 1}, {kind(api.KindInvalid), 1}, {kind(api.KindBusy), 1}, {kind(api.KindNoSpace), 1},
		{kind(api.KindUnsupported), 1}, {kind(api.KindCancelled), 1},
		{kind(api.KindNotFound), 3}, {kind(api.KindExists), 4}, {kind(api.KindConflict), 4}, {kind(api.KindDenied), 5}, {kind(api.KindUnavailable), 6},
		{&UsageError{Err: errors.New("x"), Command: "lodge"}, 2},
		{&PendingError{Err: errors.New("late")}, 7},
		{&PendingError{Err: ErrInterrupted}, 130},
		{ErrInterrupted, 130},
		{Exit(42), 42},
		{ManyError{kind(api.KindNotFound), kind(api.KindDenied)}, 3},
	} {
		if got := ExitCode(c.err); got != c.want {
			t.Errorf("ExitCode(%v) = %d, want %d", c.err, got, c.want)
		}
		if c.err != nil {
			if got := ExitCode(fmt.Errorf("while: %w", c.err)); got != c.want {
				t.Errorf("wrapped: ExitCode(%v) = %d, want %d", c.err, got, c.want)
			}
		}
	}
}

func TestPrintError(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{Exit(3), ""},
		{ErrInterrupted, "lodge: interrupted\n"},
		{&api.Error{Kind: api.KindInternal}, "lodge: error: lodged failed; its log says why\n"},
		{&api.Error{Kind: api.KindNotFound, Ref: "guest/a", Detail: "does not exist", Hint: "lodge ls"}, "lodge: error: guest/a: does not exist\nlodge: hint: lodge ls\n"},
		{&api.Error{Detail: "evil \x1b[2J"}, "lodge: error: evil \ufffd[2J\n"},
		{ManyError{errors.New("a"), errors.New("b")}, "lodge: error: a\nlodge: error: b\n"},
	} {
		var b bytes.Buffer
		PrintError(&b, c.err)
		if b.String() != c.want {
			t.Errorf("%#v is told as %q, want %q", c.err, b.String(), c.want)
		}
	}
}

// TestYAML checks that text stays text: an id of digits or the word "no" must
// not come back as something else.
func TestYAML(t *testing.T) {
	var out bytes.Buffer
	f := &Factory{Streams: &Streams{Out: &out}}
	var o Output
	o.Flags(&cobra.Command{})
	if err := o.form.Set("yaml"); err != nil {
		t.Fatal(err)
	}
	v := map[string]any{"a": "123", "b": "no", "c": 5, "d": []string{}, "e": "2026-01-01", "f": "x: y", "g": nil, "h": "two\nlines"}
	if err := f.Print(&o, v, nil); err != nil {
		t.Fatal(err)
	}
	want := "a: \"123\"\nb: \"no\"\nc: 5\nd: []\ne: \"2026-01-01\"\nf: 'x: y'\ng: null\nh: |-\n    two\n    lines\n"
	if out.String() != want {
		t.Errorf("got\n%swant\n%s", out.String(), want)
	}
}

func TestTable(t *testing.T) {
	tab := &Table{Header: []string{"A", "LONG"}}
	tab.Row("é\x1b[31m", "")
	tab.Row("second", "two\nlines")
	var b bytes.Buffer
	if err := tab.Write(&b); err != nil {
		t.Fatal(err)
	}
	want := "A       LONG\né\ufffd[31m  -\nsecond  two lines\n"
	if b.String() != want {
		t.Errorf("got\n%q want\n%q", b.String(), want)
	}
}

func TestStep(t *testing.T) {
	for _, c := range []struct {
		p    api.Progress
		want string
	}{
		{api.Progress{Step: "unpacking"}, "unpacking"},
		{api.Progress{Step: "unpacking", Done: 3}, "unpacking 3"},
		{api.Progress{Step: "fetching", Done: 1 << 20, Total: 2 << 20, Unit: "bytes", Note: "libc6\x07"}, "fetching " + strings.Repeat("━", 10) + strings.Repeat("─", 10) + " 50% 1MiB/2MiB libc6\ufffd"},
		{api.Progress{Step: "x", Done: 9, Total: 3}, "x " + strings.Repeat("━", 20) + " 100% 9/3"},
		{api.Progress{Step: "fetching", Done: 25, Total: 100, Unit: "percent"}, "fetching ━━━━━─────────────── 25%"},
	} {
		if got := Step(c.p); got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
}

// TestProgressIsTakenAway checks that what was drawn is gone afterwards, and
// that nested steps are indented below each other.
func TestProgressIsTakenAway(t *testing.T) {
	var b bytes.Buffer
	p := &progress{streams: &Streams{Err: &b}, steps: map[string]api.Progress{}}
	event := func(step string, done uint64, parents ...string) {
		p.event(api.Event{Kind: "image", Name: "debian/12", Progress: &api.Progress{Step: step, Done: done, Total: 10, Parents: parents}})
	}
	event("building", 1)
	event("fetching", 2, "building")
	lines := p.lines(0, time.Second)
	if len(lines) != 2 || !strings.HasPrefix(lines[1], "  ") || strings.HasPrefix(lines[0], " ") {
		t.Errorf("lines %q", lines)
	}
	p.draw(lines)
	event("fetching", 10, "building")
	if lines = p.lines(1, time.Second); len(lines) != 1 {
		t.Errorf("a step that is done is still shown: %q", lines)
	}
	p.draw(lines)
	p.draw(nil)
	if got := b.String(); !strings.HasSuffix(got, "\x1b[1A\r\x1b[J") || !strings.Contains(got, "\x1b[2A\r\x1b[J") {
		t.Errorf("drawn %q", got)
	}
}

func TestFold(t *testing.T) {
	got := Fold([]string{"one", "two", "three", "fourteen", "a-word-that-is-too-long"}, 15)
	if want := []string{"one, two,", "three,", "fourteen,", "a-word-that-is-too-long"}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	if got := Fold(nil, 10); got != nil {
		t.Errorf("of nothing: %q", got)
	}
}
