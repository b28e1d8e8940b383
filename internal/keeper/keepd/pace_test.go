package keepd

import (
	"testing"
	"time"
)

// TestPace has one terminal flood and another be as loud as a boot.
func TestPace(t *testing.T) {
	begun := time.Now()
	now, sum := begun, 0
	var flood pace
	for now.Sub(begun) < 10*time.Second {
		if w := flood.wait(now); w > 0 {
			now = now.Add(w)
			continue
		}
		flood.spend(chunk, now)
		sum += chunk
		now = now.Add(20 * time.Microsecond) // what carrying takes: over 3 GB a second
	}
	if most := 10*flow + burst + chunk; sum > most || sum < 9*flow {
		t.Errorf("a flood carries %d bytes in ten seconds, want about %d", sum, most)
	}
	var boot pace
	for i := range 3 << 20 / chunk {
		now = now.Add(20 * time.Microsecond)
		if w := boot.wait(now); w > 0 {
			t.Fatalf("a boot waits %v after %d chunks", w, i)
		}
		boot.spend(chunk, now)
	}
	if w := flood.wait(now.Add(time.Hour)); w != 0 {
		t.Errorf("what was quiet for an hour waits %v", w)
	}
}
