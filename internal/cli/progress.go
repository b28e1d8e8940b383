package cli

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"lodge/api"
	"lodge/internal/base/units"
)

const (
	progressEvery = 100 * time.Millisecond // often enough to look alive
	progressDelay = 300 * time.Millisecond // what is over sooner needs no spinner
	progressLines = 8                      // more would push the past off the screen
)

// progress draws the steps of running work on a terminal's last lines. Steps are
// nested by the work they are part of.
type progress struct {
	streams *Streams
	mu      sync.Mutex
	steps   map[string]api.Progress // by path
	order   []string
	drawn   int // lines on the screen that are ours
	stop    chan struct{}
	stopped chan struct{}
}

func newProgress(s *Streams) *progress {
	p := &progress{streams: s, steps: map[string]api.Progress{}, stop: make(chan struct{}), stopped: make(chan struct{})}
	go p.run()
	return p
}

func (p *progress) run() {
	defer close(p.stopped)
	begun := time.Now()
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for turn := 0; ; turn++ {
		select {
		case <-p.stop:
			p.draw(nil)
			return
		case now := <-tick.C:
			if now.Sub(begun) >= progressDelay {
				p.draw(p.lines(turn, now.Sub(begun)))
			}
		}
	}
}

// close takes the lines off the screen.
func (p *progress) close() {
	close(p.stop)
	<-p.stopped
}

// event takes in one progress event.
func (p *progress) event(e api.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	parts := append(slices.Clone(e.Progress.Parents), e.Kind+"/"+e.Name, e.Progress.Step)
	path := strings.Join(parts, "\x00")
	if _, known := p.steps[path]; !known {
		p.order = append(p.order, path)
	}
	p.steps[path] = *e.Progress
	if e.Progress.Total > 0 && e.Progress.Done >= e.Progress.Total {
		delete(p.steps, path)
		p.order = slices.DeleteFunc(p.order, func(o string) bool { return o == path })
	}
}

func (p *progress) lines(turn int, since time.Duration) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, width := p.streams.Size()
	spin := []rune("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏")
	mark := string(spin[turn%len(spin)])
	if len(p.order) == 0 {
		return []string{fmt.Sprintf("%s working %s", mark, Span(since))}
	}
	var lines []string
	for _, path := range p.order[max(0, len(p.order)-progressLines):] {
		s := p.steps[path]
		indent := strings.Repeat("  ", len(s.Parents))
		lines = append(lines, cut(indent+mark+" "+Step(s), int(width)-1))
	}
	return lines
}

// Step puts how far a step is into words: "unpacking 40% 12MiB/30MiB".
func Step(s api.Progress) string {
	number := func(n uint64) string { return fmt.Sprint(n) }
	if s.Unit == "bytes" {
		number = units.Bytes
	}
	text := s.Step
	switch {
	case s.Total > 0:
		part := min(float64(s.Done)/float64(s.Total), 1)
		const width = 20
		full := int(part * width)
		text += fmt.Sprintf(" %s%s %3.0f%%", strings.Repeat("━", full), strings.Repeat("─", width-full), part*100)
		if s.Unit != "percent" {
			text += fmt.Sprintf(" %s/%s", number(s.Done), number(s.Total))
		}
	case s.Done > 0:
		text += " " + number(s.Done)
	}
	if s.Note != "" {
		text += " " + s.Note
	}
	return strings.Join(strings.Fields(Clean(text)), " ")
}

// cut shortens a line so that it does not wrap.
func cut(s string, width int) string {
	r := []rune(s)
	if len(r) <= width || width < 1 {
		return s
	}
	return string(r[:width-1]) + "…"
}

// draw replaces our lines on the screen.
func (p *progress) draw(lines []string) {
	var b strings.Builder
	if p.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", p.drawn)
	}
	b.WriteString("\r\x1b[J")
	for _, l := range lines {
		b.WriteString(l)
		b.WriteByte('\n')
	}
	if p.drawn > 0 || len(lines) > 0 {
		fmt.Fprint(p.streams.Err, b.String())
	}
	p.drawn = len(lines)
}
