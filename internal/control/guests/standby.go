package guests

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"lodge/internal/base/errs"
	"lodge/internal/base/fsx"
	"lodge/internal/engine"
	"lodge/internal/model/guest"
)

// A standby is a copy of a template that runs already, has settled, and stands
// still until somebody asks for a guest of its kind. It has the id, the slot and
// the volume of the guest that it will be, and no record: that is written by
// whoever wants the guest, under this id. What a first start costs - reading the
// memory, the first run of everything the guest does - is paid before.

// Slots lends the places on this host that guests have ids and devices from.
type Slots interface {
	Claim(id string) (int, error) // for one that has no record yet
	Keep(id string, slot int)     // what an earlier daemon had claimed
	Drop(id string)               // gives it back, unless it is the guest's by now
}

const (
	// standbyFor is how long a standby stays that nobody wants.
	standbyFor = 30 * time.Minute
	// standbyAfter is how long after a guest came from a template, or another was
	// wanted, the next one is made: those that are wanted at once come first.
	standbyAfter = 2 * time.Second
	// standbyTaken is how long a standby may have been given away before there is
	// a record for it. Then there will be none.
	standbyTaken = time.Minute
	// standbyLook is how often it is looked whether any is of no use any more.
	standbyLook = 20 * time.Second
)

// standby is one that stands ready, or was given away and has no record yet.
type standby struct {
	g       guest.Guest
	kind    string
	kernel  engine.Kernel // that it runs
	version string        // of the engine that runs it
	taken   time.Time     // zero: nobody has it
}

// kind is a kind of guests that one is kept ready of.
type kind struct {
	like guest.Guest
	used time.Time // when one was last wanted
}

// standbys is what stands ready.
type standbys struct {
	mu     sync.Mutex
	kinds  map[string]kind
	have   map[string]standby       // by id
	coming map[string]engine.Kernel // of guests that have a record and are still to become it, by id: what they run
	left   []guest.Guest            // that are still to be taken away
	poke   chan struct{}
}

func newStandbys() standbys {
	return standbys{kinds: map[string]kind{}, have: map[string]standby{}, coming: map[string]engine.Kernel{}, poke: make(chan struct{}, 1)}
}

// Standby says that guests like g are wanted, of which one shall stand ready from
// now on. It returns at once.
func (r *Reconciler) Standby(g guest.Guest) {
	spec := g.Spec
	spec.Power, spec.Boots = guest.On, 1
	name := spec.StandbyKind(spec.Networks())
	if name == "" || r.Slots == nil || spec.Memory > r.StandbyMemory {
		return
	}
	s := &r.standby
	s.mu.Lock()
	s.kinds[name] = kind{like: g, used: r.Now()}
	s.mu.Unlock()
	s.wake()
}

func (s *standbys) wake() {
	select {
	case s.poke <- struct{}{}:
	default:
	}
}

// TakeStandby returns the id of a guest that stands ready to be one with this
// spec, and is nobody else's from now on.
func (r *Reconciler) TakeStandby(ctx context.Context, spec guest.Spec, networks []string) (id string, ok bool) {
	name := spec.StandbyKind(networks)
	if name == "" {
		return "", false
	}
	s := &r.standby
	s.mu.Lock()
	var b standby
	for id, b = range s.have {
		if ok = b.kind == name && b.taken.IsZero() && r.alive(id); ok {
			b.taken = r.Now()
			s.have[id] = b
			break
		}
	}
	s.mu.Unlock()
	if !ok || r.current(ctx, b) {
		return id, ok
	}
	s.mu.Lock()
	b.kind, b.taken = outdated, time.Time{}
	s.have[id] = b
	s.mu.Unlock()
	s.wake()
	return "", false
}

// outdated is the kind of what nobody can want any more.
const outdated = ""

