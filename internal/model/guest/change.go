package guest

import (
	"cmp"

	"lodge/internal/model"
)

// InForce returns the model that g is of now, and the engine that was asked for
// with it, if one was. It is that of its spec, unless the change to it was
// refused: then g stays what its writable layer is fit for.
func (g Guest) InForce() (m Model, engine string) {
	was := g.Status.Was()
	if !g.refused() || was == g.Spec.Model {
		return g.Spec.Model, g.Spec.Engine
	}
	return was, ""
}

func (g Guest) refused() bool { return g.Spec.Models != 0 && g.Status.Refused == g.Spec.Models }

// Refusal returns why g is not of the model that it was asked to be, beside
// whatever it does as it is; nil if it is.
func (g Guest) Refusal() *model.Problem {
	if !g.refused() || g.Status.Refusal == nil {
		return nil
	}
	p := *g.Status.Refusal
	p.Aside = true
	return &p
}

// Was returns the model that the guest's writable layer was last made fit for.
// Guests from before there were several are of the host's kernel.
func (s Status) Was() Model { return cmp.Or(s.Model, OS) }

// CloneOf says what a guest was cloned from.
type CloneOf struct {
	Guest    string `json:"guest"`              // id
	Snapshot string `json:"snapshot,omitempty"` // id; empty: what the guest was when the clone was made
	Memory   bool   `json:"memory,omitempty"`   // it goes on from where the other was
	Group    string `json:"group,omitempty"`    // those with the same are copies of one moment
}

// RestoreOf is a wish to go back to a snapshot.
type RestoreOf struct {
	Wish     int64  `json:"wish"` // raised by each
	Snapshot string `json:"snapshot"`
	Memory   bool   `json:"memory,omitempty"` // and to go on from the memory in it
}

// RestoreWanted reports whether g is still to go back to a snapshot.
func (g Guest) RestoreWanted() bool {
	return g.Spec.Restore != nil && g.Spec.Restore.Wish > g.Status.Restored
}

// CloneWanted reports whether g's writable layer is still to be made of
// another's.
func (g Guest) CloneWanted() bool { return g.Spec.Clone != nil && !g.Status.Cloned }

// SameMoment reports whether g is still to be made a copy, and of the moment
// that other is a copy of.
func (g Guest) SameMoment(other Guest) bool {
	of := other.Spec.Clone
	return g.Deleting == nil && g.CloneWanted() && of != nil && of.Group != "" && g.Spec.Clone.Group == of.Group
}
