package cli

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode"

	"lodge/internal/base/units"
)

// Limit writes a limit of bytes, of which 0 is none.
func Limit(n uint64) string {
	if n == 0 {
		return "-"
	}
	return units.Bytes(n)
}

// Ago writes how long ago something was: "3m ago".
func Ago(t, now time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return Span(now.Sub(t)) + " ago"
}

// Since is Ago for what may not have happened, which is nothing to print.
func Since(t *time.Time) string {
	if t == nil {
		return ""
	}
	return Ago(*t, time.Now())
}

// Span writes a duration in its largest unit.
func Span(d time.Duration) string {
	switch d = max(d, 0); {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// ParseSeconds reads a number of seconds, bare or as a duration: 30, 30s, 2m.
func ParseSeconds(s string) (int, error) {
	if n, err := strconv.Atoi(s); err == nil && n >= 0 {
		return n, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%q is not a time: write it as 30s or 2m", s)
	}
	return int(math.Ceil(d.Seconds())), nil
}

// Clean makes text that a guest may have had a hand in harmless to a terminal:
// control characters are shown, not obeyed.
func Clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || unicode.IsPrint(r) {
			return r
		}
		return '\ufffd'
	}, s)
}
