// Package guests brings the guests of this host to what their specs ask for.
//
// Steps Place and Forget, and all that is written to holders, are package
// placements'; all other steps are this one's.
package guests

import (
	"cmp"
	"context"
	"log/slog"
	"sync"
	"time"

	"lodge/internal/base/cgroup"
	"lodge/internal/base/errs"
	"lodge/internal/control"
	"lodge/internal/engine"
	"lodge/internal/fabric"
	"lodge/internal/keeper"
	"lodge/internal/model"
	"lodge/internal/model/guest"
	"lodge/internal/model/image"
	"lodge/internal/model/network"
	"lodge/internal/reconcile"
	"lodge/internal/storage"
	"lodge/internal/store/tables"
)

// Images gives access to the content of images.
type Images interface {
	// Mount returns the folder that an image's tree is mounted on.
	Mount(ctx context.Context, digest string) (path string, err error)
	// File returns the file that an image lies in.
	File(digest string) (path string, err error)
}

// Kernels finds what guests boot that have a kernel of their own.
type Kernels interface {
	// For returns the kernel called wanted, or if that is empty the best of a
	// kind for guests of an image. It is errs.Busy while the kernel is being
	// made ready.
	For(ctx context.Context, kind string, im image.Info, wanted string) (engine.Kernel, error)
}

// Layers makes the files that the writable layers of guests lie in. What is
// there already is left as it is. No guest may run on them meanwhile.
type Layers interface {
	// Volume makes path an ext4 file system of at least size bytes (0: as it
	// chooses) with the folders of an overlay in it.
	Volume(ctx context.Context, path string, size uint64) error
	// Overlay makes path a qcow2 disk of size bytes, of which what was never
	// written is that of the qcow2 base, or zeros where base is "". One that
	// is there and smaller grows.
	Overlay(ctx context.Context, path, base string, size uint64) error
}

// Options is what a Reconciler works with; every field but Tell is needed.
type Options struct {
	Tables    *tables.Tables
	Host      string // this host's name
	HostBoot  string // id of the host's present boot
	Dir       string // each guest gets a directory below it, for its console's log
	Keepers   keeper.Keepers
	Engines   engine.Set
	Pools     *control.Handles[storage.Pool]
	Networks  *control.Handles[fabric.Fabric]
	Cgroups   *cgroup.Tree
	Images    Images
	Kernels   Kernels
	Layers    Layers
	Templates Templates
	CPUs      []int  // processors of the host that guests may run on
	Cards     string // what the names of guests' network cards on the host begin with: fabric.Cards
	Slots     Slots  // nil: no guest stands ready before it is wanted
	// StandbyMemory is how many bytes of memory the guests may have together
	// that stand ready.
	StandbyMemory uint64
	Now           func() time.Time
	Tell          func(id string, s guest.Step)       // progress; may be nil
	Copied        func(id string, done, total uint64) // bytes of a writable layer that changes its form; may be nil
}

// Reconciler implements reconcile.Reconciler for guests.
type Reconciler struct {
	Options

	mu       sync.Mutex
	attached map[string]attachment
	stops    map[string]stopping // clean stops under way
	crowd    crowd               // who boots, and who waits for that
	pins     map[string]int      // processors that guests are pinned to, from just before they start until they end
	claimed  map[string]bool     // guests that somebody works on
	unsaid   map[string]*model.Problem
	standby  standbys
	down     bool // the host is going down: everything stops, no spec changes
}

// stopping is a clean stop under way.
type stopping struct {
	deadline time.Time // when patience ends
	told     bool      // the guest's init has surely heard it
	saved    bool      // its memory is saved, and it is being ended
}

// attachment is what is attached for a guest.
type attachment struct {
	parts      *engine.Parts // nil: it is not known yet; an earlier daemon attached it
	generation int64         // of the spec that limits and quota follow
	used       bool          // a guest was started in its group, or may have been
}

// New returns a reconciler that knows what an earlier daemon left attached.
func New(o Options) (*Reconciler, error) {
	r := &Reconciler{Options: o, attached: map[string]attachment{}, stops: map[string]stopping{}, crowd: crowd{boots: map[string]time.Time{}, waits: map[string]time.Time{}}, pins: map[string]int{}, claimed: map[string]bool{}, unsaid: map[string]*model.Problem{}, standby: newStandbys()}
	groups, err := o.Cgroups.List()
	if err != nil {
		return nil, err
	}
	for _, id := range groups {
		r.attached[id] = attachment{used: true}
	}
	r.pinned()
	return r, nil
}

// Name returns the reconciler's name in the graph and the log.
func (*Reconciler) Name() string { return "guests" }

