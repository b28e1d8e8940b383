package dial

import (
	"os"
	"testing"

	"lodge/internal/base/errs"
)

// TestHold has the agent hold memory of this process, less of it, and none.
func TestHold(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("the kernel tells only root where memory is")
	}
	each(t, func(t *testing.T, h *house) {
		page := uint64(os.Getpagesize())
		for _, c := range []struct{ ask, held, offered uint64 }{{3<<20 + 1, 3 << 20, 3 << 20}, {1 << 20, 1 << 20, 0}, {2 << 20, 2 << 20, 1 << 20}, {0, 0, 0}} {
			seen := map[uint32]bool{}
			held, err := h.Hold(patiently(t), c.ask, func(pages []uint32) error {
				for _, p := range pages {
					seen[p] = true
				}
				return nil
			})
			if err != nil || held != c.held || uint64(len(seen))*page != c.offered {
				t.Errorf("asked to hold %d, it holds %d and offered %d pages: %v", c.ask, held, len(seen), err)
			}
		}
		// A host that cannot take them leaves the guest its memory.
		full := &errs.Error{Kind: errs.Internal, Msg: "no"}
		if _, err := h.Hold(patiently(t), 1<<20, func([]uint32) error { return full }); err != full {
			t.Error(err)
		}
		if held, err := h.Hold(patiently(t), 0, nil); held != 0 || err != nil {
			t.Errorf("it holds %d, %v", held, err)
		}
	})
}
