package units

import (
	"math"
	"testing"
)

func TestSizes(t *testing.T) {
	for text, want := range map[string]uint64{
		"0": 0, "1024": 1024, "512MiB": 512 << 20, "512m": 512 << 20, "1.5GiB": 3 << 29, "5GB": 5e9, "2 TiB": 2 << 40, "7b": 7, "1kb": 1000,
	} {
		if got, err := ParseBytes(text); err != nil || got != want {
			t.Errorf("ParseBytes(%q) = %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "-1", "lots", "MiB", "1PiB", "1xb", "1bb", "NaN", "inf", "9e30", "1 2"} {
		if got, err := ParseBytes(text); err == nil {
			t.Errorf("ParseBytes(%q) = %d, want an error", text, got)
		}
	}
	for n, want := range map[uint64]string{0: "0B", 1023: "1023B", 1024: "1KiB", 512 << 20: "512MiB", 3 << 29: "1.5GiB", math.MaxUint64: "16777216TiB"} {
		if got := Bytes(n); got != want {
			t.Errorf("Bytes(%d) = %s, want %s", n, got, want)
		}
	}
}

func FuzzParseBytes(f *testing.F) {
	for _, s := range []string{"512MiB", "5g", "1.5GiB", "-1", "1e3", "kib", "0x10"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseBytes(s)
		if err == nil && n > math.MaxInt64 {
			t.Errorf("%q is %d, more than any size", s, n)
		}
	})
}
