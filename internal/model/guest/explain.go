package guest

import (
	"fmt"
	"time"
)

// Explanation says where a guest is, where it should be and what is done about
// it, in words for a person.
type Explanation struct {
	Phase, Goal        Phase
	Step               Step
	Seen, Wanted, Next string
}

// Explain says what Next decides from the same, and why.
func Explain(g Guest, last Seen, now time.Time) Explanation {
	at := last.Phase(g.Holder.Host != "" && g.Status.Phase != Gone)
	x := Explanation{Phase: at, Goal: g.goal(last), Step: Next(g, at, last)}
	x.Seen, x.Wanted = g.seenWords(at, last, now), g.wantedWords(x.Goal, last)
	x.Next = g.nextWords(x.Step, at, x.Goal, last, now)
	return x
}

func (g Guest) seenWords(at Phase, last Seen, now time.Time) string {
	switch at {
	case Running, Paused:
		words := string(at)
		if s := g.Status.Started; s != nil {
			words += fmt.Sprintf(" since %s ago", now.Sub(*s).Round(time.Second))
		}
		if g.Status.Engine != "" {
			words += " on engine " + g.Status.Engine
		}
		if !g.Status.Ready {
			words += "; its init has not said yet that it is up"
		}
		return words
	case Unplaced:
		return "no host holds it"
	}
	words := "stopped"
	if at == Ready {
		words += ", with its disks and network cards attached"
	}
	switch x := g.Status.Exit; {
	case last.Lost:
		words += "; its last run ended with the host"
	case x != nil:
		words += fmt.Sprintf("; its last run ended by itself with status %d", x.Code)
	}
	return words
}

func (g Guest) wantedWords(goal Phase, last Seen) string {
	switch {
	case goal == Gone && g.Deleting == nil:
		return "removed: it is ephemeral, and its run is over"
	case goal == Gone:
		return "removed"
	case goal != Placed:
		return string(goal)
	case g.Spec.Power == Off:
		return "off"
	case last.Lost:
		return "off: it went down with the host and has no autostart"
	}
	return fmt.Sprintf("off: it ended by itself, and its restart policy is %q", g.restart())
}

func (g Guest) restart() Restart {
	if g.Spec.Restart == "" {
		return Never
	}
	return g.Spec.Restart
}

func (g Guest) nextWords(s Step, at, goal Phase, last Seen, now time.Time) string {
	if s != Rest {
		return string(s) + ", because " + g.because(s, at, goal, last)
	}
	if at == goal {
		return "nothing: it is where it should be"
	}
	if last.Cooling && g.Status.NotBefore != nil {
		return fmt.Sprintf("start in %s: the restart policy waits longer after each end", max(0, g.Status.NotBefore.Sub(now)).Round(time.Millisecond))
	}
	return "nothing"
}

// because says why a step is the next one.
func (g Guest) because(s Step, at, goal Phase, last Seen) string {
	switch {
	case s == Place:
		return "a guest needs a host first"
	case goal == Gone:
		return "it is to be removed"
	case s == Convert, s == Release && last.Misfit:
		return fmt.Sprintf("its writable layer has not the form that model %s needs", g.Spec.Model)
	case s == Stop && g.rebootWanted():
		return "it was asked to restart"
	case s == Stop:
		return "it was asked to stop"
	case s == Release:
		return "a guest that is off needs nothing attached"
	case s == Freeze:
		return "it was asked to pause"
	case s == Thaw:
		return "it was asked to go on"
	case last.Exited && !g.rebootWanted():
		return fmt.Sprintf("it ended by itself, and its restart policy is %q", g.restart())
	case last.Lost && !g.rebootWanted():
		return "it went down with the host and comes back with it"
	case at == Placed:
		return "it is to run, and nothing of it is attached yet"
	}
	return "it is to run, and all it needs is attached"
}
