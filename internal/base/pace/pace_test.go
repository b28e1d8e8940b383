package pace

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, began := New(100, 50), time.Now()
		p.Spend(49)
		if took := time.Since(began); took != 0 {
			t.Errorf("what was earned already took %v", took)
		}
		for range 10 {
			p.Spend(20)
		}
		if took := time.Since(began); took < 1900*time.Millisecond || took > 2100*time.Millisecond {
			t.Errorf("249 at 100 a second, 50 of them given, took %v", took)
		}
		p.Set(1)
		began = time.Now()
		p.Spend(1)
		p.Spend(1)
		if took := time.Since(began); took < time.Second {
			t.Errorf("two at one a second took %v", took)
		}
	})
}
