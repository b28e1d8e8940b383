// Package e2e uses Lodge as a person does: the real programs, real guests, the
// command line. Every test has a daemon and a data directory of its own.
package e2e

import (
	"testing"

	"lodge/test/sandbox"
)

func TestMain(m *testing.M) { sandbox.Main(m) }
