package store

import (
	"context"
	"fmt"
	"sort"
	"testing"

	"pgregory.net/rapid"

	"lodge/internal/base/errs"
)

// TestModel does random operations on a store and on a map, and compares.
func TestModel(t *testing.T) {
	for _, b := range backends(t) {
		t.Run(b.name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				m := &modelled{place: b.fresh(), want: map[string]wanted{}}
				m.open(t)
				defer m.close(t)
				t.Repeat(map[string]func(*rapid.T){
					"create": m.create, "update": m.update, "rename": m.rename, "status": m.status,
					"delete": m.delete, "transaction": m.transaction, "reopen": m.reopen, "": m.compare,
				})
			})
		})
	}
}

// wanted is a record as the store should show it.
type wanted struct {
	id         string
	size       int
	phase      string
	generation int64
}

type modelled struct {
	place  place
	s      *Store
	table  *things
	want   map[string]wanted // by name
	events int               // that there should have been since first
	first  Rev
}

func (m *modelled) open(t *rapid.T) {
	s, err := m.place.open()
	if err != nil {
		t.Fatal(err)
	}
	m.s, m.table = s, NewTable[thing, state](s, "thing")
	m.first, m.events = s.Rev(), 0
}

func (m *modelled) close(t *rapid.T) {
	if err := m.s.Close(); err != nil {
		t.Fatal(err)
	}
}

func (m *modelled) reopen(t *rapid.T) {
	m.close(t)
	m.open(t)
}

// names are few, so that operations meet.
func (m *modelled) name(t *rapid.T) string {
	return rapid.SampledFrom([]string{"a", "b", "c/1", "c/2", "d"}).Draw(t, "name")
}

// expect compares the kind of an error with what the model says; ok stands for
// none.
func expect(t *rapid.T, err error, ok bool, kind errs.Kind) {
	if ok != (err == nil) || !ok && !errs.Is(err, kind) {
		t.Fatalf("error %v; want none: %v, else %v", err, ok, kind)
	}
}

func (m *modelled) create(t *rapid.T) {
	name, size := m.name(t), rapid.IntRange(0, 3).Draw(t, "size")
	_, taken := m.want[name]
	r, err := m.table.Create(context.Background(), name, thing{Size: size})
	expect(t, err, !taken, errs.Exists)
	if err == nil {
		m.want[name] = wanted{id: r.ID, size: size, generation: 1}
		m.events++
	}
}

func (m *modelled) update(t *rapid.T) {
	name, size := m.name(t), rapid.IntRange(0, 3).Draw(t, "size")
	w, there := m.want[name]
	_, err := m.table.Update(context.Background(), name, func(r *Record[thing, state]) error { r.Spec.Size = size; return nil })
	expect(t, err, there, errs.NotFound)
	if there && w.size != size {
		w.size, w.generation = size, w.generation+1
		m.want[name] = w
		m.events++
	}
}

func (m *modelled) rename(t *rapid.T) {
	from, to := m.name(t), m.name(t)
	w, there := m.want[from]
	_, taken := m.want[to]
	_, err := m.table.Update(context.Background(), from, func(r *Record[thing, state]) error { r.Name = to; return nil })
	switch {
	case !there:
		expect(t, err, false, errs.NotFound)
	case from == to:
		expect(t, err, true, 0)
	default:
		expect(t, err, !taken, errs.Exists)
		if !taken {
			delete(m.want, from)
			m.want[to] = w
			m.events++
		}
	}
}

func (m *modelled) status(t *rapid.T) {
	name, phase := m.name(t), rapid.SampledFrom([]string{"up", "down"}).Draw(t, "phase")
	w, there := m.want[name]
	id := w.id
	if !there {
		id = "nobody"
	}
	_, err := m.table.SetStatus(context.Background(), id, func(s *state) error { s.Phase = phase; return nil })
	expect(t, err, there, errs.NotFound)
	if there && w.phase != phase {
		w.phase = phase
		m.want[name] = w
		m.events++
	}
}

func (m *modelled) delete(t *rapid.T) {
	name := m.name(t)
	w, there := m.want[name]
	if err := m.table.Delete(context.Background(), w.id); err != nil {
		t.Fatal(err)
	}
	if there {
		delete(m.want, name)
		m.events++
	}
}

// transaction makes two records at once, or neither.
func (m *modelled) transaction(t *rapid.T) {
	one, two := m.name(t), m.name(t)
	_, taken1 := m.want[one]
	_, taken2 := m.want[two]
	tx := m.s.Begin()
	r1 := m.table.CreateIn(tx, one, thing{Size: 1})
	r2 := m.table.CreateIn(tx, two, thing{Size: 2})
	_, err := tx.Commit(context.Background())
	expect(t, err, one != two && !taken1 && !taken2, errs.Exists)
	if err == nil {
		m.want[one] = wanted{id: r1.ID, size: 1, generation: 1}
		m.want[two] = wanted{id: r2.ID, size: 2, generation: 1}
		m.events += 2
	}
}

func (m *modelled) compare(t *rapid.T) {
	got := map[string]wanted{}
	list := m.table.List()
	for _, r := range list {
		got[r.Name] = wanted{id: r.ID, size: r.Spec.Size, phase: r.Status.Phase, generation: r.Generation}
		if byName, err := m.table.Get(r.Name); err != nil || byName.ID != r.ID {
			t.Fatalf("by name %q: %+v, %v", r.Name, byName, err)
		}
	}
	if a, b := fmt.Sprint(got), fmt.Sprint(m.want); a != b {
		t.Fatalf("store\n%s\nmodel\n%s", a, b)
	}
	if len(list) != m.table.Len() || !sort.SliceIsSorted(list, func(i, j int) bool { return list[i].Name < list[j].Name }) {
		t.Fatalf("list %+v", list)
	}
	m.s.mu.RLock()
	defer m.s.mu.RUnlock()
	if events, ok := m.s.log.after(m.first); !ok || len(events) != m.events {
		t.Fatalf("%d events, want %d", len(events), m.events)
	}
}
