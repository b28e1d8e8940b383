package kvmprobe

import (
	"errors"
	"slices"
	"testing"
	"time"
)

func TestTurnTime(t *testing.T) {
	const us, ms = time.Microsecond, time.Millisecond
	for name, c := range map[string]struct {
		took        []time.Duration // for the first turn, one, one, few and many, and so on by turns
		least, most float64
		runs        int
	}{
		"the processor itself":    {[]time.Duration{1 * ms, 40 * us, 40 * us, 50 * us, 140 * us}, 0.4, 0.6, 5},
		"a long way to the loop":  {[]time.Duration{100 * ms, 9 * ms, 8 * ms, 10 * ms, 14 * ms}, 30, 30, 5}, // translated, with a guest of its own
		"a busy host":             {[]time.Duration{8 * ms, 1 * ms, 2 * ms, 30 * ms, 90 * ms, 1 * ms, 1 * ms, 60 * ms, 1 * ms}, 0, 0, 9},
		"a busy start":            {[]time.Duration{30 * ms, 30 * ms, 40 * us, 20 * ms, 200 * us}, 0.5, 1, 5},
		"imitated":                {[]time.Duration{1 * ms, 40 * us, 40 * us, 54 * ms}, 2600, 2800, 4},
		"imitated on a busy host": {[]time.Duration{1 * ms, 50 * ms, 50 * ms, 54 * ms, 540 * ms}, 2400, 2500, 5},
		"slow":                    {slices.Repeat([]time.Duration{0, 0, 8 * ms, 80 * ms}, 6), 400, 400, 1 + 4*tries},
	} {
		runs := 0
		if name == "slow" {
			c.took = append([]time.Duration{0}, c.took...)
		}
		ns, err := turnTime(func(turns int) (time.Duration, error) {
			if want := []int{manyTurns, 1, 1, fewTurns}[runs%4]; runs > 0 && turns != want {
				t.Errorf("%s: run %d is of %d turns, not %d", name, runs, turns, want)
			}
			runs++
			return c.took[runs-1], nil
		})
		if err != nil || ns < c.least || ns > c.most || runs != c.runs {
			t.Errorf("%s: %v after %d runs, %v", name, ns, runs, err)
		}
	}
	if _, err := turnTime(func(int) (time.Duration, error) { return 0, errors.New("no") }); err == nil {
		t.Error("what fails is fast")
	}
}
