package fabric_test

import (
	"net/netip"
	"testing"

	"lodge/internal/base/errs"
	"lodge/internal/fabric"
)

func TestPickAvoidsRoutes(t *testing.T) {
	all := netip.MustParsePrefix("0.0.0.0/0")
	v4, v6, err := fabric.Pick([]netip.Prefix{all}, 1)
	if err != nil {
		t.Fatal(err)
	}
	if v4.Bits() != 16 || !v4.Addr().IsPrivate() || v6.Bits() != 64 || !v6.Addr().IsPrivate() {
		t.Fatalf("picked %v and %v", v4, v6)
	}
	if again, again6, _ := fabric.Pick([]netip.Prefix{all}, 1); again != v4 || again6 != v6 {
		t.Errorf("same seed, other prefixes: %v %v, then %v %v", v4, v6, again, again6)
	}
	next, next6, err := fabric.Pick([]netip.Prefix{all, v4, v6}, 1)
	if err != nil {
		t.Fatal(err)
	}
	if next.Overlaps(v4) || next6.Overlaps(v6) {
		t.Errorf("picked %v, %v beside routes to %v, %v", next, next6, v4, v6)
	}
}

func TestPickFull(t *testing.T) {
	routes := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	v4, _, err := fabric.Pick(routes, 7)
	if err != nil || !netip.MustParsePrefix("172.16.0.0/12").Contains(v4.Addr()) {
		t.Fatalf("with 10/8 taken: %v, %v", v4, err)
	}
	routes = append(routes, netip.MustParsePrefix("172.16.0.0/12"))
	if _, _, err = fabric.Pick(routes, 7); !errs.Is(err, errs.NoSpace) {
		t.Fatalf("with everything taken: %v", err)
	}
}
