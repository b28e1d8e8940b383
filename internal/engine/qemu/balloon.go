package qemu

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"lodge/internal/base/units"
)

const (
	balloonPath = "/machine/peripheral/balloon"
	// toldEvery is how often a guest tells what it does with its memory.
	toldEvery = 2 * time.Second
	// unknown is how the balloon says that the guest does not say.
	unknown = ^uint64(0)
)

// memoryStats is what a guest's driver of the balloon says of its memory. It may
// say anything.
type memoryStats struct {
	At  int64             `json:"last-update"` // seconds since 1970; 0: nothing was said yet
	All map[string]uint64 `json:"stats"`       // "stat-free-memory", ...
}

// of returns one of the figures, and whether the guest says it.
func (s memoryStats) of(name string) (n uint64, ok bool) {
	n, ok = s.All["stat-"+name]
	if n == unknown {
		return 0, false
	}
	return n, ok
}

// used is what the guest uses of its memory, and how much of that are caches.
func (s memoryStats) used() (used, caches uint64, ok bool) {
	total, ok1 := s.of("total-memory")
	free, ok2 := s.of("free-memory")
	if s.At == 0 || !ok1 || !ok2 || free > total {
		return 0, 0, false
	}
	used = total - free
	caches, _ = s.of("disk-caches")
	return used, min(caches, used), true
}

// listen has the guest's driver say now and then what it does with its memory.
// A guest that has an agent is asked when somebody wants to know.
func (l *link) listen(ctx context.Context) {
	if l.agent != nil {
		return
	}
	if err := l.tellMemory(ctx, toldEvery); err != nil {
		l.e.o.Log.Debug("a guest's balloon is of no use", "guest", l.id, "err", err)
	}
}

func (l *link) tellMemory(ctx context.Context, every time.Duration) error {
	return l.do(ctx, "qom-set", map[string]any{"path": balloonPath, "property": "guest-stats-polling-interval", "value": int(every.Seconds())}, nil)
}

func (l *link) memoryStats(ctx context.Context) (s memoryStats, err error) {
	return s, l.do(ctx, "qom-get", map[string]any{"path": balloonPath, "property": "guest-stats"}, &s)
}

// hearTime is how long a guest with a driver takes to say something at most.
const hearTime = 5 * time.Second

// heard waits until the guest's driver said something of its memory, which it
// does at once; a guest without one never does.
func (l *link) heard(ctx context.Context, since time.Time) (s memoryStats, ok bool, err error) {
	if err := l.tellMemory(ctx, time.Second); err != nil {
		return s, false, err
	}
	defer func() {
		if l.agent != nil {
			err = cmp.Or(err, l.tellMemory(context.WithoutCancel(ctx), 0))
		} else {
			l.listen(context.WithoutCancel(ctx))
		}
	}()
	for until := time.Now().Add(hearTime); ; {
		s, err = l.memoryStats(ctx)
		if err != nil || s.At > 0 && s.At >= since.Unix() {
			return s, err == nil, err
		}
		if time.Now().After(until) {
			return s, false, nil
		}
		select {
		case <-time.After(givePace):
		case <-ctx.Done():
			return s, false, ctx.Err()
		}
	}
}

// tellOfMemory writes all that the guest's driver says of its memory.
func (m *Machine) tellOfMemory(ctx context.Context, w io.Writer) error {
	s, ok, err := m.link.heard(ctx, time.Now().Add(-time.Second))
	if err != nil {
		return m.about(err)
	}
	var b struct {
		Actual uint64 `json:"actual"`
	}
	if err := m.link.do(ctx, "query-balloon", nil, &b); err != nil {
		return m.about(err)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "given\t%s\n", units.Bytes(b.Actual))
	if !ok {
		fmt.Fprintf(t, "the guest says nothing of its memory: it has no driver for a virtio balloon, or boots\n")
	}
	for _, name := range slices.Sorted(maps.Keys(s.All)) {
		n, said := s.of(strings.TrimPrefix(name, "stat-"))
		if !said || !ok {
			continue
		}
		words := strings.ReplaceAll(strings.TrimPrefix(name, "stat-"), "-", " ")
		if isCount(name) {
			fmt.Fprintf(t, "%s\t%d\n", words, n)
		} else {
			fmt.Fprintf(t, "%s\t%s\n", words, units.Bytes(n))
		}
	}
	return t.Flush()
}

// isCount reports whether a figure is a number of events, not of bytes.
func isCount(name string) bool {
	return strings.Contains(name, "fault") || strings.Contains(name, "htlb")
}
