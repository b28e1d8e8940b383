package storagetest

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
	"lodge/internal/base/ids"
	"lodge/internal/base/trees/treestest"
	"lodge/internal/storage"
)

func put(t *testing.T, p storage.Pool, volume, text string) {
	t.Helper()
	must(t, os.WriteFile(filepath.Join(p.Path(volume), "upper", "f"), []byte(text), 0o640))
}

func wantText(t *testing.T, dir, want string) {
	t.Helper()
	got, err := os.ReadFile(filepath.Join(dir, "upper", "f"))
	if err != nil || string(got) != want {
		t.Errorf("%s holds %q (%v), want %q", dir, got, err, want)
	}
}

func wantSnapshots(t *testing.T, p storage.Pool, volume string, want ...string) {
	t.Helper()
	got, err := p.Snapshots(t.Context(), volume)
	must(t, err)
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("snapshots are %v, want %v", got, want)
	}
}

func snapshots(t *testing.T, c Case) {
	p, ctx := Open(t, c), t.Context()
	id, limit := ids.New(), uint64(64<<20)
	must(t, p.Create(ctx, id, limit))
	wantSnapshots(t, p, id)
	treestest.Odd(t, filepath.Join(p.Path(id), "upper"), 50, 1<<20)
	put(t, p, id, "first")
	want := treestest.Manifest(t, filepath.Join(p.Path(id), "upper"))
	for range 2 {
		must(t, p.Snapshot(ctx, id, "one"))
	}
	put(t, p, id, "second")
	must(t, p.Snapshot(ctx, id, "two"))
	put(t, p, id, "third")
	must(t, os.Remove(filepath.Join(p.Path(id), "upper", "odd", "suid")))
	wantSnapshots(t, p, id, "one", "two")
	wantText(t, p.SnapshotPath(id, "one"), "first")
	wantText(t, p.SnapshotPath(id, "two"), "second")

	for range 2 {
		must(t, p.Restore(ctx, id, "one"))
		treestest.Same(t, treestest.Manifest(t, filepath.Join(p.Path(id), "upper")), want)
	}
	wantQuota(t, p, id, limit)
	put(t, p, id, "fourth")
	wantText(t, p.SnapshotPath(id, "one"), "first")
	must(t, p.Restore(ctx, id, "two"))
	wantText(t, p.Path(id), "second")
	wantVolumes(t, p, id)

	for range 2 {
		must(t, p.RemoveSnapshot(ctx, id, "one"))
	}
	wantSnapshots(t, p, id, "two")
	for err, what := range map[error]string{
		p.Restore(ctx, id, "one"): "restoring what was removed", p.Snapshot(ctx, ids.New(), "x"): "a snapshot of no volume",
		p.Restore(ctx, ids.New(), "two"): "restoring no volume",
	} {
		if !errs.Is(err, errs.NotFound) {
			t.Errorf("%s: %v, want not-found", what, err)
		}
	}
	wantText(t, p.Path(id), "second")
	for _, bad := range []string{"", "..", "a/b", "-x"} {
		for _, err := range []error{p.Snapshot(ctx, id, bad), p.Restore(ctx, id, bad), p.RemoveSnapshot(ctx, id, bad), p.Snapshot(ctx, bad, "x"), p.Clone(ctx, id, "", bad)} {
			if !errs.Is(err, errs.Invalid) {
				t.Errorf("name %q: %v, want invalid", bad, err)
			}
		}
	}
	must(t, p.Remove(ctx, id))
	wantSnapshots(t, p, id)
	if _, err := os.Stat(p.SnapshotPath(id, "two")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a snapshot outlived its volume: %v", err)
	}
}

