package guest

import (
	"strings"
	"testing"
	"time"
)

// TestEveryStateIsExplained: whatever a guest looks like, the words are of the
// step that Next decides, and there is a reason.
func TestEveryStateIsExplained(t *testing.T) {
	now := time.Unix(1000, 0)
	everyStart(func(g Guest, placed bool, w Seen) {
		if placed {
			g.Holder.Host = "h"
		}
		x := Explain(g, w, now)
		if want := Next(g, w.Phase(placed), w); x.Step != want {
			t.Fatalf("%+v %+v: explains %q, next is %q", g, w, x.Step, want)
		}
		if x.Seen == "" || x.Wanted == "" || x.Next == "" || x.Step != Rest && !strings.HasPrefix(x.Next, string(x.Step)+", because ") {
			t.Fatalf("%+v %+v: %+v", g, w, x)
		}
	})
}

func TestExplain(t *testing.T) {
	now := time.Unix(1000, 0)
	ago, soon := now.Add(-90*time.Second), now.Add(2*time.Second)
	up, held := Seen{Attached: true, Alive: true}, Holder{Host: "h"}
	for _, c := range []struct {
		name               string
		g                  Guest
		w                  Seen
		seen, wanted, next string
	}{
		{"boots", Guest{Holder: held, Spec: Spec{Power: On}, Status: Status{Engine: "box", Started: &ago}}, up,
			"running since 1m30s ago on engine box; its init has not said", "running", "nothing: it is where it should be"},
		{"asked to restart", Guest{Holder: held, Spec: Spec{Power: On, Boots: 2}, Status: Status{Boots: 1, Ready: true}}, up,
			"running", "running", "stop, because it was asked to restart"},
		{"waits", Guest{Holder: held, Spec: Spec{Power: On, Restart: Always}, Status: Status{NotBefore: &soon, Exit: &Exit{Code: 3}}}, Seen{Exited: true, Failed: true, Cooling: true},
			"stopped; its last run ended by itself with status 3", "running", "start in 2s: the restart policy waits"},
		{"left as it ended", Guest{Holder: held, Spec: Spec{Power: On}, Status: Status{Exit: &Exit{}}}, Seen{Exited: true},
			"with status 0", `off: it ended by itself, and its restart policy is "never"`, "nothing: it is where it should be"},
		{"new", Guest{Spec: Spec{Power: On}}, Seen{}, "no host holds it", "running", "place, because a guest needs a host first"},
	} {
		x := Explain(c.g, c.w, now)
		if !strings.Contains(x.Seen, c.seen) || !strings.Contains(x.Wanted, c.wanted) || !strings.Contains(x.Next, c.next) {
			t.Errorf("%s: %+v", c.name, x)
		}
	}
}
