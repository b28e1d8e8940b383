// Package storagetest is the one suite that every storage driver passes.
package storagetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
	"lodge/internal/base/ids"
	"lodge/internal/model/pool"
	"lodge/internal/storage"
)

// Case is a driver and how its pools are made in a test.
type Case struct {
	Driver storage.Driver
	Spec   pool.Spec
	Dir    string // the pool's own place; made and removed by the suite's caller
}

// quotaTeller is what both drivers have beside the contract, for tests.
type quotaTeller interface {
	QuotaOf(volume string) (uint64, error)
}

// NeedRoot skips the test unless it runs as root.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts and ioctls")
	}
}

// Open opens the pool and destroys it, with all its volumes, after the test.
func Open(t testing.TB, c Case) storage.Pool {
	t.Helper()
	if m := c.Driver.Info().Missing; m != "" {
		t.Skip("the driver cannot work here: " + m)
	}
	p, err := c.Driver.Open(t.Context(), "test", c.Spec, c.Dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { Clear(t, p) })
	return p
}

// Clear removes all volumes and the pool.
func Clear(t testing.TB, p storage.Pool) {
	ctx := context.Background()
	names, _ := p.Volumes(ctx)
	for _, n := range names {
		if err := p.Remove(ctx, n); err != nil {
			t.Error(err)
		}
	}
	if err := p.Destroy(ctx); err != nil {
		t.Error(err)
	}
}

// Run runs the suite, each part with a pool of its own made by fresh.
func Run(t *testing.T, fresh func(t testing.TB) Case) {
	NeedRoot(t)
	for name, part := range map[string]func(*testing.T, Case){
		"volumes":     volumes,
		"quota":       quota,
		"dead guest":  deadGuest,
		"crash":       crash,
		"destroy":     destroy,
		"concurrency": concurrency,
		"names":       names,
		"space":       space,
		"snapshots":   snapshots,
		"clones":      clones,
		"rewriting":   rewriting,
		"cut off":     cutOff,
	} {
		t.Run(name, func(t *testing.T) { part(t, fresh(t)) })
	}
}

func volumes(t *testing.T, c Case) {
	p, ctx := Open(t, c), t.Context()
	id := ids.New()
	defer syscall.Umask(syscall.Umask(0o077)) // must not matter
	for range 2 {
		must(t, p.Create(ctx, id, 0))
	}
	for name, mode := range map[string]os.FileMode{"": 0o700, "upper": 0o755, "work": 0o700} {
		st, err := os.Stat(filepath.Join(p.Path(id), name))
		must(t, err)
		if st.Mode().Perm() != mode {
			t.Errorf("%q has mode %v, want %v", name, st.Mode().Perm(), mode)
		}
	}
	must(t, os.WriteFile(filepath.Join(p.Path(id), "upper", "kept"), []byte("x"), 0o644))
	must(t, p.Create(ctx, id, 1<<30))
	if _, err := os.Stat(filepath.Join(p.Path(id), "upper", "kept")); err != nil {
		t.Errorf("creating again lost what was there: %v", err)
	}
	wantVolumes(t, p, id)
	for range 2 {
		must(t, p.Remove(ctx, id))
	}
	wantVolumes(t, p)
	if _, err := os.Stat(p.Path(id)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the volume is still there: %v", err)
	}
	if _, err := p.Usage(ctx, id); !errs.Is(err, errs.NotFound) {
		t.Errorf("usage of a removed volume: %v, want not-found", err)
	}
	if err := p.SetQuota(ctx, id, 1<<20); !errs.Is(err, errs.NotFound) {
		t.Errorf("quota of a removed volume: %v, want not-found", err)
	}
}

