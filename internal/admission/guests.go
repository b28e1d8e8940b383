package admission

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"

	"lodge/internal/base/errs"
	"lodge/internal/model"
	"lodge/internal/model/forward"
	"lodge/internal/model/guest"
	"lodge/internal/model/network"
	"lodge/internal/model/operation"
	"lodge/internal/store"
	"lodge/internal/store/tables"
)

// batch is how many guests one transaction makes at most, so that it stays
// within what the store takes at once even with the largest user-data.
const batch = 100

// batchOf is how many guests with so many cards one transaction may make: each
// guest is 2 changes and each card up to 4.
func batchOf(cards int) int { return max(1, min(batch, store.MaxOps/2/(2+4*cards))) }

// CreateGuests makes one guest, or w.Count of them, with their addresses and
// port forwards. Many guests are made in several transactions under one
// receipt, which is issued with the last of them; if one fails, those before
// are removed again.
func (d *Door) CreateGuests(ctx context.Context, by string, w GuestWish) (Operation, error) {
	p, err := d.planGuests(w)
	if err != nil {
		return Operation{}, err
	}
	defer p.free()
	return d.createPlanned(ctx, by, "guest.create", p)
}

func (d *Door) createPlanned(ctx context.Context, by, verb string, p *guestPlan) (Operation, error) {
	subjects := make([]operation.Subject, 0, len(p.names))
	var op Operation
	for names := range slices.Chunk(p.names, batchOf(len(p.networks))) {
		tx := d.Store.Begin()
		for _, name := range names {
			s, err := d.createIn(ctx, tx, name, p)
			if err != nil {
				return Operation{}, d.undo(ctx, by, subjects, err)
			}
			subjects = append(subjects, s)
		}
		last := len(subjects) == len(p.names)
		if last {
			op = d.receipt(tx, by, verb, subjects)
		}
		if _, err := tx.Commit(ctx); err != nil {
			return Operation{}, d.undo(ctx, by, subjects[:len(subjects)-len(names)], err)
		}
	}
	return d.Tables.Operations.ByID(op.ID)
}

// guestPlan is a wish that was found to be possible.
type guestPlan struct {
	names    []string
	spec     guest.Spec
	labels   map[string]string
	forwards []forward.Spec
	networks []tables.NetworkRecord
	release  []func() // of the addresses reserved so far
}

func (p *guestPlan) free() {
	for _, f := range p.release {
		f()
	}
}

