package guests

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"lodge/internal/base/errs"
	"lodge/internal/base/units"
	"lodge/internal/layer"
	"lodge/internal/model"
	"lodge/internal/model/guest"
	"lodge/internal/storage"
)

// layerForm returns the form that a guest's writable layer has on disk. It is
// false for a guest whose volume was never made.
func layerForm(dir string) (guest.Form, bool, error) {
	form, err := layer.FormOf(dir)
	if err != nil || form == layer.Volume {
		return guest.Volume, err == nil, err
	}
	_, err = os.Lstat(filepath.Join(dir, "upper"))
	if errors.Is(err, fs.ErrNotExist) {
		return "", false, nil
	}
	return guest.Tree, err == nil, err
}

// misfit reports whether a guest that is down has a writable layer of another
// form than its engine needs. A guest whose engine or pool is not there needs
// something else first.
func (r *Reconciler) misfit(ctx context.Context, g guest.Guest) bool {
	pool, err := r.Pools.Get(g.Spec.Pool)
	if err != nil {
		return false
	}
	_, info, err := r.engine(ctx, g)
	if err != nil {
		return false
	}
	want, err := formOf(g, info, r.imageOf(g))
	if err != nil || want == guest.Disk {
		return false
	}
	have, there, err := layerForm(pool.Path(g.ID))
	return err == nil && there && have != want
}

// convert gives a guest's writable layer the form that its model needs. A change
// of model that cannot be carried out is refused, and the guest stays what it
// was; a form that is wrong for another reason, such as an older snapshot's, is
// trouble.
func (r *Reconciler) convert(ctx context.Context, g guest.Guest) error {
	_, info, err := r.engine(ctx, g)
	if err != nil {
		return err
	}
	want, err := formOf(g, info, r.imageOf(g))
	if err != nil {
		return err
	}
	pool, err := r.Pools.Get(g.Spec.Pool)
	if err != nil {
		return err
	}
	err = r.changeForm(ctx, g, pool, want)
	inForce, _ := g.InForce()
	if err != nil {
		if ctx.Err() != nil || g.Status.Was() == inForce {
			return err
		}
		return r.refuse(ctx, g, err)
	}
	return r.report(ctx, g, func(s *guest.Status) { s.Model = inForce })
}

// refuse writes down why a change of model was not carried out.
func (r *Reconciler) refuse(ctx context.Context, g guest.Guest, err error) error {
	p := model.ProblemOf(err, r.Now(), nil)
	p.Final = true
	p.Message = fmt.Sprintf("cannot become %s, and stays %s: %s", g.Spec.Model, g.Status.Was(), p.Message)
	return r.report(ctx, g, func(s *guest.Status) {
		s.Refused, s.Refusal, s.Doing, s.Model = g.Spec.Models, p, guest.Rest, s.Was()
	})
}

// changeForm converts the layer. Its old and its new form lie on the pool beside
// each other meanwhile, so the quota is lifted.
func (r *Reconciler) changeForm(ctx context.Context, g guest.Guest, pool storage.Pool, want guest.Form) (err error) {
	dir := pool.Path(g.ID)
	facts, err := layer.Look(ctx, dir)
	if err != nil {
		return err
	}
	space, err := pool.Space(ctx)
	if err != nil {
		return err
	}
	if err := roomFor(g, facts, space); err != nil {
		return err
	}
	if err := pool.SetQuota(ctx, g.ID, 0); err != nil {
		return err
	}
	defer func() {
		have, there, ferr := layerForm(dir)
		if ferr == nil && there {
			ferr = pool.SetQuota(context.WithoutCancel(ctx), g.ID, quotaOf(g.Spec, have))
		}
		err = errs.Also(err, ferr)
	}()
	told := func(done, total uint64) {
		if r.Copied != nil {
			r.Copied(g.ID, done, total)
		}
	}
	if want == guest.Volume {
		err = layer.ToVolume(ctx, dir, g.Spec.Disk, told)
	} else {
		err = layer.ToTree(ctx, dir, told)
	}
	return storage.Failed("guest.convert", g.Key().String(), err)
}

// spare is what must be left free on a pool behind a conversion.
const spare = 64 << 20

func roomFor(g guest.Guest, facts layer.Facts, space storage.Space) error {
	if space.Free >= facts.Needs+spare {
		return nil
	}
	return &errs.Error{Op: "guest.convert", Kind: errs.NoSpace, Ref: g.Key().String(),
		Msg: fmt.Sprintf("its private data must lie on pool %s twice for a moment: that needs %s, and %s are free",
			g.Spec.Pool, units.Bytes(facts.Needs+spare), units.Bytes(space.Free)),
		Hint: "make room, or make the pool larger; then ask for it again"}
}

// Change is what a change of a guest's model would mean.
type Change struct {
	From, To guest.Model
	Engine   string
	Copies   bool // the private data changes its form
	Files    uint64
	Bytes    uint64 // to copy
	Needs    uint64 // bytes free on the pool, for a moment
	Free     uint64
	Time     time.Duration // that copying takes, about
	Running  bool
	Refusal  error // why it cannot be, or nil
}

// What copying takes, measured on small machines: so many bytes a second, and so
// long for a file and for a change at all.
const (
	copySpeed = 180 << 20
	perFile   = 60 * time.Microsecond
	perChange = 300 * time.Millisecond
)

// Foresee says what a change of a guest's model would mean. It changes nothing.
func (r *Reconciler) Foresee(ctx context.Context, id string, to guest.Model, engine string) (Change, error) {
	g, err := r.Guest(id)
	if err != nil {
		return Change{}, err
	}
	from, _ := g.InForce()
	c := Change{From: from, To: to, Running: wasUp(g.Status)}
	_, info, err := r.Engines.Pick(ctx, to, engine)
	if err != nil {
		c.Refusal = err
		return c, nil
	}
	c.Engine = info.Name
	want, err := formOf(g, info, r.imageOf(g))
	if err != nil {
		c.Refusal = err
		return c, nil
	}
	pool, err := r.Pools.Get(g.Spec.Pool)
	if err != nil {
		return c, err
	}
	have, there, err := layerForm(pool.Path(g.ID))
	if err != nil || !there || have == want || want == guest.Disk {
		return c, err
	}
	facts, err := layer.Look(ctx, pool.Path(g.ID))
	if err != nil {
		return c, err
	}
	space, err := pool.Space(ctx)
	if err != nil {
		return c, err
	}
	c.Copies, c.Files, c.Bytes, c.Needs, c.Free = true, facts.Files, facts.Bytes, facts.Needs+spare, space.Free
	c.Time = perChange + time.Duration(facts.Files)*perFile + time.Duration(float64(facts.Bytes)/copySpeed*float64(time.Second))
	c.Refusal = roomFor(g, facts, space)
	return c, nil
}
