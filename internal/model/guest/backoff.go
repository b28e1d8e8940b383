package guest

import "time"

// The restart policy waits FirstBackoff after the first end and twice as long
// after each further one, up to MaxBackoff. A run of SettledAfter or more is a
// new beginning. (The same schedule as Docker's, but for the cap of one minute.)
const (
	FirstBackoff = 100 * time.Millisecond
	MaxBackoff   = time.Minute
	SettledAfter = 10 * time.Second
)

// Backoff returns how long the restart policy waits after a run that lasted
// ran and that was the restarts-th restart in a row, and how many restarts in a
// row there have been from now on.
func Backoff(restarts int, ran time.Duration) (wait time.Duration, again int) {
	if ran >= SettledAfter {
		restarts = 0
	}
	wait = FirstBackoff
	for range min(restarts, 16) {
		wait = min(2*wait, MaxBackoff)
	}
	return wait, restarts + 1
}

// Defaults of what a spec leaves at zero.
const (
	DefaultProcesses   = 4096
	DefaultCPUWeight   = 100
	DefaultStopTimeout = 30 // seconds
)
