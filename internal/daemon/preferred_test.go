package daemon

import "testing"

func TestPreferred(t *testing.T) {
	for _, c := range []struct {
		h    poolFacts
		want string
	}{
		{poolFacts{}, "btrfs"},
		{poolFacts{onBtrfs: true}, "btrfs"},
		{poolFacts{btrfsMissing: "mkfs.btrfs is not installed"}, "dir"},
		{poolFacts{onBtrfs: true, btrfsMissing: "mkfs.btrfs is not installed"}, "btrfs"},
	} {
		if got, why := preferred(c.h); got != c.want || why == "" {
			t.Errorf("%+v: %s (%s), want %s", c.h, got, why, c.want)
		}
	}
}