// planGuests says whether a wish can be granted. It changes nothing.
func (d *Door) planGuests(w GuestWish) (*guestPlan, error) {
	names, err := guestNames(w)
	if err != nil {
		return nil, err
	}
	p := &guestPlan{names: names, spec: freshSpec(w)}
	im, err := d.image(w.Image)
	if err != nil {
		return nil, err
	}
	p.spec.Digest = im.Status.Digest
	if err := d.checkGuest(w, p); err != nil {
		return nil, err
	}
	if err := d.checkImage(im, p.spec); err != nil {
		return nil, err
	}
	if err := d.checkKernel(p.spec); err != nil {
		return nil, err
	}
	for _, n := range names {
		if err := d.unnamed(n); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// unnamed says so if there is a guest of that name.
func (d *Door) unnamed(name string) error {
	if _, err := d.Tables.Guests.Get(name); err != nil {
		return nil
	}
	return &errs.Error{Kind: errs.Exists, Ref: "guest/" + name, Field: "name", Msg: "exists already", Hint: "choose another name, or remove it: lodge rm " + name}
}

// checkGuest judges everything of a wish but its image and the guests there
// are.
func (d *Door) checkGuest(w GuestWish, p *guestPlan) error {
	w.Patch.apply(&p.spec)
	e, err := d.engine(p.spec)
	if err != nil {
		return err
	}
	if err := checkSpec(p.spec, d.Host); err != nil {
		return err
	}
	if err := d.checkMachine(p.spec, e, d.imageInfo(p.spec)); err != nil {
		return err
	}
	set(&p.labels, w.Labels)
	if err := checkLabels(p.labels); err != nil {
		return err
	}
	if _, err := there(d.Tables.Pools, "pool", p.spec.Pool); err != nil {
		return inField("pool", err, "see lodge pool ls")
	}
	if err := d.findNetworks(w.Networks, p); err != nil {
		return err
	}
	if w.Publish == nil {
		return nil
	}
	if len(p.networks) == 0 && len(*w.Publish) > 0 {
		return errs.Bad("publish", "a guest without a network has no ports", "leave out the network none")
	}
	p.forwards, err = d.checkPublish("publish", "", *w.Publish)
	return err
}

// inField adds to a lookup's error which field of the request led to it.
func inField(field string, err error, hint string) error {
	return &errs.Error{Kind: errs.KindOf(err), Field: field, Hint: hint, Err: err, Msg: personal(err), Ref: refOf(err)}
}

func (d *Door) findNetworks(wanted []string, p *guestPlan) error {
	if wanted == nil {
		wanted = []string{defaultName}
	}
	if slices.Equal(wanted, []string{"none"}) {
		return nil
	}
	for i, n := range wanted {
		r, err := there(d.Tables.Networks, network.Kind, n)
		if err != nil {
			return inField("networks", err, "see lodge network ls")
		}
		if slices.Contains(wanted[:i], n) {
			return errs.Bad("networks", fmt.Sprintf("%s is named twice", n), "name each network once")
		}
		p.networks = append(p.networks, r)
	}
	return nil
}

// image returns the record of an image that is ready.
func (d *Door) image(name string) (tables.ImageRecord, error) {
	if err := CheckImageName("image", name); err != nil {
		return tables.ImageRecord{}, err
	}
	build := "lodge image build " + name
	r, err := d.Tables.Images.Get(name)
	switch {
	case err != nil:
		return r, &errs.Error{Kind: errs.NotFound, Ref: "image/" + name, Field: "image", Msg: "does not exist", Hint: "lodge image ls shows what is there, lodge image build --help what can be made", Err: err}
	case r.Deleting != nil:
		return r, &errs.Error{Kind: errs.Conflict, Ref: "image/" + name, Field: "image", Msg: "is being removed", Hint: build}
	case r.Status.Digest == "" && r.Status.Problem != nil:
		return r, &errs.Error{Kind: errs.NotFound, Ref: "image/" + name, Field: "image", Msg: "could not be made: " + r.Status.Problem.Message, Hint: build}
	case r.Status.Digest == "":
		return r, &errs.Error{Kind: errs.Busy, Ref: "image/" + name, Field: "image", Msg: "is still being made", Hint: "wait for it: lodge op ls"}
	}
	return r, nil
}

// checkImage says whether an image has what a guest made from it asks of it.
func (d *Door) checkImage(im tables.ImageRecord, s guest.Spec) error {
	info := im.Status.Info
	if arch := info.Architecture; arch != "" && d.Host.Architecture != "" && arch != d.Host.Architecture && (arch != "i386" || d.Host.Architecture != "amd64") {
		return errs.Bad("image", fmt.Sprintf("%s is for %s, and this host is %s", im.Name, arch, d.Host.Architecture), "use an image for "+d.Host.Architecture)
	}
	if info.Disk != "" {
		return checkDiskImage(im, s)
	}
	switch {
	case s.UserData != "" && !im.Status.Info.CloudInit:
		return errs.Bad("user_data", "image "+im.Name+" has no cloud-init to read it", "use a standard Debian image, or install cloud-init in the image")
	case len(s.Command) == 0 && len(im.Status.Info.Init) == 0:
		return errs.Bad("command", "image "+im.Name+" has no init to run", "give a command: lodge launch "+im.Name+" NAME -- CMD")
	}
	return nil
}

// checkDiskImage is checkImage for an image that is a disk: what runs in such a
// guest is none of Lodge's doing.
func checkDiskImage(im tables.ImageRecord, s guest.Spec) error {
	const own = " is a disk with an operating system of its own"
	switch {
	case s.Model != guest.VM:
		return errs.Bad("model", fmt.Sprintf("image %s%s, which model %s cannot run", im.Name, own, s.Model), "use --model vm")
	case len(s.Command) > 0:
		return errs.Bad("command", "image "+im.Name+own+": what it runs first is its own choice", "leave the command out")
	case len(s.Env) > 0:
		return errs.Bad("env", "image "+im.Name+own+": nothing in it takes variables", "leave them out")
	}
	return nil
}

// createIn puts one guest into tx: its record, its leases, its forwards.
func (d *Door) createIn(ctx context.Context, tx *store.Tx, name string, p *guestPlan) (operation.Subject, error) {
	id, spec := d.idFor(ctx, p), p.spec
	for i, n := range p.networks {
		place, free, err := d.addresses.take(n.Name, n.Spec)
		if err != nil {
			return operation.Subject{}, err
		}
		p.release = append(p.release, free)
		spec.NICs = append(spec.NICs, guest.NIC{
			Name: guest.NICName(i), Network: n.Name, MAC: guest.MACOf(id, i), IPv4: text(place.IPv4), IPv6: text(place.IPv6),
		})
		for _, lease := range place.names(n.Name) {
			d.Tables.Leases.CreateIn(tx, lease, network.LeaseSpec{Guest: id})
		}
	}
	r := d.Tables.Guests.CreateIn(tx, name, spec, store.WithID(id), store.WithLabels(maps.Clone(p.labels)))
	for _, f := range p.forwards {
		f.Guest = id
		d.Tables.Forwards.CreateIn(tx, ForwardName(f), f)
	}
	return guestSubject(r), nil
}

// idFor returns a guest's id: that of one which stands ready to be it, or a new
// one.
func (d *Door) idFor(ctx context.Context, p *guestPlan) string {
	if d.TakeStandby != nil {
		var networks []string
		for _, n := range p.networks {
			networks = append(networks, n.Name)
		}
		if id, ok := d.TakeStandby(ctx, p.spec, networks); ok {
			return id
		}
	}
	return d.NewID()
}

// undo removes the guests that were made before one could not be. It goes on
// when the person has given up, so that nothing is left.
func (d *Door) undo(ctx context.Context, by string, made []operation.Subject, cause error) error {
	for _, s := range made {
		if _, err := d.RemoveGuest(context.WithoutCancel(ctx), by, s.Name, true); err != nil && !errs.Is(err, errs.NotFound) {
			return fmt.Errorf("%w (and guest/%s could not be removed again: %v)", cause, s.Name, err)
		}
	}
	return cause
}

// edit changes one guest's spec and issues the receipt.
func (d *Door) edit(ctx context.Context, by, verb, name string, change func(*store.Tx, *tables.GuestRecord) error) (Operation, error) {
	return d.transact(ctx, by, verb, func(tx *store.Tx) ([]operation.Subject, error) {
		r, err := there(d.Tables.Guests, guest.Kind, name)
		if err != nil {
			return nil, err
		}
		if err := change(tx, &r); err != nil {
			return nil, err
		}
		r = d.Tables.Guests.UpdateIn(tx, r)
		return []operation.Subject{guestSubject(r)}, nil
	})
}

// boot raises the wish for a boot unless one is pending or answered.
func boot(r *tables.GuestRecord) {
	if r.Spec.Boots <= r.Status.Boots && !up(r) {
		r.Spec.Boots++
	}
}

func up(r *tables.GuestRecord) bool {
	return r.Status.Phase == guest.Running || r.Status.Phase == guest.Paused
}

// running reports whether r runs or was asked to.
func running(r *tables.GuestRecord) bool {
	return r.Spec.Power != guest.Off && (up(r) || r.Spec.Boots > r.Status.Boots)
}

// StartGuest boots a guest that is down and lets a paused one go on.
func (d *Door) StartGuest(ctx context.Context, by, name string) (Operation, error) {
	return d.edit(ctx, by, "guest.start", name, func(_ *store.Tx, r *tables.GuestRecord) error {
		if _, err := d.engine(r.Spec); err != nil {
			return err
		}
		boot(r)
		r.Spec.Power, r.Spec.Force, r.Spec.Within = guest.On, false, 0
		return nil
	})
}

// guestSubject is the subject of a change of a guest. An ephemeral one may be
// gone before anybody sees that it got where it was wanted.
func guestSubject(r tables.GuestRecord) operation.Subject {
	s := subject(guest.Kind, r.Meta)
	s.Passing = r.Spec.Ephemeral
	return s
}

// StopGuest takes a guest down: by force at once, otherwise by asking it and
// waiting for timeout seconds (nil: as the guest's setting says).
func (d *Door) StopGuest(ctx context.Context, by, name string, force bool, timeout *int) (Operation, error) {
	return d.edit(ctx, by, "guest.stop", name, func(_ *store.Tx, r *tables.GuestRecord) error {
		r.Spec.Power, r.Spec.Force, r.Spec.Within = guest.Off, force, 0
		if timeout == nil {
			return nil
		}
		r.Spec.Within = *timeout
		return checkPatience("timeout", *timeout)
	})
}

// RestartGuest takes a guest down and boots it.
func (d *Door) RestartGuest(ctx context.Context, by, name string, force bool) (Operation, error) {
	return d.edit(ctx, by, "guest.restart", name, func(_ *store.Tx, r *tables.GuestRecord) error {
		r.Spec.Power, r.Spec.Force, r.Spec.Within = guest.On, force, 0
		r.Spec.Boots++
		return nil
	})
}

// PauseGuest halts a running guest where it is.
func (d *Door) PauseGuest(ctx context.Context, by, name string) (Operation, error) {
	return d.edit(ctx, by, "guest.pause", name, func(_ *store.Tx, r *tables.GuestRecord) error {
		if !running(r) {
			return notRunning(name)
		}
		if e, err := d.Engine(r.Spec.Model, cmp.Or(r.Status.Engine, r.Spec.Engine)); err == nil && !e.Pause {
			return &errs.Error{Kind: errs.Unsupported, Ref: "guest/" + name, Msg: fmt.Sprintf("guests of engine %s cannot be paused", e.Name), Hint: "lodge engine show " + e.Name}
		}
		r.Spec.Power = guest.Held
		return nil
	})
}

// ResumeGuest lets a paused guest go on.
func (d *Door) ResumeGuest(ctx context.Context, by, name string) (Operation, error) {
	return d.edit(ctx, by, "guest.resume", name, func(_ *store.Tx, r *tables.GuestRecord) error {
		if !running(r) {
			return notRunning(name)
		}
		r.Spec.Power = guest.On
		return nil
	})
}

func notRunning(name string) error {
	return &errs.Error{Kind: errs.Conflict, Ref: "guest/" + name, Msg: "is not running", Hint: "lodge start " + name}
}

// RenameGuest gives a guest another name. Names are looked up by the new one
// at once; inside the guest it shows with the next start.
func (d *Door) RenameGuest(ctx context.Context, by, name, to string) (Operation, error) {
	if err := model.CheckName("name", to); err != nil {
		return Operation{}, err
	}
	return d.edit(ctx, by, "guest.rename", name, func(_ *store.Tx, r *tables.GuestRecord) error {
		if other, err := d.Tables.Guests.Get(to); err == nil && other.ID != r.ID {
			return &errs.Error{Kind: errs.Exists, Ref: "guest/" + to, Field: "name", Msg: "exists already", Hint: "choose another name"}
		}
		r.Name = to
		return nil
	})
}

// SetGuest changes what p names. generation, unless 0, is the one the caller
// saw: a guest changed since is left alone.
func (d *Door) SetGuest(ctx context.Context, by, name string, p Patch, generation int64) (Operation, error) {
	return d.edit(ctx, by, "guest.set", name, func(tx *store.Tx, r *tables.GuestRecord) error {
		if generation != 0 && generation != r.Generation {
			return &errs.Error{Kind: errs.Conflict, Ref: "guest/" + name, Msg: "was changed by somebody else meanwhile", Hint: "look at it again: lodge show " + name}
		}
		was := r.Spec.Disks
		p.apply(&r.Spec)
		if err := d.checkChanged(name, p, was, r.Spec); err != nil {
			return err
		}
		if p.Labels != nil {
			r.Labels = maps.Clone(*p.Labels)
		}
		if err := checkLabels(r.Labels); err != nil {
			return err
		}
		if p.Publish == nil {
			return nil
		}
		return d.replaceForwards(tx, r, *p.Publish)
	})
}

// checkChanged judges a spec after p was applied to it; was is the disks that it
// had before.
func (d *Door) checkChanged(name string, p Patch, was []guest.FurtherDisk, s guest.Spec) error {
	if err := checkSpec(s, d.Host); err != nil {
		return err
	}
	if !p.machine() {
		return nil // a guest whose engine is gone can still be changed otherwise
	}
	if err := checkKept(name, was, s.Disks); err != nil {
		return err
	}
	e, err := d.engine(s)
	if err != nil {
		return err
	}
	if err := d.checkMachine(s, e, d.imageInfo(s)); err != nil || p.Kernel == nil {
		return err
	}
	return d.checkKernel(s)
}

// RemoveGuest asks that a guest and everything of it be no more. One that runs
// is refused unless force is given.
func (d *Door) RemoveGuest(ctx context.Context, by, name string, force bool) (Operation, error) {
	return d.transact(ctx, by, "guest.remove", func(tx *store.Tx) ([]operation.Subject, error) {
		r, err := d.Tables.Guests.Get(name)
		if err != nil {
			return nil, err
		}
		if !force && r.Deleting == nil && (up(&r) || running(&r)) {
			return nil, &errs.Error{Kind: errs.Conflict, Ref: "guest/" + name, Msg: "is running", Hint: fmt.Sprintf("stop it first, or: lodge rm --force %s", name)}
		}
		if err := d.removeSnapshotsIn(tx, r, force); err != nil {
			return nil, err
		}
		for _, f := range d.Tables.Forwards.List() {
			if f.Spec.Guest == r.ID {
				d.Tables.Forwards.DeleteIn(tx, f)
			}
		}
		if r.Deleting == nil || force && !r.Spec.Force {
			now := d.Now()
			r.Deleting, r.Spec.Force = &now, force
			r = d.Tables.Guests.UpdateIn(tx, r)
		}
		return []operation.Subject{gone(guest.Kind, r.Meta)}, nil
	})
}
