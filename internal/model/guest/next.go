package guest

// Step is one piece of work on one guest. Each is idempotent: doing it again
// after a crash is harmless.
type Step string

// The steps. Place and Forget are the placements reconciler's; all others are
// the holding host's.
const (
	Rest    Step = ""
	Place   Step = "place"
	Clone   Step = "clone"   // the writable layer, from another guest's
	Recover Step = "restore" // the writable layer as it was when a snapshot was taken
	Convert Step = "convert" // the writable layer to the form that the model needs
	Prepare Step = "prepare"
	Start   Step = "start"
	Freeze  Step = "pause"
	Thaw    Step = "resume"
	Stop    Step = "stop"
	Save    Step = "save" // the memory, and stop
	Release Step = "release"
	Destroy Step = "destroy" // the writable layer; only ever on the way to Gone
	Forget  Step = "forget"
)

var doing = map[Step]string{
	Place: "placing", Clone: "cloning", Recover: "restoring", Convert: "converting", Save: "saving", Prepare: "preparing", Start: "starting", Freeze: "pausing", Thaw: "resuming",
	Stop: "stopping", Release: "releasing", Destroy: "removing", Forget: "removing",
}

// Word is what a person is shown while s is under way: "starting".
func (s Step) Word() string { return doing[s] }

// Phase returns the phase that what the host sees amounts to. It is the only
// place where facts become a phase, so a daemon that just started and one that
// has run for a year read the same guest alike.
func (s Seen) Phase(placed bool) Phase {
	switch {
	case s.Alive && s.Frozen:
		return Paused
	case s.Alive:
		return Running
	case s.Attached:
		return Ready
	case placed:
		return Placed
	}
	return Unplaced
}

// Next returns the one step that brings g nearer to its spec, given the phase
// it rests in, or Rest. It is a pure function: that it converges is proved by
// visiting every state.
func Next(g Guest, at Phase, last Seen) Step {
	want := g.goal(last)
	up := want == Running || want == Paused
	switch at {
	case Running, Paused:
		return g.nextUp(at, want)
	case Ready, Placed:
		if s := g.nextLayer(last); s != Rest && want != Gone {
			if at == Ready {
				return Release
			}
			return s
		}
		switch {
		case up && last.Cooling && !g.rebootWanted():
			return Rest // the restart policy waits; the reconciler looks again when it is over
		case up && at == Ready:
			return Start
		case up:
			return Prepare
		case at == Ready:
			return Release
		case want == Gone:
			return Destroy // the host's last step: after it nothing of the guest is left there
		}
	case Unplaced:
		if want == Gone {
			return Forget
		}
		return Place
	}
	return Rest
}

// nextLayer is what is to be done to the writable layer of a guest that is down,
// at once, also if it stays down: who asked for it learns whether it can be.
func (g Guest) nextLayer(last Seen) Step {
	switch {
	case g.CloneWanted():
		return Clone
	case g.RestoreWanted():
		return Recover
	case last.Misfit:
		return Convert
	}
	return Rest
}

// nextUp is Next for a guest that is up.
func (g Guest) nextUp(at, want Phase) Step {
	switch {
	case g.Spec.Power == Saved && want == Placed && !g.rebootWanted():
		return Save
	case g.rebootWanted(), want != Running && want != Paused:
		return Stop
	case at == want:
		return Rest
	case want == Paused:
		return Freeze
	}
	return Thaw
}

// goal turns the owner's wish into a phase. A guest that is off holds its place
// and its data, and nothing else.
func (g Guest) goal(last Seen) Phase {
	ended := !g.rebootWanted() && (last.Exited && !g.restarts(last) || last.Lost && !g.returns())
	switch {
	case g.Deleting != nil:
		return Gone
	case g.Spec.Ephemeral && g.Status.Boots > 0 && (ended || g.Spec.Power == Off):
		return Gone
	case g.Spec.Power == Off, g.Spec.Power == Saved, ended:
		return Placed
	case g.Spec.Power == Held:
		return Paused
	}
	return Running
}

func (g Guest) rebootWanted() bool { return g.Spec.Boots > g.Status.Boots }

// returns reports whether a guest that went down with its host comes back with
// it.
func (g Guest) returns() bool { return g.Spec.Autostart.Enabled || g.Spec.Restart == Always }

func (g Guest) restarts(last Seen) bool {
	return g.Spec.Restart == Always || g.Spec.Restart == OnFailure && last.Failed
}

// Restarts reports whether the restart policy brings the guest back after e.
func (g Guest) Restarts(e Exit) bool { return g.restarts(Seen{Exited: true, Failed: e.Code != 0}) }
