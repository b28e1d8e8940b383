package uml

import (
	"cmp"
	"syscall"

	"lodge/internal/engine"
	"lodge/internal/keeper"
	"lodge/internal/model/guest"
)

// Ended reads on the console how the guest ended: its kernel's process ends the
// same way whatever became of the guest.
func (e *Engine) Ended(_ guest.Guest, parts engine.Parts, x keeper.Exit) (is keeper.Exit, last string) {
	if x.Unknown || x.Signal == syscall.SIGKILL {
		return x, engine.LastLines(parts) // nothing in the guest can end it so
	}
	is, last, known := engine.LastWords(parts, x)
	if !known && (is.Signal != 0 || is.Code != 0) {
		last = cmp.Or(last, engine.SaidNothing)
	}
	return is, last
}