func quota(t *testing.T, c Case) {
	p, ctx := Open(t, c), t.Context()
	id, limit := ids.New(), uint64(20<<20)
	must(t, p.Create(ctx, id, limit))
	wantQuota(t, p, id, limit)
	wrote, err := fill(filepath.Join(p.Path(id), "upper", "big"), 30<<20)
	if c.Driver.Info().Quota {
		if !errors.Is(err, unix.EDQUOT) || wrote > limit {
			t.Errorf("wrote %d of a quota of %d: %v, want EDQUOT", wrote, limit, err)
		}
		must(t, p.SetQuota(ctx, id, 0))
		wantQuota(t, p, id, 0)
		wrote, err = fill(filepath.Join(p.Path(id), "upper", "big"), 30<<20)
	}
	if err != nil || wrote != 30<<20 {
		t.Fatalf("wrote %d without a limit that is enforced: %v", wrote, err)
	}
	fd := openDir(t, p.Path(id))
	must(t, unix.Syncfs(fd)) // btrfs counts when it commits
	unix.Close(fd)
	used, err := p.Usage(ctx, id)
	must(t, err)
	if used < 30<<20 || used > 32<<20 {
		t.Errorf("usage is %d after writing 30 MiB", used)
	}
	other := ids.New()
	must(t, p.Create(ctx, other, 0))
	if used, err := p.Usage(ctx, other); err != nil || used > 1<<20 {
		t.Errorf("usage of an empty volume is %d, %v", used, err)
	}
}

// deadGuest leaves in a volume what a killed overlay and a hostile guest do.
func deadGuest(t *testing.T, c Case) {
	p, ctx := Open(t, c), t.Context()
	id := ids.New()
	must(t, p.Create(ctx, id, 0))
	must(t, os.Mkdir(filepath.Join(p.Path(id), "work", "work"), 0))
	must(t, os.Chown(filepath.Join(p.Path(id), "work", "work"), 1234, 1234))
	outside := filepath.Join(t.TempDir(), "outside")
	must(t, os.WriteFile(outside, []byte("x"), 0o600))
	must(t, os.Symlink(filepath.Dir(outside), filepath.Join(p.Path(id), "upper", "link")))
	deep := openDir(t, filepath.Join(p.Path(id), "upper"))
	for range 1000 { // deeper than any path may be long
		must(t, unix.Mkdirat(deep, "0123456789", 0o700))
		next, err := unix.Openat(deep, "0123456789", unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		must(t, err)
		unix.Close(deep)
		deep = next
	}
	unix.Close(deep)
	if _, err := p.Usage(ctx, id); err != nil {
		t.Error(err)
	}
	must(t, p.Remove(ctx, id))
	must(t, p.Close())
	p = reopen(t, c)
	must(t, p.Destroy(ctx)) // empties the trash, or fails
	if _, err := os.Stat(outside); err != nil {
		t.Errorf("a guest's link was followed: %v", err)
	}
}

// crash forgets a pool without closing it, as kill -9 does.
func crash(t *testing.T, c Case) {
	p, ctx := Open(t, c), t.Context()
	kept, gone := ids.New(), ids.New()
	must(t, p.Create(ctx, kept, 1<<28))
	must(t, p.Create(ctx, gone, 1<<28))
	file, err := os.Create(filepath.Join(p.Path(kept), "upper", "open"))
	must(t, err)
	defer file.Close()
	must(t, p.Remove(ctx, gone))
	again := reopen(t, c)
	wantVolumes(t, again, kept)
	wantQuota(t, again, kept, 1<<28)
	if again.Path(kept) != p.Path(kept) {
		t.Errorf("the volume moved from %s to %s", p.Path(kept), again.Path(kept))
	}
	if _, err := file.WriteString("still the same file system"); err != nil {
		t.Error(err)
	}
	text, err := os.ReadFile(filepath.Join(again.Path(kept), "upper", "open"))
	if err != nil || len(text) == 0 {
		t.Errorf("what was written through the old pool is not in the new one: %q, %v", text, err)
	}
	must(t, p.Close())
	must(t, again.Close())
}

func destroy(t *testing.T, c Case) {
	p, ctx := Open(t, c), t.Context()
	id := ids.New()
	must(t, p.Create(ctx, id, 0))
	if err := p.Destroy(ctx); !errs.Is(err, errs.Conflict) || !strings.Contains(err.Error(), id) {
		t.Errorf("destroying a pool in use: %v, want a conflict that names %s", err, id)
	}
	wantVolumes(t, p, id)
	must(t, p.Remove(ctx, id))
	for range 2 {
		must(t, p.Destroy(ctx))
	}
	if _, err := os.Stat(filepath.Dir(p.Path(id))); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the pool is still there: %v", err)
	}
	again := reopen(t, c)
	wantVolumes(t, again)
}

