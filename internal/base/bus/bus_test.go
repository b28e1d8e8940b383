package bus

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
)

// drain takes what is in the buffer without waiting.
func drain(ch <-chan int) (all []int) {
	for {
		select {
		case v, open := <-ch:
			if !open {
				return append(all, -1)
			}
			all = append(all, v)
		default:
			return all
		}
	}
}

func TestEveryListenerHearsEverythingFromNowOn(t *testing.T) {
	b := New[int]()
	b.Publish(0) // nobody listens
	first := b.Subscribe(t.Context(), 4)
	b.Publish(1)
	second := b.Subscribe(t.Context(), 4)
	b.Publish(2)
	if got := drain(first); !slices.Equal(got, []int{1, 2}) {
		t.Errorf("first heard %v", got)
	}
	if got := drain(second); !slices.Equal(got, []int{2}) {
		t.Errorf("second heard %v", got)
	}
}

func TestOldestGivesWay(t *testing.T) {
	b := New[int]()
	slow := b.Subscribe(t.Context(), 2)
	least := b.Subscribe(t.Context(), 0)
	for i := range 10 {
		b.Publish(i)
	}
	if got := drain(slow); !slices.Equal(got, []int{8, 9}) {
		t.Errorf("buffer of 2 holds %v", got)
	}
	if got := drain(least); !slices.Equal(got, []int{9}) {
		t.Errorf("the smallest buffer holds %v", got)
	}
}

func TestContextEndsSubscription(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New[int]()
		ctx, cancel := context.WithCancel(t.Context())
		ch := b.Subscribe(ctx, 2)
		b.Publish(1)
		cancel()
		synctest.Wait()
		b.Publish(2)
		if got := drain(ch); !slices.Equal(got, []int{1, -1}) {
			t.Errorf("heard %v, want 1 and the end", got)
		}
		if got := drain(b.Subscribe(ctx, 2)); !slices.Equal(got, []int{-1}) {
			t.Errorf("of a cancelled context: %v, want the end", got)
		}
		if len(b.subs) != 0 {
			t.Errorf("%d subscriptions left", len(b.subs))
		}
	})
}

func TestManyAtOnce(t *testing.T) {
	b := New[int]()
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for i := range 500 {
				b.Publish(i)
			}
		})
		all.Go(func() {
			for range 50 {
				ctx, cancel := context.WithCancel(t.Context())
				ch := b.Subscribe(ctx, 1)
				cancel()
				for range ch { // ends, because the channel is closed
				}
			}
		})
	}
	all.Wait()
}
