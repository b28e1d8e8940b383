package e2e

import (
	"errors"
	"os"
	"strings"
	"testing"

	"lodge/test/sandbox"
)

// TestReleases builds the other releases and variants of Debian and boots each.
func TestReleases(t *testing.T) {
	if os.Getenv("LODGE_TEST_LONG") == "" {
		t.Skip("builds four images; run it with make test-long")
	}
	t.Setenv("http_proxy", sandbox.Proxy(t))
	s := newServer(t)
	for _, c := range []struct{ image, variant, name string }{
		{"debian/13", "standard", "debian/13"},
		{"debian/sid", "standard", "debian/sid"},
		{"debian/13", "minimal", "debian/13-minimal"},
		{"debian/12", "minimal", "debian/12-minimal"},
	} {
		t.Run(strings.ReplaceAll(c.name, "/", "-"), func(t *testing.T) {
			s := *s
			s.t = t
			if r := s.try("image", "build", c.image, "--variant", c.variant); strings.Contains(r.err, "is expired") {
				t.Skipf("the mirror here is a frozen copy whose index for %s has expired:\n%s", c.image, r.err)
			} else if r.code != 0 {
				t.Fatalf("building %s: %s", c.image, r.err)
			}
			s.lodge("launch", c.name, "g")
			defer s.lodge("rm", "-f", "g")
			var state string
			until(t, "the guest's init is done", func() error {
				state = strings.TrimSpace(s.try("exec", "g", "--", "systemctl", "is-system-running").out)
				if state != "running" && state != "degraded" {
					return errors.New(state)
				}
				return nil
			})
			if state != "running" {
				t.Errorf("systemd says %q; failed units:\n%s", state, s.try("exec", "g", "--", "systemctl", "--failed", "--no-legend").out)
			}
		})
	}
}
