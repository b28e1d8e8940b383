package fabric

import (
	"strings"
	"testing"
)

// TestCards: whatever number follows, no card of one prefix is called like one
// of another, and no name is longer than the kernel takes.
func TestCards(t *testing.T) {
	prefixes := []string{Prefix, "l", "lg", "lg1", "e", "e1", "e11", "abcde"}
	for _, p := range prefixes {
		if c := Cards(p); len(c+"50273n99") > 15 {
			t.Errorf("%q is too long", c)
		}
		for _, other := range prefixes {
			if rest, is := strings.CutPrefix(Cards(other), Cards(p)); p != other && is && strings.Trim(rest, "0123456789") == "" {
				t.Errorf("cards of %q may be called like those of %q: %q, %q", p, other, Cards(p), Cards(other))
			}
		}
	}
}
