package store

import (
	"context"
	"iter"
	"sort"
	"sync"
)

// memoryHistory is how many revisions a memory store can be asked to go back.
const memoryHistory = 10_000

// memory is a kv that lives as long as the process.
type memory struct {
	mu        sync.Mutex
	rev       Rev
	entries   map[string]entry
	history   []batch
	compacted Rev           // history holds every batch after it
	changed   chan struct{} // closed and replaced by each commit
}

func newMemory() *memory {
	// Revision 1 is the empty store, as etcd has it, so that 0 stays free to
	// mean "no revision".
	return &memory{rev: 1, compacted: 1, entries: map[string]entry{}, changed: make(chan struct{})}
}

func (m *memory) load(context.Context) ([]entry, Rev, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make([]entry, 0, len(m.entries))
	for _, e := range m.entries {
		all = append(all, e)
	}
	return all, m.rev, nil
}

func (m *memory) commit(ctx context.Context, checks []check, ops []op) (Rev, []failure, error) {
	if err := ctx.Err(); err != nil {
		return 0, nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var failed []failure
	for _, c := range checks {
		if found := m.entries[c.key].rev; !c.holds(found) {
			failed = append(failed, failure{check: c, found: found})
		}
	}
	if failed != nil {
		return 0, failed, nil
	}
	m.rev++
	b := batch{rev: m.rev}
	for _, o := range ops {
		old := m.entries[o.key]
		if o.delete {
			if old.rev == 0 {
				continue
			}
			delete(m.entries, o.key)
		} else {
			m.entries[o.key] = entry{key: o.key, value: o.value, rev: m.rev}
		}
		b.updates = append(b.updates, update{key: o.key, value: o.value, prev: old.value, deleted: o.delete})
	}
	m.history = append(m.history, b)
	if len(m.history) > 2*memoryHistory {
		m.trim(m.rev - memoryHistory)
	}
	close(m.changed)
	m.changed = make(chan struct{})
	return m.rev, nil, nil
}

// compact forgets how the store came to be as it was at rev.
func (m *memory) compact(rev Rev) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.trim(rev)
}

func (m *memory) trim(rev Rev) {
	n := sort.Search(len(m.history), func(i int) bool { return m.history[i].rev > rev })
	m.history = append([]batch(nil), m.history[n:]...)
	m.compacted = max(m.compacted, rev)
}

// after returns the batches after rev and what closes when there are more.
func (m *memory) after(rev Rev) ([]batch, <-chan struct{}, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if rev < m.compacted {
		return nil, nil, errCompacted
	}
	n := sort.Search(len(m.history), func(i int) bool { return m.history[i].rev > rev })
	return m.history[n:len(m.history):len(m.history)], m.changed, nil
}

func (m *memory) watch(ctx context.Context, after Rev, _ bool) iter.Seq2[batch, error] {
	return func(yield func(batch, error) bool) {
		for {
			batches, changed, err := m.after(after)
			if err != nil {
				yield(batch{}, err)
				return
			}
			for _, b := range batches {
				if ctx.Err() != nil || !yield(b, nil) {
					return
				}
				after = b.rev
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}
}

func (m *memory) close() error { return nil }