// Reads says what wakes it: a guest, its holder, and a pool or network that a
// guest waits for.
func (r *Reconciler) Reads() []reconcile.Read {
	return []reconcile.Read{
		{Kind: guest.Kind},
		{Kind: guest.HolderKind},
		{Kind: "pool", Wake: r.waiting},
		{Kind: network.Kind, Wake: r.waiting},
	}
}

// waiting returns the guests that something held up: they look again whenever a
// pool or network changes.
func (r *Reconciler) waiting(string) (ids []string) {
	for _, g := range r.Tables.Guests.List() {
		if g.Status.Problem != nil {
			ids = append(ids, g.ID)
		}
	}
	return ids
}

// All returns what it looks after.
func (r *Reconciler) All() []string { return r.Tables.Guests.IDs() }

// Writes says whose status it alone writes.
func (*Reconciler) Writes() []model.Kind { return []model.Kind{guest.Kind} }

// record returns the guest with id if this host holds it.
func (r *Reconciler) record(id string) (guest.Guest, bool) {
	rec, err := r.Tables.Guests.ByID(id)
	if err != nil {
		return guest.Guest{}, false
	}
	holder, err := r.Tables.Holders.ByID(id)
	if err != nil || holder.Spec.Host != r.Host {
		return guest.Guest{}, false
	}
	return guest.Guest{Meta: rec.Meta, Spec: rec.Spec, Holder: holder.Spec, Status: rec.Status}, true
}

// mostSteps bounds how many steps one pass takes before others get their turn;
// the longest way through the lifecycle is shorter.
const mostSteps = 10

// Reconcile looks, decides, and takes one step, until there is none to take or
// one has to be waited for. Every step is decided by a new look.
func (r *Reconciler) Reconcile(ctx context.Context, log *slog.Logger, id string) (time.Duration, error) {
	if !r.claim(id) {
		return claimAgain, nil
	}
	defer r.unclaim(id)
	for range mostSteps {
		g, ok := r.record(id)
		if !ok {
			r.standby.done(id)
			return 0, nil // another host's, the placements reconciler's, or no more
		}
		r.standby.pass(id)
		v, err := r.look(ctx, &g)
		if err != nil {
			return 0, r.trouble(ctx, g, g.Status.Phase, err)
		}
		if r.goingDown() {
			g.Spec.Power = guest.Off
		}
		at := v.Phase(g.Status.Phase != guest.Gone)
		step := guest.Next(g, at, v.Seen)
		log.Debug("looked", "guest", g.Name, "at", at, "step", step)
		switch step {
		case guest.Place, guest.Forget:
			return 0, nil
		case guest.Rest:
			return r.rest(ctx, g, at, v.Probe)
		}
		if r.Tell != nil {
			r.Tell(id, step)
		}
		wait, err := r.take(ctx, g, step)
		if err != nil {
			return 0, r.trouble(ctx, g, at, err)
		}
		if wait > 0 {
			return wait, nil
		}
	}
	return time.Millisecond, nil
}

// view is what a look at a guest shows.
type view struct {
	guest.Seen
	engine.Probe
}

// look finds out what is the case now. An end that nobody has recorded yet is
// recorded first, so that what follows sees it.
func (r *Reconciler) look(ctx context.Context, g *guest.Guest) (view, error) {
	var v view
	r.mu.Lock()
	_, v.Attached = r.attached[g.ID]
	r.mu.Unlock()
	held, err := r.Keepers.Find(g.ID)
	switch {
	case errs.Is(err, errs.NotFound):
		if err := r.missed(ctx, g); err != nil {
			return v, err
		}
	case err != nil:
		return v, err
	case held.State().Exit != nil:
		if err := r.ended(ctx, g, *held.State().Exit); err != nil {
			return v, err
		}
	default:
		v.Alive = true
		if err := r.adopt(ctx, g, held); err != nil {
			return v, err
		}
		if v.Probe, err = r.probe(ctx, *g, held); err != nil && r.goingBy(*g) {
			err = nil // whatever it is: it is taken down
		}
		v.Frozen = v.Paused
		return v, err
	}
	r.recorded(ctx, *g, &v.Seen)
	return v, nil
}

// recorded adds to what is seen of a guest that is down what its record holds.
func (r *Reconciler) recorded(ctx context.Context, g guest.Guest, seen *guest.Seen) {
	s := g.Status
	seen.Exited = s.Exit != nil
	seen.Failed = s.Exit != nil && s.Exit.Code != 0
	seen.Cooling = s.NotBefore != nil && r.Now().Before(*s.NotBefore)
	seen.Lost = s.Lost
	seen.Misfit = r.misfit(ctx, g)
}

func (r *Reconciler) probe(ctx context.Context, g guest.Guest, held keeper.Held) (engine.Probe, error) {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	m, err := r.connect(ctx, g, held)
	if err != nil {
		return engine.Probe{}, err
	}
	defer m.Close()
	return m.Probe(ctx)
}

