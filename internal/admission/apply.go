package admission

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"lodge/internal/base/errs"
	"lodge/internal/model"
	"lodge/internal/model/forward"
	"lodge/internal/model/guest"
	"lodge/internal/model/image"
	"lodge/internal/model/network"
	"lodge/internal/model/pool"
	"lodge/internal/store/tables"
)

// Item is one thing that shall be so; exactly one field is set.
type Item struct {
	Guest   *GuestItem
	Network *NetworkWish
	Pool    *PoolItem
	Forward *ForwardItem
	Image   *ImageWish
}

// GuestItem is a guest and where it shall rest.
type GuestItem struct {
	GuestWish
	Power guest.Power // empty: as it is; on for a new guest
}

// PoolItem is a pool by name.
type PoolItem struct {
	Name string
	Spec pool.Spec
}

// ForwardItem is a port forward.
type ForwardItem struct{ Guest, Publish string }

// What becomes of an item.
const (
	ActionCreate = "create"
	ActionChange = "change"
	ActionNone   = "none"
)

// ItemChange is what becomes of one item, or would.
type ItemChange struct {
	Kind   model.Kind
	Name   string
	Action string
	Fields []FieldChange
}

// In this order things are made, so that each finds what it needs.
const (
	rankPlace = iota
	rankImage
	rankGuest
	rankForward
)

// step is one item's change and how to carry it out.
type step struct {
	ItemChange
	rank int
	do   func(context.Context) ([]Operation, error)
}

// Apply makes everything in items so and removes nothing. All of it is judged
// before anything is changed; then networks, pools and images come before the
// guests that use them. Applying the same again changes nothing.
//
// await, unless nil, waits for an operation to end; with it an image is made
// before the guests made from it, without it they are refused until it is.
func (d *Door) Apply(ctx context.Context, by string, items []Item, dryRun bool, await func(context.Context, Operation) error) ([]ItemChange, []Operation, error) {
	steps := make([]step, 0, len(items))
	seen := map[model.Key]bool{}
	for i, it := range items {
		s, err := d.plan(by, it, items)
		if err != nil {
			return nil, nil, inManifest(i, err)
		}
		if key := (model.Key{Kind: s.Kind, Name: s.Name}); seen[key] {
			return nil, nil, inManifest(i, errs.Bad("name", key.String()+" is there twice", "keep one of them"))
		} else {
			seen[key] = true
		}
		steps = append(steps, s)
	}
	changes := make([]ItemChange, len(steps))
	for i, s := range steps {
		changes[i] = s.ItemChange
	}
	if dryRun {
		return changes, nil, nil
	}
	slices.SortStableFunc(steps, func(a, b step) int { return a.rank - b.rank })
	var all []Operation
	for _, s := range steps {
		if s.Action == ActionNone {
			continue
		}
		ops, err := s.do(ctx)
		all = append(all, ops...)
		if err != nil {
			return changes, all, err
		}
		for _, op := range ops {
			if s.rank >= rankGuest || await == nil {
				break
			}
			if err := await(ctx, op); err != nil {
				return changes, all, err
			}
		}
	}
	return changes, all, nil
}

// inManifest puts the number of a manifest, from 0, before the field that is
// wrong in it.
func inManifest(i int, err error) error {
	where := fmt.Sprintf("manifests[%d]", i)
	field, hint := where, ""
	for e := err; e != nil; {
		ours, ok := e.(*errs.Error)
		if !ok {
			break
		}
		if ours.Field != "" && field == where {
			field += "." + ours.Field
		}
		if hint == "" {
			hint = ours.Hint
		}
		e = ours.Err
	}
	return &errs.Error{Kind: errs.KindOf(err), Field: field, Ref: refOf(err), Msg: personal(err), Hint: hint, Err: err}
}

func (d *Door) plan(by string, it Item, all []Item) (step, error) {
	switch {
	case it.Network != nil:
		return d.planNetwork(by, *it.Network)
	case it.Pool != nil:
		return d.planPool(by, *it.Pool)
	case it.Image != nil:
		return d.planImage(by, *it.Image)
	case it.Guest != nil:
		return d.planGuest(by, *it.Guest, all)
	case it.Forward != nil:
		return d.planForward(by, *it.Forward, all)
	}
	return step{}, errs.Bad("kind", "is empty", "use guest, network, pool, forward or image")
}

// one wraps a verb that gives one receipt.
func one(do func(context.Context) (Operation, error)) func(context.Context) ([]Operation, error) {
	return func(ctx context.Context) ([]Operation, error) {
		op, err := do(ctx)
		if err != nil {
			return nil, err
		}
		return []Operation{op}, nil
	}
}

// fixed says that what exists cannot become what is asked.
func fixed(kind model.Kind, name, field string) error {
	return &errs.Error{Kind: errs.Conflict, Ref: string(kind) + "/" + name, Field: field, Msg: "cannot be changed once it exists", Hint: fmt.Sprintf("remove %s/%s first, or keep the value it has", kind, name)}
}

