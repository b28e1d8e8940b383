package guest

import "slices"

// MostPins is how many guests are pinned to one processor at most. With more of
// them the scheduler, which moves those that work away from each other, does
// better than any fixed choice.
const MostPins = 32

// Single reports whether a guest has one processor or less, so that it may be
// pinned to one of its host's. All its processes then switch on the spot,
// instead of waking another processor up with each system call.
func (s Spec) Single() bool { return s.CPUs > 0 && s.CPUs <= 1 }

// PickCPU chooses which of the host's processors a guest is pinned to: the one
// with the fewest pinned guests, of several the one it was pinned to last, or
// else the lowest. pins holds the processors of the other guests that run. It
// reports false if there is none to pin it to.
func PickCPU(host []int, pins []int, last *int) (int, bool) {
	if len(host) < 2 {
		return 0, false
	}
	count := map[int]int{}
	for _, p := range pins {
		count[p]++
	}
	best := slices.MinFunc(host, func(a, b int) int {
		switch {
		case count[a] != count[b]:
			return count[a] - count[b]
		case last != nil && *last == a:
			return -1
		case last != nil && *last == b:
			return 1
		}
		return a - b
	})
	return best, count[best] < MostPins
}
