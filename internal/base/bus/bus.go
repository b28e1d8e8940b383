// Package bus hands what happens to whoever listens, inside one process.
//
// It is for news that nobody must rely on (progress, usage): a listener that
// cannot keep up loses the oldest news, and a publisher never waits.
package bus

import (
	"context"
	"sync"
)

// Bus carries news of one type to any number of listeners. Make it with New.
type Bus[T any] struct {
	mu   sync.Mutex
	subs map[chan T]struct{}
}

// New returns a bus with no listeners.
func New[T any]() *Bus[T] {
	return &Bus[T]{subs: map[chan T]struct{}{}}
}

// Publish hands v to every present listener and never blocks: where a
// listener's buffer is full, its oldest unread value gives way.
func (b *Bus[T]) Publish(v T) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for ch := range b.subs {
		// Only Publish sends and it holds the lock, so one value taken out is
		// room for one: the second round always succeeds.
		for sent := false; !sent; {
			select {
			case ch <- v:
				sent = true
			default:
				select {
				case <-ch:
				default:
				}
			}
		}
	}
}

// Subscribe returns a channel of everything published from now on, holding up
// to buffer unread values (at least 1). The channel is closed when ctx is done.
func (b *Bus[T]) Subscribe(ctx context.Context, buffer int) <-chan T {
	ch := make(chan T, max(buffer, 1))
	if ctx.Err() != nil {
		close(ch)
		return ch
	}
	b.mu.Lock()
	b.subs[ch] = struct{}{}
	b.mu.Unlock()
	context.AfterFunc(ctx, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.subs, ch)
		close(ch)
	})
	return ch
}
