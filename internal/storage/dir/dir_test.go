package dir

import (
	"log/slog"
	"testing"

	"lodge/internal/model/pool"
	"lodge/internal/storage/storagetest"
)

func newCase(t testing.TB) storagetest.Case {
	return storagetest.Case{Driver: New(slog.New(slog.DiscardHandler)), Dir: t.TempDir() + "/pool"}
}

func TestSuite(t *testing.T) { storagetest.Run(t, newCase) }

func TestSuiteOnASource(t *testing.T) {
	storagetest.Run(t, func(t testing.TB) storagetest.Case {
		c := newCase(t)
		c.Spec = pool.Spec{Source: t.TempDir()}
		return c
	})
}

func BenchmarkVolume(b *testing.B) { storagetest.Bench(b, newCase(b)) }
