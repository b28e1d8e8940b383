// Package control holds what its reconcilers share: the open pools and networks
// of this host. A reconciler never calls another; the one that keeps a pool
// open puts its handle here, the one that needs it takes it from here.
package control

import (
	"sync"

	"lodge/internal/base/errs"
	"lodge/internal/model"
)

// Handles are the open things of one kind, by the name of their record.
type Handles[T any] struct {
	kind model.Kind
	mu   sync.RWMutex
	open map[string]T
}

// NewHandles returns an empty set for records of kind.
func NewHandles[T any](kind model.Kind) *Handles[T] {
	return &Handles[T]{kind: kind, open: map[string]T{}}
}

// Get returns the handle of name. While it is not open yet that is errs.Busy:
// whoever waits for it is woken when the record's status changes.
func (h *Handles[T]) Get(name string) (T, error) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	t, ok := h.open[name]
	if !ok {
		return t, &errs.Error{Kind: errs.Busy, Ref: string(h.kind) + "/" + name, Msg: "is not ready yet", Hint: "lodge " + string(h.kind) + " show " + name}
	}
	return t, nil
}

// Put makes t the handle of name.
func (h *Handles[T]) Put(name string, t T) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.open[name] = t
}

// Take removes and returns the handle of name.
func (h *Handles[T]) Take(name string) (T, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	t, ok := h.open[name]
	delete(h.open, name)
	return t, ok
}

// All calls f with every open handle.
func (h *Handles[T]) All(f func(name string, t T)) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	for name, t := range h.open {
		f(name, t)
	}
}
