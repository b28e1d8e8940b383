// Package units reads and writes sizes as people do: 512MiB, 5GB, 1.5g.
package units

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

var factors = []struct {
	suffix string
	factor float64
}{
	{"kib", 1 << 10}, {"mib", 1 << 20}, {"gib", 1 << 30}, {"tib", 1 << 40},
	{"kb", 1e3}, {"mb", 1e6}, {"gb", 1e9}, {"tb", 1e12},
	{"k", 1 << 10}, {"m", 1 << 20}, {"g", 1 << 30}, {"t", 1 << 40},
	{"b", 1},
}

// ParseBytes reads a size in bytes. A bare number is bytes; KiB, MiB, GiB, TiB
// and the one-letter forms are powers of 1,024; KB, MB, GB and TB of 1,000.
func ParseBytes(s string) (uint64, error) {
	text, factor := strings.ToLower(strings.TrimSpace(s)), 1.0
	for _, f := range factors {
		if rest, ok := strings.CutSuffix(text, f.suffix); ok {
			text, factor = strings.TrimSpace(rest), f.factor
			break
		}
	}
	n, err := strconv.ParseFloat(text, 64)
	if err != nil || n < 0 || math.IsNaN(n) || n*factor >= math.MaxInt64 {
		return 0, fmt.Errorf("%q is not a size: write it as 512MiB or 5GiB", s)
	}
	return uint64(n * factor), nil
}

// Bytes writes a size in the largest binary unit that keeps it readable:
// "512MiB", "1.5GiB".
func Bytes(n uint64) string {
	for i := 3; i >= 0; i-- {
		f := factors[i]
		if float64(n) >= f.factor {
			v := strconv.FormatFloat(math.Round(float64(n)/f.factor*10)/10, 'f', -1, 64)
			return v + strings.ToUpper(f.suffix[:1]) + "iB"
		}
	}
	return strconv.FormatUint(n, 10) + "B"
}