func (d *Door) planNetwork(by string, w NetworkWish) (step, error) {
	s := step{ItemChange: ItemChange{Kind: network.Kind, Name: w.Name, Action: ActionNone}, rank: rankPlace}
	wanted, err := d.networkSpec(w)
	if err != nil {
		return s, err
	}
	have, err := d.Tables.Networks.Get(w.Name)
	if err != nil {
		s.Action = ActionCreate
		s.do = one(func(ctx context.Context) (Operation, error) { return d.CreateNetwork(ctx, by, w) })
		return s, nil
	}
	switch {
	case w.Driver != "" && wanted.Driver != have.Spec.Driver:
		return s, fixed(network.Kind, w.Name, "driver")
	case w.IPv4 != "" && wanted.IPv4 != have.Spec.IPv4:
		return s, fixed(network.Kind, w.Name, "ipv4")
	case w.IPv6 != "" && wanted.IPv6 != have.Spec.IPv6:
		return s, fixed(network.Kind, w.Name, "ipv6")
	case w.NAT != nil && wanted.NAT != have.Spec.NAT:
		return s, fixed(network.Kind, w.Name, "nat")
	case w.Domain != "" && wanted.Domain != have.Spec.Domain:
		return s, fixed(network.Kind, w.Name, "domain")
	}
	return s, nil
}

func (d *Door) planPool(by string, w PoolItem) (step, error) {
	s := step{ItemChange: ItemChange{Kind: pool.Kind, Name: w.Name, Action: ActionNone}, rank: rankPlace}
	if err := d.checkPool(w.Name, w.Spec); err != nil {
		return s, err
	}
	have, err := d.Tables.Pools.Get(w.Name)
	switch {
	case err != nil:
		s.Action = ActionCreate
		s.do = one(func(ctx context.Context) (Operation, error) { return d.CreatePool(ctx, by, w.Name, w.Spec) })
	case have.Spec.Driver != w.Spec.Driver:
		return s, fixed(pool.Kind, w.Name, "driver")
	case w.Spec.Source != "" && have.Spec.Source != w.Spec.Source:
		return s, fixed(pool.Kind, w.Name, "source")
	case w.Spec.Size != 0 && have.Spec.Size != w.Spec.Size:
		return s, fixed(pool.Kind, w.Name, "size_bytes")
	}
	return s, nil
}

func (d *Door) planImage(by string, w ImageWish) (step, error) {
	name, spec, err := parseImage(w)
	s := step{ItemChange: ItemChange{Kind: image.Kind, Name: name, Action: ActionNone}, rank: rankImage}
	if err != nil {
		return s, err
	}
	if err := d.CheckSource(spec); err != nil {
		return s, err
	}
	have, err := d.Tables.Images.Get(name)
	s.do = one(func(ctx context.Context) (Operation, error) { return d.BuildImage(ctx, by, w) })
	switch {
	case err != nil:
		s.Action = ActionCreate
	case w.Rebuild, have.Status.Problem != nil:
		s.Action = ActionChange
	}
	return s, nil
}

// planForward allows a forward to a guest that the same file makes.
func (d *Door) planForward(by string, w ForwardItem, all []Item) (step, error) {
	s := step{ItemChange: ItemChange{Kind: forward.Kind, Action: ActionNone}, rank: rankForward}
	spec, err := ParsePublish("publish", w.Publish)
	if err != nil {
		return s, err
	}
	s.Name = ForwardName(spec)
	g, err := d.Tables.Guests.Get(w.Guest)
	if err != nil && !slices.ContainsFunc(all, func(o Item) bool { return o.Guest != nil && o.Guest.Name == w.Guest }) {
		return s, inField("guest", err, "see lodge ls")
	}
	if have, err := d.Tables.Forwards.Get(s.Name); err == nil && have.Spec.Guest == g.ID {
		if have.Spec.Target != spec.Target {
			return s, fixed(forward.Kind, s.Name, "publish")
		}
		return s, nil
	}
	if _, err := d.checkPublish("publish", "", []string{w.Publish}); err != nil {
		return s, err
	}
	s.Action = ActionCreate
	s.do = one(func(ctx context.Context) (Operation, error) { return d.CreateForward(ctx, by, w.Guest, w.Publish) })
	return s, nil
}

func (d *Door) planGuest(by string, w GuestItem, all []Item) (step, error) {
	s := step{ItemChange: ItemChange{Kind: guest.Kind, Name: w.Name, Action: ActionNone}, rank: rankGuest}
	if w.Count != 0 {
		return s, errs.Bad("count", "is not for files", "name each guest")
	}
	if !slices.Contains([]guest.Power{"", guest.On, guest.Off, guest.Held}, w.Power) {
		return s, errs.Bad("power", fmt.Sprintf("%q is not known", w.Power), "use on, off or paused")
	}
	r, err := there(d.Tables.Guests, guest.Kind, w.Name)
	switch {
	case errs.Is(err, errs.NotFound):
		return d.planNewGuest(by, w, all, s)
	case err != nil:
		return s, err
	}
	return d.planOldGuest(by, w, r, s)
}

