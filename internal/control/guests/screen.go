package guests

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"lodge/internal/base/errs"
	"lodge/internal/engine"
	"lodge/internal/model/guest"
)

// screen connects to a running guest that has a screen.
func (r *Reconciler) screen(ctx context.Context, id string) (engine.Screener, func() error, error) {
	m, g, err := r.live(ctx, id)
	if err != nil {
		return nil, nil, err
	}
	s, ok := m.(engine.Screener)
	if !ok {
		m.Close()
		return nil, nil, cannot(g, "show a screen")
	}
	return s, m.Close, nil
}

// Screenshot writes the screen of a running guest as a PNG file.
func (r *Reconciler) Screenshot(ctx context.Context, id string, w io.Writer) error {
	s, done, err := r.screen(ctx, id)
	if err != nil {
		return err
	}
	defer done()
	return s.Screenshot(ctx, w)
}

// SendKeys presses keys of a running guest: those of one chord together, one
// chord after the other.
func (r *Reconciler) SendKeys(ctx context.Context, id string, chords [][]string) error {
	s, done, err := r.screen(ctx, id)
	if err != nil {
		return err
	}
	defer done()
	for _, keys := range chords {
		if err := s.SendKeys(ctx, keys); err != nil {
			return err
		}
	}
	return nil
}

// Display connects to the screen of a running guest by the RFB protocol.
func (r *Reconciler) Display(ctx context.Context, id string) (io.ReadWriteCloser, error) {
	s, done, err := r.screen(ctx, id)
	if err != nil {
		return nil, err
	}
	defer done()
	return s.Display(ctx)
}

// Debug does to a guest that hangs what its engine offers, and writes what it
// finds.
func (r *Reconciler) Debug(ctx context.Context, id, what string, w io.Writer) error {
	m, g, err := r.live(ctx, id)
	if err != nil {
		return err
	}
	defer m.Close()
	_, info, err := r.engine(ctx, g)
	if err != nil {
		return err
	}
	d, ok := m.(engine.Debugger)
	if !ok {
		return cannot(g, "look into it")
	}
	if !slices.Contains(info.Debugs, what) {
		return errs.Bad("what", fmt.Sprintf("engine %s knows no %q", info.Name, what), "use one of: "+strings.Join(info.Debugs, ", "))
	}
	return d.Debug(ctx, what, w)
}

// Explain says where a guest is, where it should be, and what comes next. It
// looks without a mark left: how a run ended is the reconciler's to record.
func (r *Reconciler) Explain(ctx context.Context, id string) (guest.Explanation, error) {
	g, err := r.Guest(id)
	if err != nil {
		return guest.Explanation{}, err
	}
	var seen guest.Seen
	r.mu.Lock()
	_, seen.Attached = r.attached[g.ID]
	r.mu.Unlock()
	if seen.Alive = r.alive(id); !seen.Alive {
		r.recorded(ctx, g, &seen)
		return guest.Explain(g, seen, r.Now()), nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	p, err := r.glance(ctx, id)
	seen.Frozen = p.Paused
	x := guest.Explain(g, seen, r.Now())
	if err != nil {
		x.Seen += "; it does not answer: " + err.Error()
	}
	return x, nil
}

func (r *Reconciler) glance(ctx context.Context, id string) (engine.Probe, error) {
	m, _, err := r.live(ctx, id)
	if err != nil {
		return engine.Probe{}, err
	}
	defer m.Close()
	return m.Probe(ctx)
}
