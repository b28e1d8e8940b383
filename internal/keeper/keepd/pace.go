package keepd

import "time"

// A terminal that floods costs the host processor time that is nobody's: what
// comes faster than flow waits in the terminal, as at the end of a serial line.
// A boot, or a long listing, is let through at once.
const (
	flow  = 32 << 20 // bytes a second
	burst = 4 << 20  // bytes
)

// pace bounds the output of one terminal. The zero value has a burst to spend.
type pace struct {
	spent int // of the burst
	at    time.Time
}

// spend takes note of n bytes that were carried at now.
func (p *pace) spend(n int, now time.Time) {
	p.refill(now)
	p.spent += n
}

// wait returns how long no more is to be carried.
func (p *pace) wait(now time.Time) time.Duration {
	p.refill(now)
	if p.spent < burst {
		return 0
	}
	return time.Duration(p.spent-burst+1) * time.Second / flow
}

func (p *pace) refill(now time.Time) {
	if p.at.IsZero() || now.Sub(p.at) > time.Second {
		p.spent = max(0, p.spent-flow)
	} else if got := int(now.Sub(p.at) * flow / time.Second); got > 0 {
		p.spent = max(0, p.spent-got)
	} else {
		return // less than a byte's worth: it counts later
	}
	p.at = now
}
