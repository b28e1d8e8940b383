package sandbox

import (
	"fmt"
	"os"
	"testing"
)

// Missing skips a test on a machine that lacks what scripts/deps.sh test gives
// it. Where that has run, as scripts/test.sh says, nothing may be missing: the
// test fails there, so that no suite is left out unseen.
func Missing(t testing.TB, what ...any) {
	t.Helper()
	if os.Getenv("LODGE_TEST_COMPLETE") != "" {
		t.Fatal("this machine has been made ready for tests, and yet: ", fmt.Sprint(what...))
	}
	t.Skip(what...)
}