// goingBy reports whether a guest is on its way down, so that nobody needs an
// answer of it any more.
func (r *Reconciler) goingBy(g guest.Guest) bool {
	return g.Deleting != nil || g.Spec.Power == guest.Off || r.goingDown() || g.Spec.Boots > g.Status.Boots
}

func wasUp(s guest.Status) bool { return s.Phase == guest.Running || s.Phase == guest.Paused }

// rest reports that a guest is where it is wanted, after a running one was
// given the limits it should have by now.
func (r *Reconciler) rest(ctx context.Context, g guest.Guest, at guest.Phase, p engine.Probe) (time.Duration, error) {
	if g.Status.Generation != g.Generation && (at == guest.Running || at == guest.Paused) {
		if err := r.adjust(ctx, g); err != nil {
			return 0, r.trouble(ctx, g, at, err)
		}
	}
	if r.goingDown() {
		return 0, nil // the record keeps saying what was, so that the next start brings back what should be
	}
	if p.Ready && !g.Status.Ready && at == guest.Running {
		r.wantTemplate(ctx, g)
	}
	saved, err := r.tidyMemory(ctx, g, at)
	if err != nil {
		return 0, r.trouble(ctx, g, at, err)
	}
	var again time.Duration
	if g.Status.NotBefore != nil && (at == guest.Placed || at == guest.Ready) {
		again = max(0, g.Status.NotBefore.Sub(r.Now()))
	}
	return again, r.report(ctx, g, func(s *guest.Status) {
		s.Phase, s.Doing, s.Generation, s.Saved = at, guest.Rest, g.Generation, saved
		if at == guest.Running || at == guest.Paused {
			r.unwell(g, p, s)
			return
		}
		s.Agent, s.Addresses = "", nil
		s.Ready, s.Problem = false, cmp.Or(guest.Crash(g.Name, s.Exit, s.Last), g.Refusal())
		if at == guest.Placed {
			s.Pid = 0
		}
	})
}

// unwell notes how a guest that runs is, and if that is not well what it said
// when that was first seen.
func (r *Reconciler) unwell(g guest.Guest, p engine.Probe, s *guest.Status) {
	was, now := s.Problem, r.Now()
	s.Agent, s.Addresses = p.Agent, p.Addresses
	s.Ready, s.Problem = p.Ready, cmp.Or(guest.Suffering(g.Name, p.Trouble, was, now), guest.Stuck(g.Name, p.NoBoot, was, now), g.Refusal())
	switch {
	case p.Trouble != "":
		if !s.Problem.Since.Equal(since(was)) {
			s.Last = guest.Words(engine.LastLines(engine.Parts{Dir: r.dir(g.ID)}))
		}
	case p.NoBoot != nil:
		s.Last = guest.Words(p.NoBoot.Last)
	case was != nil && (was.Code == model.Crashed || was.Code == model.NotBooted):
		s.Last = ""
	}
}

func since(p *model.Problem) time.Time {
	if p == nil {
		return time.Time{}
	}
	return p.Since
}

func (r *Reconciler) report(ctx context.Context, g guest.Guest, change func(*guest.Status)) error {
	_, err := r.Tables.Guests.SetStatus(ctx, g.ID, func(s *guest.Status) error { change(s); return nil })
	r.mu.Lock()
	defer r.mu.Unlock()
	if errs.Is(err, errs.NoSpace) {
		s := g.Status
		if change(&s); s.Problem != nil {
			r.unsaid[g.ID] = s.Problem
		}
		return err
	}
	delete(r.unsaid, g.ID)
	if errs.Is(err, errs.NotFound) {
		return nil
	}
	return err
}

// Unsaid returns the problem of a guest that its record does not hold, because
// there was no space left for that, or nil.
func (r *Reconciler) Unsaid(id string) *model.Problem {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.unsaid[id]
}

// trouble writes err beside the phase and hands it on to the runner, which
// tries again when its kind says so. A guest that can never get there as it is
// written has thereby answered its generation.
func (r *Reconciler) trouble(ctx context.Context, g guest.Guest, at guest.Phase, err error) error {
	if ctx.Err() != nil {
		return err
	}
	werr := r.report(ctx, g, func(s *guest.Status) {
		s.Phase, s.Doing, s.Problem = at, guest.Rest, model.ProblemOf(err, r.Now(), s.Problem)
		if !errs.KindOf(err).Retry() {
			s.Generation = g.Generation
		}
	})
	if werr != nil {
		return werr
	}
	return err
}

// Guest returns the record of a guest that this host holds.
func (r *Reconciler) Guest(id string) (guest.Guest, error) {
	g, ok := r.record(id)
	if !ok {
		return g, errs.Missing("guest/"+id, "lodge ls")
	}
	return g, nil
}

var _ reconcile.Reconciler = (*Reconciler)(nil)
