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
