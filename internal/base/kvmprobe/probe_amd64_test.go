package kvmprobe

import (
	"errors"
	"testing"
	"time"
)

func TestTurnTime(t *testing.T) {
	const us, ms = time.Microsecond, time.Millisecond
	for name, c := range map[string]struct {
		took        []time.Duration // for few turns and for many by turns
		least, most float64
		runs        int
	}{
		"the processor itself":   {[]time.Duration{60 * us, 200 * us}, 0.5, 1, 2},
		"a long way to the loop": {[]time.Duration{9 * ms, 11 * ms}, 10, 12, 2}, // translated, with a guest of its own
		"a busy host":            {[]time.Duration{8 * ms, 200 * ms, 60 * us, 90 * ms, 20 * ms, 300 * us}, 1, 2, 6},
		"busy at first":          {[]time.Duration{30 * ms, 200 * us}, 0, 0, 2},
		"imitated":               {[]time.Duration{54 * ms, 1}, 2700, 2700, 1},
		"as slow as many":        {[]time.Duration{4 * ms, 40 * ms, 4 * ms, 40 * ms, 4 * ms, 40 * ms, 4 * ms, 40 * ms, 4 * ms, 40 * ms}, 200, 200, 10},
	} {
		runs := 0
		ns, err := turnTime(func(turns int) (time.Duration, error) {
			if want := []int{fewTurns, manyTurns}[runs%2]; turns != want {
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
