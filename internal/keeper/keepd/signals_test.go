package keepd

import (
	"slices"
	"strings"
	"syscall"
	"testing"
)

func TestIgnored(t *testing.T) {
	got := ignored(strings.NewReader("SigBlk:\t0000000000000001\nSigIgn:\t0000000180000001\nSigCgt:\t0\n"))
	if want := []syscall.Signal{1, 32, 33}; !slices.Equal(got, want) {
		t.Errorf("ignored are %v, want %v", got, want)
	}
	if got := ignored(strings.NewReader("SigIgn: nonsense\n")); got != nil {
		t.Errorf("ignored are %v, want none", got)
	}
}