// current reports whether a standby is what would be started now: a guest that
// is made after an update has what was updated.
func (r *Reconciler) current(ctx context.Context, b standby) bool {
	_, info, err := r.engine(ctx, b.g)
	if err != nil || info.Version != b.version {
		return false
	}
	if info.Kernel == "" {
		return true
	}
	k, err := r.Kernels.For(ctx, info.Kernel, r.imageOf(b.g), b.g.Spec.Hardware.Kernel)
	return err == nil && k.Path == b.kernel.Path && k.Initrd == b.kernel.Initrd && k.Version == b.kernel.Version
}

// pass hands a guest that has a record over to whoever looks after guests: it is
// still to become the one of its record.
func (s *standbys) pass(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b, ok := s.have[id]; ok {
		delete(s.have, id)
		s.coming[id] = b.kernel
	}
}

// comes reports whether a guest is still to become the one of its record, and
// what kernel it runs.
func (s *standbys) comes(id string) (runs engine.Kernel, yes bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	runs, yes = s.coming[id]
	return runs, yes
}

func (s *standbys) done(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.coming, id)
}

// Standbys counts those that stand ready.
func (r *Reconciler) Standbys() (n int) {
	s := &r.standby
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, b := range s.have {
		if b.taken.IsZero() && r.alive(id) {
			n++
		}
	}
	return n
}

// useless are those that nobody will want any more.
func (s *standbys) useless(now time.Time, alive func(id string) bool) (ids []string) {
	for id, b := range s.have {
		switch {
		case !b.taken.IsZero():
			if now.Sub(b.taken) > standbyTaken {
				ids = append(ids, id)
			}
		case !alive(id), now.Sub(s.kinds[b.kind].used) > standbyFor:
			ids = append(ids, id)
		}
	}
	return ids
}

// lacking returns a kind of which none stands ready and should by now, or how
// long to wait for one. Together they take at most so many bytes of memory.
func (s *standbys) lacking(now time.Time, most uint64) (name string, wait time.Duration) {
	wait = standbyLook
	ready, sum := map[string]bool{}, uint64(0)
	for _, b := range s.have {
		if b.taken.IsZero() {
			ready[b.kind] = true
			sum += b.g.Spec.Memory
		}
	}
	for n, k := range s.kinds {
		switch age := now.Sub(k.used); {
		case age > standbyFor:
			delete(s.kinds, n)
		case ready[n] || sum+k.like.Spec.Memory > most:
		case age >= standbyAfter:
			return n, 0
		default:
			wait = min(wait, standbyAfter-age)
		}
	}
	return "", wait
}

// RunStandbys keeps one guest ready of each kind that is wanted, until ctx ends.
// Then it ends them all: a daemon that comes after makes its own.
func (r *Reconciler) RunStandbys(ctx context.Context, log *slog.Logger) {
	if r.Slots == nil {
		return
	}
	s := &r.standby
	for ctx.Err() == nil {
		r.sweepStandbys(ctx, log)
		s.mu.Lock()
		useless := s.useless(r.Now(), r.alive)
		name, wait := s.lacking(r.Now(), r.StandbyMemory)
		k := s.kinds[name]
		s.mu.Unlock()
		for _, id := range useless {
			r.dropStandby(ctx, log, id)
		}
		if name != "" {
			r.makeStandby(ctx, log, name, k)
			continue
		}
		select {
		case <-ctx.Done():
		case <-s.poke:
		case <-time.After(wait):
		}
	}
	r.endStandbys(context.WithoutCancel(ctx), log)
}

// endTime is how long ending all of them may take.
const endTime = 30 * time.Second

func (r *Reconciler) endStandbys(ctx context.Context, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(ctx, endTime)
	defer cancel()
	s := &r.standby
	s.mu.Lock()
	var ids []string
	for id := range s.have {
		ids = append(ids, id)
	}
	s.mu.Unlock()
	for _, id := range ids {
		r.dropStandby(ctx, log, id)
	}
	r.sweepStandbys(ctx, log) // also one that was in the making
}

// dropStandby ends one that has no record.
func (r *Reconciler) dropStandby(ctx context.Context, log *slog.Logger, id string) {
	if !r.claim(id) {
		return // its record has come
	}
	defer r.unclaim(id)
	s := &r.standby
	s.mu.Lock()
	b, ok := s.have[id]
	if _, err := r.Tables.Guests.ByID(id); ok && errs.Is(err, errs.NotFound) {
		delete(s.have, id)
		s.left = append(s.left, b.g)
	}
	s.mu.Unlock()
	r.sweepStandbys(ctx, log)
}

