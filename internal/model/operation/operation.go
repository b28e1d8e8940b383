// Package operation says what a person gets back from a request that takes
// time: a receipt.
//
// An operation does no work. The work is done by reconcilers, whether or not
// anyone holds the receipt; the receipt says who asked, for what, which
// generation of which record answers it, and how far that has come. It is
// stored when it is issued and when it ends; progress in between is told, not
// stored.
package operation

import (
	"time"

	"lodge/internal/model"
)

// Kind is the noun's name in keys and events.
const Kind model.Kind = "operation"

// State is how far an operation has come. An operation of which nothing was
// written yet is Working.
type State string

// The states; the last three are final.
const (
	Working   State = "working"
	Done      State = "done"
	Failed    State = "failed"
	Cancelled State = "cancelled"
)

// Final reports whether s never changes again.
func (s State) Final() bool { return s == Done || s == Failed || s == Cancelled }

// Spec is what was asked.
type Spec struct {
	By       string    `json:"by"`   // user, or "autonomic/<plan>"
	Verb     string    `json:"verb"` // "guest.start"
	Subjects []Subject `json:"subjects"`
	Cancel   bool      `json:"cancel,omitempty"` // the wish to stop waiting for it and to undo what can be undone
}

// Subject is one record the operation is about, and when it is answered.
type Subject struct {
	model.Key
	ID         string `json:"id"`                // tells the record from a later one of the same name
	Generation int64  `json:"generation"`        // answered once the record's status has reached it
	Gone       bool   `json:"gone,omitempty"`    // answered once the record is no more
	Wish       int64  `json:"wish,omitempty"`    // for a change of model: refused once the record says that it was
	Passing    bool   `json:"passing,omitempty"` // answered too when the record is no more: an ephemeral guest
}

// Status is how it went.
type Status struct {
	State   State          `json:"state"`
	Problem *model.Problem `json:"problem,omitempty"`
	Ended   *time.Time     `json:"ended,omitempty"`
}

// Progress is told on the event stream. Parents nest work within work: a launch
// that builds an image that fetches packages.
type Progress struct {
	Subject model.Key `json:"subject"`
	Step    string    `json:"step"`
	Parents []string  `json:"parents,omitempty"`
	Done    uint64    `json:"done"`
	Total   uint64    `json:"total,omitempty"`
	Unit    string    `json:"unit,omitempty"` // "bytes", "" for plain counts
	Note    string    `json:"note,omitempty"` // the latest line of what a tool says
}
