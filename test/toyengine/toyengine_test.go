package toyengine

import (
	"fmt"
	"testing"

	"lodge/internal/base/ids"
	"lodge/internal/engine"
	"lodge/internal/engine/enginetest"
	"lodge/internal/model"
	"lodge/internal/model/guest"
	"lodge/test/sandbox"
)

func TestMain(m *testing.M) { sandbox.Main(m) }

// TestEngine holds the toy to the part of the suite that is about what it can.
func TestEngine(t *testing.T) {
	tree := t.TempDir()
	enginetest.BusyboxTree(t, tree)
	k, kill := enginetest.Keeper(t)
	n := 0
	enginetest.Run(t, enginetest.Harness{
		Engine: Engine{}, Keepers: k, KillKeeper: kill,
		Late: true, // it is chroot that looks for the command
		Guest: func(t *testing.T, spec guest.Spec) (guest.Guest, engine.Parts) {
			n++
			return guest.Guest{Meta: model.Meta{ID: ids.New(), Name: fmt.Sprintf("toy%d", n)}, Spec: spec}, engine.Parts{Dir: t.TempDir(), Root: engine.Root{Lower: tree}}
		},
	})
}
