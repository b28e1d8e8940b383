package operations

import (
	"testing"
	"time"

	"lodge/internal/model"
	"lodge/internal/model/operation"
)

// TestFinalProblemEndsTheWait: a mirror may answer again some day, but a build
// that failed is not tried again, so nobody should wait for it.
func TestFinalProblemEndsTheWait(t *testing.T) {
	s := operation.Subject{Generation: 3}
	p := &model.Problem{Code: "unavailable"}
	if v, _ := Judge(s, Answer{Found: true, Generation: 3, Problem: p}, time.Time{}); v != Waiting {
		t.Errorf("a problem that may pass: %v", v)
	}
	p.Final = true
	if v, _ := Judge(s, Answer{Found: true, Generation: 3, Problem: p}, time.Time{}); v != Refused {
		t.Errorf("a problem that does not pass by itself: %v", v)
	}
}

// TestProblemAside: a guest that runs and has panicked runs, which is what was
// asked for.
func TestProblemAside(t *testing.T) {
	s := operation.Subject{Generation: 3}
	p := &model.Problem{Code: model.Crashed, Aside: true}
	if v, _ := Judge(s, Answer{Found: true, Generation: 3, Resting: true, Problem: p}, time.Time{}); v != Answered {
		t.Errorf("%v", v)
	}
}