func (d *Door) planNewGuest(by string, w GuestItem, all []Item, s step) (step, error) {
	s.Action = ActionCreate
	w.Start = w.Power != guest.Off
	s.do = func(ctx context.Context) ([]Operation, error) {
		op, err := d.CreateGuests(ctx, by, w.GuestWish)
		if err != nil {
			return nil, err
		}
		if w.Power != guest.Held {
			return []Operation{op}, nil
		}
		held, err := d.PauseGuest(ctx, by, w.Name)
		if err != nil {
			return []Operation{op}, err
		}
		return []Operation{op, held}, nil
	}
	_, err := d.planGuests(w.GuestWish)
	if err == nil || !made(w, all) {
		return s, err
	}
	// What it needs is made by the same file: judge the rest now, that then.
	if _, err := guestNames(w.GuestWish); err != nil {
		return s, err
	}
	spec := freshSpec(w.GuestWish)
	w.Patch.apply(&spec)
	return s, checkSpec(spec, d.Host)
}

// made reports whether a file makes something that w needs.
func made(w GuestItem, all []Item) bool {
	return slices.ContainsFunc(all, func(o Item) bool {
		switch {
		case o.Image != nil:
			name, _, err := parseImage(*o.Image)
			return err == nil && name == w.Image
		case o.Pool != nil:
			return o.Pool.Name == w.Pool
		case o.Network != nil:
			return slices.Contains(w.Networks, o.Network.Name)
		}
		return false
	})
}

func (d *Door) planOldGuest(by string, w GuestItem, r tables.GuestRecord, s step) (step, error) {
	if field := differs(w, r); field != "" {
		return s, fixed(guest.Kind, w.Name, field)
	}
	if w.Publish != nil {
		tidy, err := d.tidyPublish(r.ID, *w.Publish)
		if err != nil {
			return s, err
		}
		w.Publish = &tidy
	}
	var err error
	if s.Fields, err = w.Patch.changes(patchOf(r.Spec, r.Labels, d.PublishOf(r.ID))); err != nil {
		return s, err
	}
	patched := len(s.Fields) > 0
	spec := r.Spec
	w.Patch.apply(&spec)
	if err := d.checkChanged(w.Name, w.Patch, r.Spec.Disks, spec); err != nil {
		return s, err
	}
	power := w.Power != "" && w.Power != r.Spec.Power
	if power {
		s.Fields = append(s.Fields, FieldChange{Field: "power", From: quoted(r.Spec.Power), To: quoted(w.Power)})
	}
	if patched || power {
		s.Action = ActionChange
	}
	s.do = func(ctx context.Context) ([]Operation, error) {
		var ops []Operation
		if patched {
			op, err := d.SetGuest(ctx, by, w.Name, w.Patch, r.Generation)
			if err != nil {
				return ops, err
			}
			ops = append(ops, op)
		}
		if !power {
			return ops, nil
		}
		op, err := d.setPower(ctx, by, w.Name, w.Power)
		if err != nil {
			return ops, err
		}
		return append(ops, op), nil
	}
	return s, nil
}

func quoted(p guest.Power) json.RawMessage { return json.RawMessage(`"` + string(p) + `"`) }

// differs names the first field of w that a guest cannot change and that is
// not as it is.
func differs(w GuestItem, r tables.GuestRecord) string {
	var networks []string
	for _, n := range r.Spec.NICs {
		networks = append(networks, n.Network)
	}
	if networks == nil {
		networks = []string{none}
	}
	switch {
	case w.Image != r.Spec.Image:
		return "image"
	case w.Model != "" && w.Model != r.Spec.Model:
		return "model"
	case w.Pool != "" && w.Pool != r.Spec.Pool:
		return "pool"
	case w.Networks != nil && !slices.Equal(w.Networks, networks):
		return "networks"
	case w.Ephemeral != r.Spec.Ephemeral:
		return "ephemeral"
	}
	return ""
}

// tidyPublish writes forwards as PublishOf does, so that they can be compared.
func (d *Door) tidyPublish(id string, all []string) ([]string, error) {
	specs, err := d.checkPublish("publish", id, all)
	if err != nil {
		return nil, err
	}
	tidy := make([]string, 0, len(specs))
	for _, f := range specs {
		tidy = append(tidy, Publish(f))
	}
	slices.SortFunc(tidy, strings.Compare)
	return tidy, nil
}

// PublishOf lists the forwards of a guest as a person writes them, sorted.
func (d *Door) PublishOf(id string) []string {
	var all []string
	for _, f := range d.Tables.Forwards.List() {
		if f.Spec.Guest == id {
			all = append(all, Publish(f.Spec))
		}
	}
	slices.SortFunc(all, strings.Compare)
	return all
}

func (d *Door) setPower(ctx context.Context, by, name string, p guest.Power) (Operation, error) {
	switch p {
	case guest.Off:
		return d.StopGuest(ctx, by, name, false, nil)
	case guest.Held:
		r, err := d.Tables.Guests.Get(name)
		if err == nil && !running(&r) { // it boots first, and halts as soon as it runs
			_, err = d.StartGuest(ctx, by, name)
		}
		if err != nil {
			return Operation{}, err
		}
		return d.PauseGuest(ctx, by, name)
	}
	return d.StartGuest(ctx, by, name)
}
