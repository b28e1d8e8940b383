package dial

import (
	"strings"
	"testing"

	"lodge/internal/agent"
	"lodge/internal/agent/inside"
	"lodge/internal/base/session"
)

// TestAlike: where that is wanted programs lie where they lay before, and so do
// theirs; elsewhere, and for the agent itself, the kernel decides.
func TestAlike(t *testing.T) {
	for _, alike := range []bool{false, true, false} {
		host, guest := pair(t)
		a := inside.New(agent.Config{ID: "one", Alike: alike})
		go a.Converse(guest, false)
		l := Open(host, Options{})
		t.Cleanup(func() { l.Close() })
		places := map[string]bool{}
		for range 3 {
			code, out, errOut, err := outcome(t, l, session.Request{Argv: []string{"sh", "-c", "grep -F '[stack]' /proc/self/maps"}}, nil)
			if err != nil || code != 0 {
				t.Fatalf("%d %q %v", code, errOut, err)
			}
			end, _, _ := strings.Cut(out, " ")
			places[end] = true
		}
		if same := len(places) == 1; same != alike {
			t.Errorf("asked for alike: %v, the stacks lie at %v", alike, places)
		}
	}
}