func clones(t *testing.T, c Case) {
	p, ctx := Open(t, c), t.Context()
	from, to, old := ids.New(), ids.New(), ids.New()
	must(t, p.Create(ctx, from, 64<<20))
	put(t, p, from, "then")
	must(t, p.Snapshot(ctx, from, "s"))
	put(t, p, from, "now")
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if err := p.Clone(ctx, from, "", to); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	must(t, p.Clone(ctx, from, "s", old))
	wantText(t, p.Path(to), "now")
	wantText(t, p.Path(old), "then")
	must(t, p.Create(ctx, to, 32<<20))
	wantQuota(t, p, to, 32<<20)
	put(t, p, to, "own")
	wantText(t, p.Path(from), "now")
	must(t, p.Clone(ctx, from, "", to))
	wantText(t, p.Path(to), "own")
	wantSnapshots(t, p, to)
	must(t, p.Remove(ctx, from))
	wantText(t, p.Path(to), "own")
	wantText(t, p.Path(old), "then")
	if err := p.Clone(ctx, from, "", ids.New()); !errs.Is(err, errs.NotFound) {
		t.Errorf("a clone of no volume: %v, want not-found", err)
	}
	wantVolumes(t, p, to, old)
}

// rewriting fills a volume, and then writes all of it anew while a snapshot
// holds what was there: a quota must not stand in the way, and must be back
// when the snapshot is gone.
func rewriting(t *testing.T, c Case) {
	p, ctx := Open(t, c), t.Context()
	id, limit, most := ids.New(), uint64(40<<20), uint64(30<<20)
	must(t, p.Create(ctx, id, limit))
	big := filepath.Join(p.Path(id), "upper", "big")
	rewrite := func(with byte) (wrote int, err error) {
		f, err := os.OpenFile(big, os.O_WRONLY|os.O_CREATE, 0o600)
		must(t, err)
		defer f.Close()
		for block := bytes.Repeat([]byte{with}, 1<<20); wrote < int(most) && err == nil; {
			var n int
			n, err = f.Write(block)
			wrote += n
		}
		return wrote, errors.Join(err, f.Sync())
	}
	for i, name := range []string{"a", "b", "c"} {
		if n, err := rewrite(byte(i)); err != nil {
			t.Fatalf("round %d: wrote %d: %v", i, n, err)
		}
		must(t, p.Snapshot(ctx, id, name))
		wantQuota(t, p, id, limit)
	}
	if n, err := rewrite(9); err != nil {
		t.Fatalf("wrote %d: %v", n, err)
	}
	for _, name := range []string{"b", "a", "c"} {
		must(t, p.RemoveSnapshot(ctx, id, name))
	}
	wantQuota(t, p, id, limit)
	must(t, p.Snapshot(ctx, id, "d"))
	must(t, p.Restore(ctx, id, "d"))
	wantQuota(t, p, id, limit)
	if n, err := rewrite(7); err != nil {
		t.Fatalf("after the restore: wrote %d: %v", n, err)
	}
}

// cutOff leaves a copy half-made, as a daemon that was killed does: the next one
// sweeps it, but not one that somebody still makes.
func cutOff(t *testing.T, c Case) {
	p, ctx := Open(t, c), t.Context()
	id := ids.New()
	must(t, p.Create(ctx, id, 0))
	put(t, p, id, "x")
	in := storage.Incoming(filepath.Join(filepath.Dir(filepath.Dir(p.Path(id))), "incoming"))
	dead, lock, err := in.New()
	must(t, err)
	must(t, os.MkdirAll(filepath.Join(dead, "upper"), 0o700))
	must(t, lock.Close())
	alive, lock, err := in.New()
	must(t, err)
	defer lock.Close()
	must(t, os.MkdirAll(alive, 0o700))
	again := reopen(t, c)
	if _, err := os.Stat(dead); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("half a copy is still there: %v", err)
	}
	if _, err := os.Stat(alive); err != nil {
		t.Errorf("a copy that is being made was swept: %v", err)
	}
	must(t, in.Done(alive, lock, os.RemoveAll))
	must(t, again.Snapshot(ctx, id, "s"))
	left, err := os.ReadDir(string(in))
	if err != nil || len(left) != 0 {
		t.Errorf("left: %v %v", left, err)
	}
	fd := openDir(t, again.Path(id))
	must(t, unix.Syncfs(fd))
	unix.Close(fd)
}
