package operations

import (
	"fmt"
	"time"

	"lodge/internal/base/errs"
	"lodge/internal/model"
	"lodge/internal/model/operation"
)

// Answer is what a subject's record says at one moment.
type Answer struct {
	Found      bool
	Generation int64 // of the spec that the status answers
	Resting    bool  // it is where that generation wants it
	Problem    *model.Problem
}

// Verdict is what an answer means for a receipt.
type Verdict uint8

// The verdicts.
const (
	Waiting Verdict = iota
	Answered
	Refused
)

// Judge says what a means for s, and which problem holds it up or ended it. A
// problem that may pass by itself never ends the wait: the work goes on, and so
// does the receipt.
func Judge(s operation.Subject, a Answer, now time.Time) (Verdict, *model.Problem) {
	if a.Problem != nil && a.Problem.Aside {
		a.Problem = nil
	}
	switch {
	case !a.Found && (s.Gone || s.Passing):
		return Answered, nil
	case !a.Found:
		return Refused, &model.Problem{Code: errs.NotFound.String(), Message: s.String() + " was removed meanwhile", Since: now, Attempts: 1}
	case a.Problem != nil && a.Generation >= s.Generation && final(a.Problem):
		return Refused, a.Problem
	case a.Problem != nil:
		return Waiting, a.Problem
	case s.Gone:
		return Waiting, nil
	case a.Generation >= s.Generation && a.Resting:
		return Answered, nil
	}
	return Waiting, nil
}

// final reports whether p does not pass by itself.
func final(p *model.Problem) bool { return p.Final || !errs.ParseKind(p.Code).Retry() }

// Count is how the subjects of one operation stand.
type Count struct {
	All, Waiting, Refused int
	// Subject and Problem are the first that was refused, or else the first
	// that is held up.
	Subject string
	Problem *model.Problem
}

// Settle says what a receipt reads, given how its subjects stand. A final one
// never changes.
func Settle(spec operation.Spec, last operation.Status, c Count, now time.Time) operation.Status {
	if last.State.Final() {
		return last
	}
	next := operation.Status{State: operation.Working, Problem: told(c)}
	switch {
	case spec.Cancel:
		next.State = operation.Cancelled
	case c.Waiting > 0:
		return next
	case c.Refused > 0:
		next.State = operation.Failed
	default:
		next.State = operation.Done
	}
	next.Ended = &now
	return next
}

// told words the problem of one of many so that it says which and how many.
func told(c Count) *model.Problem {
	if c.Problem == nil || c.All <= 1 {
		return c.Problem
	}
	p := *c.Problem
	p.Message = c.Subject + ": " + p.Message
	if c.Refused > 1 {
		p.Message = fmt.Sprintf("%d of %d failed; %s", c.Refused, c.All, p.Message)
	}
	return &p
}
