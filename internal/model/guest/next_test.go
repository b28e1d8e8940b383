package guest

import (
	"fmt"
	"testing"
	"time"

	"lodge/internal/model"
)

// apply is the ideal world: each step does what its name says.
func apply(s Step, placed bool, w Seen) (bool, bool, Seen) {
	switch s {
	case Place:
		return true, false, w
	case Convert:
		w.Misfit = false
	case Recover:
		w.Misfit = true // the snapshot may be from when the guest was of another model
	case Prepare:
		w.Attached = true
	case Start:
		w = Seen{Attached: w.Attached, Alive: true}
	case Freeze:
		w.Frozen = true
	case Thaw:
		w.Frozen = false
	case Stop, Save:
		w.Alive, w.Frozen = false, false
	case Release:
		w.Attached = false
	case Destroy:
		placed = false
	case Forget:
		return false, true, w
	}
	return placed, false, w
}

// note is what a step leaves in the record.
func (g *Guest) note(s Step) {
	switch s {
	case Start:
		g.Status.Boots = g.Spec.Boots
	case Clone:
		g.Status.Cloned = true
	case Recover:
		g.Status.Restored = g.Spec.Restore.Wish
	}
}

func possible(w Seen) bool {
	switch {
	case w.Frozen && !w.Alive, w.Failed && !w.Exited, w.Exited && w.Alive, w.Cooling && w.Alive:
		return false
	case w.Lost && (w.Alive || w.Exited):
		return false
	}
	return true
}

// everyStart calls visit with every state a guest can be found in, under every
// wish.
func everyStart(visit func(g Guest, placed bool, w Seen)) {
	for _, power := range []Power{Off, On, Held, Saved} {
		for _, restart := range []Restart{Never, OnFailure, Always} {
			for bits := range 1 << 15 {
				bit := func(i int) bool { return bits>>i&1 == 1 }
				w := Seen{Attached: bit(1), Alive: bit(2), Frozen: bit(3), Exited: bit(4), Failed: bit(5), Cooling: bit(6), Lost: bit(7), Misfit: bit(12)}
				if !possible(w) {
					continue
				}
				g := Guest{Meta: model.Meta{Name: "g"}, Spec: Spec{Power: power, Restart: restart, Ephemeral: bit(8)}}
				g.Spec.Autostart.Enabled = bit(9)
				g.Spec.Boots, g.Status.Boots = 1, 1
				if bit(10) {
					g.Spec.Boots = 2
				}
				if bit(11) {
					g.Deleting = &time.Time{}
				}
				if bit(13) {
					g.Spec.Clone = &CloneOf{}
				}
				if bit(14) {
					g.Spec.Restore = &RestoreOf{Wish: 1}
				}
				visit(g, bit(0), w)
			}
		}
	}
}

// TestConverges visits every state a guest can be found in, with every wish,
// and checks that the steps end, end where the owner wanted, and never pass
// through the same state twice.
func TestConverges(t *testing.T) {
	n, longest := 0, 0
	everyStart(func(g Guest, placed bool, w Seen) {
		n++
		been, gone := map[string]bool{}, false
		for i := 0; !gone; i++ {
			at := w.Phase(placed)
			s := Next(g, at, w)
			if s == Rest {
				if want := g.goal(w); at != want && !w.Cooling {
					t.Fatalf("%+v %+v: rests in %s, wanted %s", g, w, at, want)
				}
				return
			}
			key := fmt.Sprint(placed, w, g.Status.Boots, g.Status.Cloned, g.Status.Restored)
			if been[key] {
				t.Fatalf("%+v: goes round through %s by %s", g, key, s)
			}
			been[key], longest = true, max(longest, i+1)
			g.note(s)
			placed, gone, w = apply(s, placed, w)
		}
	})
	t.Logf("%d starts, longest way %d steps", n, longest)
}

// TestDeletedIsForgotten states the wish independently of goal: whatever a
// guest looks like, deleting it ends in Forget.
func TestDeletedIsForgotten(t *testing.T) {
	everyStart(func(g Guest, placed bool, w Seen) {
		if g.Deleting == nil {
			return
		}
		gone := false
		for range 9 {
			if placed, gone, w = apply(Next(g, w.Phase(placed), w), placed, w); gone {
				return
			}
		}
		t.Fatalf("not forgotten: placed=%v %+v", placed, w)
	})
}

// TestFitsBeforeItBoots: a layer is converted before anything is attached, and
// never under a guest that is up, or that goes.
func TestFitsBeforeItBoots(t *testing.T) {
	everyStart(func(g Guest, placed bool, w Seen) {
		for range 12 {
			s := Next(g, w.Phase(placed), w)
			switch {
			case s == Rest || s == Forget:
				return
			case w.Misfit && (s == Prepare || s == Start):
				t.Fatalf("%+v %+v: %s with a layer of the wrong form", g, w, s)
			case s == Convert && !w.Misfit, (s == Convert || s == Clone || s == Recover) && (w.Attached || w.Alive || g.Deleting != nil):
				t.Fatalf("%+v %+v: %s", g, w, s)
			case (s == Prepare || s == Start) && (g.CloneWanted() || g.RestoreWanted()):
				t.Fatalf("%+v %+v: %s without the layer that was asked for", g, w, s)
			}
			g.note(s)
			placed, _, w = apply(s, placed, w)
		}
	})
}

