package cli

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// ParseSize reads a size in bytes: a bare number, or 512MiB, 5g (powers of
// 1,024), 5GB (of 1,000).
func ParseSize(s string) (uint64, error) {
	text := strings.ToLower(strings.TrimSpace(s))
	digits := strings.TrimRightFunc(text, unicode.IsLetter)
	factor, ok := sizeFactor(text[len(digits):])
	n, err := strconv.ParseFloat(strings.TrimSpace(digits), 64)
	if err != nil || !ok || n < 0 || math.IsNaN(n) || n*factor >= math.MaxInt64 {
		return 0, fmt.Errorf("%q is not a size: write it as 512MiB or 5GiB", s)
	}
	return uint64(n * factor), nil
}

func sizeFactor(suffix string) (float64, bool) {
	if suffix == "" || suffix == "b" {
		return 1, true
	}
	power := strings.IndexByte("kmgt", suffix[0]) + 1
	switch suffix[1:] {
	case "", "ib":
		return math.Pow(1024, float64(power)), power > 0
	case "b":
		return math.Pow(1000, float64(power)), power > 0
	}
	return 0, false
}

// Size writes bytes in the largest binary unit that keeps them readable.
func Size(n uint64) string {
	v, unit := float64(n), 0
	for v >= 1024 && unit < 4 {
		v, unit = v/1024, unit+1
	}
	return strconv.FormatFloat(math.Round(v*10)/10, 'f', -1, 64) + [...]string{"B", "KiB", "MiB", "GiB", "TiB"}[unit]
}

// Limit writes a limit of bytes, of which 0 is none.
func Limit(n uint64) string {
	if n == 0 {
		return "-"
	}
	return Size(n)
}

// Ago writes how long ago something was: "3m ago".
func Ago(t, now time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return Span(now.Sub(t)) + " ago"
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
