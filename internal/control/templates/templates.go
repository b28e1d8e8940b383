// Package templates keeps the memory of freshly booted guests, from which
// others like them start in a moment instead of booting.
//
// A template is a cache: there is no record of it, and what is lost is made
// again. It is made behind the first guest of its kind that booted the ordinary
// way, by booting another that nobody sees, and lies in one folder that is
// there wholly or not at all. Nobody writes to it once it is there: engines map its
// memory for each copy, so that what a copy does not change is in memory once for
// all of them.
package templates

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"lodge/internal/base/cgroup"
	"lodge/internal/engine"
	"lodge/internal/keeper"
	"lodge/internal/model/guest"
)

// Options is what templates are made with.
type Options struct {
	Dir     string // each template gets a folder below it; lasts
	Keepers keeper.Keepers
	Engines engine.Set
	Cgroups *cgroup.Tree
	Volume  func(ctx context.Context, path string, size uint64) error // makes an empty writable layer
	Cards   string                                                    // what the names of network cards on the host begin with: fabric.Cards
	IDBase  uint32                                                    // of a range of ids that no guest has
	Budget  uint64                                                    // bytes of memory that all templates together may take; 0: none are made
	Made    func(g guest.Guest)                                       // told of each one that was made, with what was to be like it; may be nil
	Log     *slog.Logger
}

// Templates finds templates and makes them. Its methods are safe for
// concurrent use.
type Templates struct {
	Options
	jobs chan job

	mu      sync.Mutex
	have    map[string]*template
	wanted  map[string]bool      // queued, or being made
	refused map[string]time.Time // when one could not be made
}

// template is one that is ready.
type template struct {
	key  string
	size uint64    // bytes that its memory and its devices take
	used time.Time // last
}

// job is a template to be made, with what a guest was started with that it is
// to be like.
type job struct {
	key   string
	g     guest.Guest
	parts engine.Parts
}

// queue is how many kinds of guests wait at most for their templates.
const queue = 16

// Open finds the templates that there are and clears away what an earlier
// daemon left half made.
func Open(ctx context.Context, o Options) (*Templates, error) {
	t := &Templates{Options: o, jobs: make(chan job, queue), have: map[string]*template{}, wanted: map[string]bool{}, refused: map[string]time.Time{}}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, err
	}
	if err := t.Sweep(ctx); err != nil {
		return nil, err
	}
	if err := t.scan(ctx); err != nil {
		return nil, err
	}
	t.trim() // the budget may be another than that of the daemon that made them
	return t, nil
}

// scan finds what is whole on disk and removes the rest.
func (t *Templates) scan(ctx context.Context) error {
	entries, err := os.ReadDir(t.Dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		key := e.Name()
		found, err := t.find(key)
		if err == nil && !strings.HasSuffix(key, unfinished) {
			t.have[key] = found
			continue
		}
		t.Log.Info("removing a template that is not whole", "template", key, "error", err)
		if err := os.RemoveAll(t.folder(key)); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// find looks at a template on disk.
func (t *Templates) find(key string) (*template, error) {
	if _, err := os.Stat(t.volume(key)); err != nil {
		return nil, err
	}
	st, err := os.Stat(filepath.Join(t.memory(key), "device"))
	if err != nil {
		return nil, err
	}
	size := uint64(st.Size())
	if allocated, err := allocated(filepath.Join(t.memory(key), ramFile)); err == nil {
		size += allocated
	}
	return &template{key: key, size: size, used: st.ModTime()}, nil
}

func (t *Templates) folder(key string) string { return filepath.Join(t.Dir, key) }
func (t *Templates) memory(key string) string { return filepath.Join(t.Dir, key, "memory") }
func (t *Templates) volume(key string) string {
	return filepath.Join(t.Dir, key, "disk", volumeFile)
}

const (
	unfinished = ".new"
	volumeFile = "root.ext4" // as in a guest's volume
	ramFile    = "ram"       // as engines name it in a memory image
)

// Find returns the folder of a memory image that a guest as g can go on from
// which is about to start for the first time, and of the disk that goes with
// it, or false. info and parts are those of its start.
func (t *Templates) Find(g guest.Guest, info engine.Info, parts engine.Parts) (memory, disk string, ok bool) {
	if !fits(g, info) {
		return "", "", false
	}
	key := keyOf(g, info, parts)
	t.mu.Lock()
	defer t.mu.Unlock()
	have := t.have[key]
	if have == nil {
		return "", "", false
	}
	have.used = time.Now()
	return t.memory(key), filepath.Dir(t.volume(key)), true
}

// Want asks for a template for guests as g, which has booted the ordinary way.
// It returns at once.
func (t *Templates) Want(g guest.Guest, info engine.Info, parts engine.Parts) {
	if !fits(g, info) || t.Budget == 0 || g.Spec.Memory > t.Budget {
		return
	}
	key := keyOf(g, info, parts)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.have[key] != nil || t.wanted[key] || time.Since(t.refused[key]) < againAfter {
		return
	}
	select {
	case t.jobs <- job{key, g, parts}:
		t.wanted[key] = true
	default: // the next guest of its kind asks again
	}
}

// againAfter is how long a template is not tried again that could not be made:
// the host may have been too busy, because ten guests of the kind booted.
const againAfter = 10 * time.Minute

// Run makes the templates that are wanted, one at a time, until ctx ends.
func (t *Templates) Run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case j := <-t.jobs:
			made, err := t.make(ctx, j)
			t.mu.Lock()
			delete(t.wanted, j.key)
			switch {
			case err == nil:
				t.have[j.key] = made
				t.trim()
				t.Log.Info("guests of this kind start warm from now on", "template", j.key, "image", j.g.Spec.Image, "memory", j.g.Spec.Memory)
			case ctx.Err() == nil:
				t.refused[j.key] = time.Now()
				t.Log.Warn("a template could not be made; guests of this kind go on booting, and it is tried again with one that is launched after a while", "template", j.key, "image", j.g.Spec.Image, "error", err)
			}
			t.mu.Unlock()
			if err == nil && t.Made != nil {
				t.Made(j.g)
			}
		}
	}
}

// allocated is how many bytes of a file take space.
func allocated(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, err
	}
	return uint64(st.Blocks) * 512, nil
}

// Size returns how many templates there are and how many bytes they take.
func (t *Templates) Size() (n int, bytes uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, h := range t.have {
		bytes += h.size
	}
	return len(t.have), bytes
}

// trim drops those that were not used for longest until the rest are within the
// budget. Guests that run from one keep what they have of it. Callers hold mu.
func (t *Templates) trim() {
	all := make([]*template, 0, len(t.have))
	for _, h := range t.have {
		all = append(all, h)
	}
	for _, old := range excess(all, t.Budget) {
		t.Log.Info("dropping a template to stay within the budget", "template", old.key)
		delete(t.have, old.key)
		t.drop(old)
	}
}

// excess returns which templates have to go so that the rest take at most
// budget bytes: those that were not used for longest.
func excess(all []*template, budget uint64) []*template {
	slices.SortFunc(all, func(a, b *template) int { return b.used.Compare(a.used) })
	var sum uint64
	for i, h := range all {
		if sum += h.size; sum > budget {
			return all[i:]
		}
	}
	return nil
}

// drop removes a template. What has been cut off is swept by Open.
func (t *Templates) drop(old *template) {
	gone := t.folder(old.key) + unfinished
	for _, err := range []error{os.RemoveAll(gone), os.Rename(t.folder(old.key), gone), os.RemoveAll(gone)} {
		if err != nil {
			t.Log.Warn("a template could not be removed", "template", old.key, "error", err)
		}
	}
}
