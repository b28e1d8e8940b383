package e2e

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"

	"lodge/internal/fabric"
)

// TestTwoDaemons has two daemons in one network namespace, whose guests have the
// same slots. Neither takes what is the other's, also when one starts anew and
// when its guests go.
func TestTwoDaemons(t *testing.T) {
	both := []*server{newServer(t), newServer(t)}
	for _, s := range both {
		s.busybox()
		s.lodge("launch", "busybox", "a", "--memory", "32MiB")
	}
	cards := func(s *server) (names []string) {
		all, err := net.Interfaces()
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range all {
			if strings.HasPrefix(i.Name, fabric.Cards(s.flag("--prefix"))) {
				names = append(names, fmt.Sprint(i.Name, " ", i.Index))
			}
		}
		return names
	}
	one, other := both[0], both[1]
	had := cards(other)
	if len(had) != 1 || len(cards(one)) != 1 {
		t.Fatalf("the cards are %v and %v", cards(one), had)
	}
	reaches := func(s *server) {
		t.Helper()
		if r := s.try("exec", "a", "--", "sh", "-c", "ping -4 -c1 -W10 $(ip route | sed -n 's/^default via \\([^ ]*\\).*/\\1/p')"); r.code != 0 {
			t.Errorf("its guest does not reach its gateway: %+v", r)
		}
	}
	reaches(one)
	reaches(other)
	one.kill()
	one.start()
	one.lodge("restart", "a")
	reaches(one)
	one.lodge("rm", "-f", "a")
	if left := cards(one); len(left) > 0 {
		t.Errorf("it leaves %v", left)
	}
	if has := cards(other); !slices.Equal(has, had) {
		t.Errorf("the other's cards were %v, are %v", had, has)
	}
	reaches(other)
	if r := one.down(); r.code != 0 { // before what is left of the other is looked for
		t.Errorf("lodged down: %+v", r)
	}
	reaches(other)
}
