package oslevel

import "lodge/internal/launch"

// script is a plan of a guest of this engine.
type script struct{ launch.Script }

func newScript() script { return script{launch.NewScript()} }

const (
	cwd   = launch.Cwd
	zero  = launch.Zero
	empty = launch.Empty
)
