package dial

import (
	"bytes"
	"testing"
)

// FuzzGuard: what the guard lets pass opens no stream, and no frame of it is
// larger than a window, however it is cut into pieces.
func FuzzGuard(f *testing.F) {
	f.Add(frame(0, 0, 1, 4, 1, 2, 3, 4), 3)
	f.Add(frame(1, 4, 1, 0), 1)
	f.Add(frame(1, 1, 2, 0), 12)
	f.Add(frame(0, 0, 1, 1<<20), 5)
	f.Fuzz(func(t *testing.T, b []byte, piece int) {
		if len(b) > 64<<10 {
			return // paced: would take long
		}
		whole := newGuard(nil).look(b)
		g, cut := newGuard(nil), error(nil)
		for rest := b; len(rest) > 0 && cut == nil; {
			n := min(max(piece, 1), len(rest))
			cut = g.look(rest[:n])
			rest = rest[n:]
		}
		if whole != cut {
			t.Errorf("at once %v, in pieces %v", whole, cut)
		}
		if bad := frame(1, 1, 2, 0); whole == nil && newGuard(nil).look(append(bytes.Clone(b), bad...)) == nil && g.body == 0 && g.have == 0 {
			t.Error("a stream that the guest opens passes")
		}
	})
}