func concurrency(t *testing.T, c Case) {
	p, ctx := Open(t, c), t.Context()
	shared := ids.New()
	var wg sync.WaitGroup
	for range 20 {
		id := ids.New()
		wg.Go(func() {
			err := errors.Join(p.Create(ctx, shared, 1<<30), p.Create(ctx, id, 1<<30), p.SetQuota(ctx, id, 1<<29))
			_, uerr := p.Usage(ctx, id)
			if err := errors.Join(err, uerr, p.Remove(ctx, id)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	wantVolumes(t, p, shared)
	pools := make([]storage.Pool, 4)
	for i := range pools {
		wg.Go(func() {
			var err error
			if pools[i], err = c.Driver.Open(ctx, "test", c.Spec, c.Dir); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, again := range pools {
		if again != nil {
			wantVolumes(t, again, shared)
			must(t, again.Close())
		}
	}
}

func names(t *testing.T, c Case) {
	p, ctx := Open(t, c), t.Context()
	for _, bad := range []string{"", ".", "..", "../x", "a/b", "/etc", "a\x00b", "-x", strings.Repeat("a", 65)} {
		_, uerr := p.Usage(ctx, bad)
		for _, err := range []error{p.Create(ctx, bad, 0), p.Remove(ctx, bad), p.SetQuota(ctx, bad, 1), uerr} {
			if !errs.Is(err, errs.Invalid) {
				t.Errorf("volume %q: %v, want invalid", bad, err)
			}
		}
	}
	wantVolumes(t, p)
}

func space(t *testing.T, c Case) {
	p := Open(t, c)
	s, err := p.Space(t.Context())
	must(t, err)
	if s.Total == 0 || s.Used > s.Total || s.Free > s.Total || s.Free == 0 {
		t.Errorf("implausible space: %+v", s)
	}
	if p.Quota() == "" {
		t.Error("the pool does not say how quotas are kept")
	}
}

// Bench measures Create and Remove.
func Bench(b *testing.B, c Case) {
	NeedRoot(b)
	p, ctx := Open(b, c), context.Background()
	var made, removed []time.Duration
	for b.Loop() {
		id := ids.New()
		start := time.Now()
		if err := p.Create(ctx, id, 10<<30); err != nil {
			b.Fatal(err)
		}
		made = append(made, time.Since(start))
		if err := os.WriteFile(filepath.Join(p.Path(id), "upper", "f"), []byte("x"), 0o644); err != nil {
			b.Fatal(err)
		}
		start = time.Now()
		if err := p.Remove(ctx, id); err != nil {
			b.Fatal(err)
		}
		removed = append(removed, time.Since(start))
	}
	for name, d := range map[string][]time.Duration{"create": made, "remove": removed} {
		slices.Sort(d)
		b.ReportMetric(float64(d[len(d)/2].Microseconds()), name+"-p50-µs")
		b.ReportMetric(float64(d[len(d)*99/100].Microseconds()), name+"-p99-µs")
	}
}

func reopen(t *testing.T, c Case) storage.Pool {
	t.Helper()
	p, err := c.Driver.Open(t.Context(), "test", c.Spec, c.Dir)
	must(t, err)
	t.Cleanup(func() { Clear(t, p) })
	return p
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func openDir(t *testing.T, path string) int {
	t.Helper()
	fd, err := unix.Open(path, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	return fd
}

func wantVolumes(t *testing.T, p storage.Pool, want ...string) {
	t.Helper()
	got, err := p.Volumes(context.Background())
	must(t, err)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("volumes are %v, want %v", got, want)
	}
}

func wantQuota(t *testing.T, p storage.Pool, volume string, want uint64) {
	t.Helper()
	got, err := p.(quotaTeller).QuotaOf(volume)
	if err != nil || got != want {
		t.Errorf("the quota of %s is %d (%v), want %d", volume, got, err, want)
	}
}

// fill writes up to n bytes and forces them to disk; it returns how many fit.
func fill(path string, n uint64) (wrote uint64, err error) {
	f, err := os.Create(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	block := bytes.Repeat([]byte("lodge!\n\n"), 1<<17) // 1 MiB
	for wrote < n {
		k, err := f.Write(block)
		wrote += uint64(k)
		if err != nil {
			return wrote, fmt.Errorf("after %d bytes: %w", wrote, err)
		}
	}
	return wrote, f.Sync()
}
