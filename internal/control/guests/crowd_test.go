package guests

import (
	"fmt"
	"testing"
	"time"

	"lodge/internal/model/guest"
)

// TestCrowd lets many guests start at once: never more boot than may, and all
// get their turn.
func TestCrowd(t *testing.T) {
	const many, most = 40, 4
	now := time.Unix(1_800_000_000, 0)
	c := crowd{boots: map[string]time.Time{}, waits: map[string]time.Time{}}
	status := map[string]guest.Status{}
	look := func(id string) (guest.Status, bool) { s, ok := status[id]; return s, ok }
	var placed []string
	for i := range many {
		status[fmt.Sprint(i)] = guest.Status{Phase: guest.Ready}
	}
	for round := 0; len(placed) < many; round++ {
		if round > many {
			t.Fatalf("after %d rounds only %d have started", round, len(placed))
		}
		var fresh []string
		for i := range many {
			id := fmt.Sprint(i)
			if status[id].Phase == guest.Running {
				continue
			}
			if wait := c.place(id, most, now, look); wait == 0 {
				at := now
				status[id] = guest.Status{Phase: guest.Running, Started: &at}
				fresh = append(fresh, id)
			} else if wait < lookOften {
				t.Errorf("it looks again after %v", wait)
			}
		}
		if len(fresh) != min(most, many-len(placed)) {
			t.Fatalf("round %d: %v start beside each other", round, fresh)
		}
		now = now.Add(time.Second)
		for _, id := range fresh {
			s := status[id]
			s.Ready = true
			status[id] = s
		}
		placed = append(placed, fresh...)
	}
}

func TestBoots(t *testing.T) {
	since := time.Unix(1_800_000_000, 0)
	before, after := since.Add(-time.Hour), since.Add(time.Millisecond)
	for _, c := range []struct {
		what string
		s    guest.Status
		now  time.Time
		want bool
	}{
		{"about to start for the first time", guest.Status{Phase: guest.Ready}, after, true},
		{"about to start again", guest.Status{Phase: guest.Ready, Started: &before, Ready: true}, after, true},
		{"started", guest.Status{Phase: guest.Running, Started: &after}, after, true},
		{"ready", guest.Status{Phase: guest.Running, Started: &after, Ready: true}, after, false},
		{"ended", guest.Status{Phase: guest.Ready, Started: &after}, after, false},
		{"silent for long", guest.Status{Phase: guest.Running, Started: &after}, since.Add(bootPlace + 1), false},
	} {
		if is := boots(c.s, since, c.now); is != c.want {
			t.Errorf("%s: %v", c.what, is)
		}
	}
}

// TestPlaceOfWhoIsGone gives the place of a guest to another once it was
// removed.
func TestPlaceOfWhoIsGone(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	c := crowd{boots: map[string]time.Time{"a": now}, waits: map[string]time.Time{}}
	gone := func(string) (guest.Status, bool) { return guest.Status{}, false }
	if wait := c.place("b", 1, now, gone); wait != 0 {
		t.Errorf("it waits %v for nobody", wait)
	}
}
