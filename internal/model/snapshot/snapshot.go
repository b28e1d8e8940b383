// Package snapshot says what a snapshot of a guest is: a moment of its private
// data, and if it was asked for of its memory, that the guest can go back to.
package snapshot

import (
	"time"

	"lodge/internal/model"
)

// Kind is the noun's name in keys and events.
const Kind model.Kind = "snapshot"

// Spec is what was asked for.
type Spec struct {
	Guest  string `json:"guest"` // the guest's id
	Name   string `json:"name"`  // unique among the guest's snapshots
	Pool   string `json:"pool"`  // that the guest lies on
	Note   string `json:"note,omitempty"`
	Memory bool   `json:"memory,omitempty"` // of a guest that runs: with what it was doing
}

// Taken is what was found when the snapshot was taken.
type Taken struct {
	At     time.Time `json:"at"`
	Model  string    `json:"model"` // that the guest was of
	Memory bool      `json:"memory,omitempty"`
	Rest   Rest      `json:"rest"`
}

// Rest is how the guest was brought to rest for the moment.
type Rest string

// The ways.
const (
	Stopped  Rest = "stopped"  // it did not run
	Quiesced Rest = "quiesced" // it wrote everything to its disks and waited
	Frozen   Rest = "frozen"   // it was halted where it was
)

// Status is what became of it.
type Status struct {
	Generation int64          `json:"generation"`
	Problem    *model.Problem `json:"problem,omitempty"`
	Taken      *Taken         `json:"taken,omitempty"` // nil: not yet
}

// RecordName is what the record of a guest's snapshot is called: renaming the
// guest changes nothing.
func RecordName(guestID, name string) string { return guestID + "/" + name }
