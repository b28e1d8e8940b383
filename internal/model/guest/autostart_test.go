package guest

import (
	"testing"
	"time"

	"lodge/internal/model"
)

func TestAutostartPlan(t *testing.T) {
	g := func(name string, on bool, order, delay int) Guest {
		return Guest{Meta: model.Meta{Name: name, ID: name}, Spec: Spec{Autostart: Autostart{on, order, delay}}}
	}
	plan := AutostartPlan([]Guest{g("web", true, 2, 0), g("db", true, 1, 3), g("off", false, 0, 9), g("cache", true, 1, 0)})
	want := map[string]time.Duration{"cache": 0, "db": 0, "web": 3*time.Second + orderGap}
	if len(plan) != len(want) {
		t.Fatalf("plan %v, want %v", plan, want)
	}
	for name, at := range want {
		if plan[name] != at {
			t.Errorf("%s starts after %v, want %v", name, plan[name], at)
		}
	}
}

func TestBackoff(t *testing.T) {
	wait, n := Backoff(0, time.Second)
	if wait != FirstBackoff || n != 1 {
		t.Errorf("first end: %v %d", wait, n)
	}
	if wait, _ = Backoff(3, time.Second); wait != 8*FirstBackoff {
		t.Errorf("fourth end: %v", wait)
	}
	if wait, _ = Backoff(1000, time.Second); wait != MaxBackoff {
		t.Errorf("thousandth end: %v", wait)
	}
	if wait, n = Backoff(9, SettledAfter); wait != FirstBackoff || n != 1 {
		t.Errorf("end after a long run: %v %d", wait, n)
	}
}
