package doctor

import (
	"errors"
	"testing"
)

func TestFastest(t *testing.T) {
	for name, c := range map[string]struct {
		took  []float64
		least float64
		runs  int
	}{
		"quiet host": {[]float64{2, 2, 2, 2, 2}, 2, 1},
		"busy host":  {[]float64{300, 80, 2, 90, 400}, 2, 3},
		"emulated":   {[]float64{2700, 2, 2, 2, 2}, 2700, 1},
	} {
		runs := 0
		least, err := fastest(func(int) (float64, error) { runs++; return c.took[runs-1], nil })
		if err != nil || least != c.least || runs != c.runs {
			t.Errorf("%s: %v after %d runs, %v", name, least, runs, err)
		}
	}
	if _, err := fastest(func(int) (float64, error) { return 0, errors.New("no") }); err == nil {
		t.Error("what fails is fast")
	}
}
