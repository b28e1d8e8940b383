// Package pace bounds how fast somebody may be made to work by one who is not
// trusted.
package pace

import "time"

// Pace makes who spends more than was earned wait. It is for one at a time.
type Pace struct {
	rate, burst float64
	left        float64
	last        time.Time
}

// New returns a pace that earns rate in a second and keeps at most burst, which
// it has at the beginning.
func New(rate, burst float64) *Pace {
	return &Pace{rate: rate, burst: burst, left: burst, last: time.Now()}
}

// Set changes the rate, of which a second's worth is kept at most.
func (p *Pace) Set(rate float64) {
	p.earn()
	p.rate, p.burst, p.left = rate, rate, min(p.left, rate)
}

func (p *Pace) earn() {
	now := time.Now()
	p.left = min(p.burst, p.left+now.Sub(p.last).Seconds()*p.rate)
	p.last = now
}

// Spend takes n, and returns once it was earned.
func (p *Pace) Spend(n int) {
	if p.left -= float64(n); p.left > 0 {
		return
	}
	if p.earn(); p.left < 0 {
		time.Sleep(time.Duration(-p.left / p.rate * float64(time.Second)))
	}
}