// markFile says in a guest's folder that it is a standby, and which, as JSON of
// its guest.Guest: whoever finds it without a record takes everything away.
const markFile = "standby"

func (r *Reconciler) markStandby(g guest.Guest) error {
	if err := os.MkdirAll(r.dir(g.ID), 0o700); err != nil {
		return err
	}
	text, err := json.Marshal(g)
	if err != nil {
		return err
	}
	return fsx.WriteFile(filepath.Join(r.dir(g.ID), markFile), text, 0o600)
}

func (r *Reconciler) unmarkStandby(id string) error {
	err := os.Remove(filepath.Join(r.dir(id), markFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// FindStandbys finds what an earlier daemon kept ready, ends what runs of it, and
// keeps its places until RunStandbys has taken the rest away. It must be called
// before anything is placed.
func (r *Reconciler) FindStandbys(ctx context.Context) error {
	marks, err := filepath.Glob(filepath.Join(r.Dir, "*", markFile))
	if err != nil || r.Slots == nil {
		return err
	}
	var failed []error
	for _, path := range marks {
		id := filepath.Base(filepath.Dir(path))
		if _, err := r.Tables.Guests.ByID(id); err == nil {
			failed = append(failed, os.Remove(path)) // it is a guest by now, whatever it still has to become
			continue
		}
		g := guest.Guest{}
		text, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(text, &g)
		}
		if err == nil && g.ID != id {
			err = fmt.Errorf("it is of %q", g.ID)
		}
		if err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", path, err))
			continue
		}
		if err := r.endProgram(ctx, id); err != nil {
			failed = append(failed, err)
		} else if err := r.Cgroups.Remove(ctx, id); err != nil {
			failed = append(failed, err)
		} else {
			r.mu.Lock()
			delete(r.attached, id)
			r.mu.Unlock()
		}
		r.Slots.Keep(id, g.Holder.Slot)
		r.standby.left = append(r.standby.left, g)
	}
	return errors.Join(failed...)
}

// sweepStandbys takes away what is left of those that are of no use; what cannot
// be taken away yet stays for the next time.
func (r *Reconciler) sweepStandbys(ctx context.Context, log *slog.Logger) {
	s := &r.standby
	s.mu.Lock()
	left := s.left
	s.left = nil
	s.mu.Unlock()
	for _, g := range left {
		if err := r.removeStandby(ctx, g); err != nil {
			log.Debug("a guest that stood ready is still to be taken away", "id", g.ID, "error", err)
			s.mu.Lock()
			s.left = append(s.left, g)
			s.mu.Unlock()
		}
	}
}

// removeStandby takes away everything of one that has no record.
func (r *Reconciler) removeStandby(ctx context.Context, g guest.Guest) error {
	if err := r.endProgram(ctx, g.ID); err != nil {
		return err
	}
	if err := r.detach(ctx, g); err != nil {
		return err
	}
	pool, err := r.Pools.Get(g.Spec.Pool)
	if err != nil {
		if _, gone := r.Tables.Pools.Get(g.Spec.Pool); !errs.Is(gone, errs.NotFound) {
			return err
		}
	} else if err := pool.Remove(ctx, g.ID); err != nil {
		return err
	}
	if err := os.RemoveAll(r.dir(g.ID)); err != nil {
		return err
	}
	r.Slots.Drop(g.ID)
	return nil
}

// endProgram ends what runs under id, and forgets it.
func (r *Reconciler) endProgram(ctx context.Context, id string) error {
	held, err := r.Keepers.Find(id)
	if errs.Is(err, errs.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if held.State().Exit == nil {
		if err := r.Cgroups.Kill(id); err != nil {
			return err
		}
		if _, err := held.Wait(ctx); err != nil {
			return err
		}
	}
	return r.Keepers.Forget(ctx, id)
}
