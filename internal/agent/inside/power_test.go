package inside

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"
)

func TestUseProcessors(t *testing.T) {
	dir := t.TempDir()
	for n := range 12 { // the first has no switch
		folder := filepath.Join(dir, "cpu"+strconv.Itoa(n))
		if err := os.MkdirAll(folder, 0o755); err != nil {
			t.Fatal(err)
		}
		if n > 0 {
			if err := os.WriteFile(filepath.Join(folder, "online"), []byte("1\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "cpufreq"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, want := range []int{3, 1, 11, 0, 40} {
		if err := useProcessors(dir, want); err != nil {
			t.Fatal(err)
		}
		on := 1
		for n := 1; n < 12; n++ {
			b, err := os.ReadFile(filepath.Join(dir, "cpu"+strconv.Itoa(n), "online"))
			if err != nil {
				t.Fatal(err)
			}
			if b[0] == '1' {
				if on++; want > 0 && n >= want {
					t.Errorf("of %d processors number %d is in use", want, n)
				}
			}
		}
		if is := min(want, 12); want > 0 && on != is || want == 0 && on != 12 {
			t.Errorf("%d processors are in use, not %d", on, want)
		}
	}
}

func TestProcessorsInUse(t *testing.T) {
	for stat, want := range map[string]int{"": 0, "cpu": 0, "cpu  1 2 3\ncpu0 1\ncpu10 2\nintr 5\n": 2, "cpux 1\ncpu1": 1} {
		if is := processors(stat); is != want {
			t.Errorf("%q: %d, not %d", stat, is, want)
		}
	}
}
