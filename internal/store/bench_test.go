package store

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// openBench opens a store with n records in it.
func openBench(b *testing.B, p place, n int) (*Store, *things) {
	b.Helper()
	s, err := p.open()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close() })
	table := NewTable[thing, state](s, "thing")
	for i := 0; i < n; {
		tx := s.Begin()
		for range min(1000, n-i) {
			table.CreateIn(tx, fmt.Sprintf("old%06d", i), thing{Size: i})
			i++
		}
		if _, err := tx.Commit(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	return s, table
}

// BenchmarkCommit is one writer making records (a spec and a name each).
func BenchmarkCommit(b *testing.B) {
	for _, back := range backends(b) {
		b.Run(back.name, func(b *testing.B) {
			_, table := openBench(b, back.fresh(), 100)
			took := make([]time.Duration, 0, b.N)
			for i := 0; b.Loop(); i++ {
				began := time.Now()
				if _, err := table.Create(b.Context(), fmt.Sprint("t", i), thing{Size: i}); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(began))
			}
			report(b, took)
		})
	}
}

func report(b *testing.B, took []time.Duration) {
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-us")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-us")
}

// BenchmarkParallel is 16 writers at once.
func BenchmarkParallel(b *testing.B) {
	for _, back := range backends(b) {
		b.Run(back.name, func(b *testing.B) {
			_, table := openBench(b, back.fresh(), 100)
			var left atomic.Int64
			left.Store(int64(b.N))
			var all sync.WaitGroup
			b.ResetTimer()
			for range 16 {
				all.Go(func() {
					for n := left.Add(-1); n >= 0; n = left.Add(-1) {
						if _, err := table.Create(b.Context(), fmt.Sprint("t", n), thing{}); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			all.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "commits/s")
		})
	}
}

// BenchmarkRead is what an answer to a person costs, of 1,000 records.
func BenchmarkRead(b *testing.B) {
	_, table := openBench(b, memoryBackend().fresh(), 1000)
	b.Run("get", func(b *testing.B) {
		for b.Loop() {
			if _, err := table.Get("old000500"); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("list", func(b *testing.B) {
		for b.Loop() {
			if len(table.List()) != 1000 {
				b.Fatal("not all")
			}
		}
	})
}

// BenchmarkEvent is from the start of a write to its event at who follows.
func BenchmarkEvent(b *testing.B) {
	for _, back := range backends(b) {
		b.Run(back.name, func(b *testing.B) {
			s, table := openBench(b, back.fresh(), 100)
			ctx, cancel := context.WithCancel(b.Context())
			defer cancel()
			seen := make(chan time.Time, 1)
			all := s.Events(ctx, 0)
			go func() {
				for range all {
					seen <- time.Now()
				}
			}()
			took := make([]time.Duration, 0, b.N)
			for i := 0; b.Loop(); i++ {
				began := time.Now()
				if _, err := table.Create(b.Context(), fmt.Sprint("t", i), thing{}); err != nil {
					b.Fatal(err)
				}
				took = append(took, (<-seen).Sub(began))
			}
			report(b, took)
		})
	}
}
