package guest

import (
	"fmt"
	"strings"
	"time"

	"lodge/internal/model"
)

// Bounds of what a guest's last words may take in its record.
const (
	maxLast     = 4 << 10
	maxLastLine = 200
)

// Words returns of what a guest said last as much as its record holds: the end
// of it, without what a terminal would take for orders.
func Words(last string) string {
	last = strings.Map(func(r rune) rune {
		if r == '\n' || r >= ' ' && r != 0x7f {
			return r
		}
		return -1
	}, strings.ToValidUTF8(last, "?"))
	if over := len(last) - maxLast; over > 0 {
		last = strings.ToValidUTF8(last[over:], "")
		if _, whole, ok := strings.Cut(last, "\n"); ok {
			last = whole
		}
	}
	return strings.TrimSpace(last)
}

const panicked = "Kernel panic - not syncing:"

// Crash says what a person should know of a guest that ended badly with last
// words, or nil if it did not.
func Crash(name string, x *Exit, last string) *model.Problem {
	if x == nil || x.Code == 0 || last == "" {
		return nil
	}
	return &model.Problem{
		Code: model.Crashed, Message: headline(*x, last), Hint: fmt.Sprintf("lodge show %s shows its last lines, lodge logs %s all of them", name, name),
		Since: x.At, Attempts: 1, Aside: true,
	}
}

// Suffering is the problem of a guest that runs and is not well; since then
// unless that is known.
func Suffering(name, trouble string, was *model.Problem, now time.Time) *model.Problem {
	if trouble == "" {
		return nil
	}
	p := &model.Problem{Code: model.Crashed, Message: trouble, Hint: fmt.Sprintf("lodge logs %s shows what it said, lodge restart --force %s starts it anew", name, name), Since: now, Attempts: 1, Aside: true}
	if was != nil && was.Code == p.Code && was.Message == p.Message {
		p.Since = was.Since
	}
	return p
}

// NoBoot is why a guest runs that no operating system has started in, as far as
// that can be seen from outside, in words for a person.
type NoBoot struct {
	Why  string
	Hint string // about any guest, called GUEST
	Last string // the end of its console
}

// Stuck is the problem of a guest that does not boot; since then unless that is
// known.
func Stuck(name string, n *NoBoot, was *model.Problem, now time.Time) *model.Problem {
	if n == nil {
		return nil
	}
	p := &model.Problem{Code: model.NotBooted, Message: short(Words(n.Why)), Hint: strings.ReplaceAll(n.Hint, "GUEST", name), Since: now, Attempts: 1, Aside: true}
	if was != nil && was.Code == p.Code {
		p.Since = was.Since
	}
	return p
}

// headline is the line of a crash that says most.
func headline(x Exit, last string) string {
	lines := strings.Split(last, "\n")
	for _, l := range lines {
		if _, why, ok := strings.Cut(l, panicked); ok {
			return short("kernel panic: " + strings.TrimSpace(why))
		}
	}
	how := fmt.Sprintf("ended with status %d", x.Code)
	if x.Signal != "" {
		how = "ended by signal " + x.Signal
	}
	return short(how + "; it said last: " + strings.TrimSpace(lines[len(lines)-1]))
}

func short(s string) string {
	if len(s) > maxLastLine {
		s = strings.ToValidUTF8(s[:maxLastLine], "") + "…"
	}
	return s
}
