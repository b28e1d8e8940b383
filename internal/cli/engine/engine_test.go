package engine

import (
	"slices"
	"strings"
	"testing"
)

func TestFolded(t *testing.T) {
	if is := folded(""); is != nil {
		t.Errorf("%q", is)
	}
	if is := folded("a, b"); !slices.Equal(is, []string{"a, b"}) {
		t.Errorf("%q", is)
	}
	list := strings.TrimSuffix(strings.Repeat("processor, ", 40), ", ")
	lines := folded(list)
	for _, l := range lines {
		if len(l) > lineMax+1 {
			t.Errorf("%q is too long", l)
		}
	}
	if len(lines) < 5 || strings.Join(lines, " ") != list {
		t.Errorf("%q", lines)
	}
}