// TestModelInForce: a change of model that was refused leaves the guest what it
// was, until the next wish for one.
func TestModelInForce(t *testing.T) {
	for _, c := range []struct {
		wish, refused int64
		was           Model
		want          Model
		engine        string
	}{
		{0, 0, "", VM, "e"}, {1, 0, OS, VM, "e"}, {1, 1, OS, OS, ""}, {2, 1, OS, VM, "e"}, {1, 1, Paravirt, Paravirt, ""}, {1, 1, "", OS, ""},
		{1, 1, VM, VM, "e"},
	} {
		g := Guest{Spec: Spec{Model: VM, Engine: "e", Models: c.wish}, Status: Status{Refused: c.refused, Model: c.was}}
		if m, e := g.InForce(); m != c.want || e != c.engine {
			t.Errorf("%+v: %s on %q", c, m, e)
		}
	}
}

// TestWishes says in plain rows where a guest must end up. TestConverges
// cannot: it asks goal what the goal is.
func TestWishes(t *testing.T) {
	ended, crashed := Seen{Exited: true}, Seen{Exited: true, Failed: true}
	up := Seen{Attached: true, Alive: true}
	for _, c := range []struct {
		name string
		spec Spec
		seen Seen
		ends Phase
	}{
		{"off stays down", Spec{Power: Off, Restart: Always}, crashed, Placed},
		{"off goes down", Spec{Power: Off}, up, Placed},
		{"saved goes down", Spec{Power: Saved, Restart: Always}, up, Placed},
		{"saved stays down", Spec{Power: Saved, Restart: Always}, crashed, Placed},
		{"saved, but asked again", Spec{Power: On, Boots: 2}, Seen{}, Running},
		{"on comes up", Spec{Power: On}, Seen{}, Running},
		{"on resumes", Spec{Power: On}, Seen{Attached: true, Alive: true, Frozen: true}, Running},
		{"paused comes up and freezes", Spec{Power: Held}, Seen{}, Paused},
		{"never: left as it ended", Spec{Power: On, Restart: Never}, crashed, Placed},
		{"never: but asked again", Spec{Power: On, Restart: Never, Boots: 2}, crashed, Running},
		{"on-failure: a clean end is an end", Spec{Power: On, Restart: OnFailure}, ended, Placed},
		{"on-failure: a crash is not", Spec{Power: On, Restart: OnFailure}, crashed, Running},
		{"always: even a clean end is not", Spec{Power: On, Restart: Always}, ended, Running},
		{"always: but not before its time", Spec{Power: On, Restart: Always}, Seen{Exited: true, Cooling: true}, Placed},
		{"asked again: does not wait", Spec{Power: On, Restart: Always, Boots: 2}, Seen{Exited: true, Cooling: true}, Running},
		{"down with the host: stays", Spec{Power: On}, Seen{Lost: true}, Placed},
		{"down with the host: autostart", Spec{Power: On, Autostart: Autostart{Enabled: true}}, Seen{Lost: true}, Running},
		{"down with the host: always", Spec{Power: On, Restart: Always}, Seen{Lost: true}, Running},
		{"ephemeral: gone once it ended", Spec{Power: On, Ephemeral: true}, ended, Unplaced},
		{"ephemeral: gone once stopped", Spec{Power: Off, Ephemeral: true}, up, Unplaced},
		{"ephemeral: crash under on-failure", Spec{Power: On, Ephemeral: true, Restart: OnFailure}, crashed, Running},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := Guest{Spec: c.spec, Status: Status{Boots: 1}}
			g.Spec.Boots = max(1, g.Spec.Boots)
			placed, w := true, c.seen
			for range 9 {
				s := Next(g, w.Phase(placed), w)
				g.note(s)
				placed, _, w = apply(s, placed, w)
			}
			if at := w.Phase(placed); at != c.ends {
				t.Errorf("ends in phase %s, want %s", at, c.ends)
			}
		})
	}
}

// TestSavedIsSaved: a wish to save never becomes a stop, which would lose what
// was to be kept.
func TestSavedIsSaved(t *testing.T) {
	for _, at := range []Phase{Running, Paused} {
		if s := Next(Guest{Spec: Spec{Power: Saved, Boots: 1}, Status: Status{Boots: 1}}, at, Seen{Attached: true, Alive: true}); s != Save {
			t.Errorf("in phase %s the next step is %q, want %q", at, s, Save)
		}
	}
}

// TestRebootStops: a wish to boot again takes a running guest down first.
func TestRebootStops(t *testing.T) {
	g := Guest{Spec: Spec{Power: On, Boots: 2}, Status: Status{Boots: 1}}
	if s := Next(g, Running, Seen{Attached: true, Alive: true}); s != Stop {
		t.Errorf("next step is %q, want %q", s, Stop)
	}
}
