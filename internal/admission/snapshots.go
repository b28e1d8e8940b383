package admission

import (
	"cmp"
	"context"
	"fmt"
	"maps"

	"lodge/internal/base/errs"
	"lodge/internal/model"
	"lodge/internal/model/guest"
	"lodge/internal/model/operation"
	"lodge/internal/model/snapshot"
	"lodge/internal/store"
	"lodge/internal/store/tables"
)

// What a guest can have of snapshots.
const (
	maxSnapshots = 100
	maxNote      = 1000 // bytes
)

// SnapshotWish asks for a snapshot of a guest.
type SnapshotWish struct {
	Name   string // empty: by the time
	Note   string
	Memory bool // with what the guest is doing
}

// CreateSnapshot keeps what a guest is at this moment.
func (d *Door) CreateSnapshot(ctx context.Context, by, guestName string, w SnapshotWish) (Operation, error) {
	if len(w.Note) > maxNote {
		return Operation{}, errs.Bad("note", "is too long", fmt.Sprintf("write at most %d bytes", maxNote))
	}
	name := cmp.Or(w.Name, "at-"+d.Now().UTC().Format("20060102-150405"))
	if err := model.CheckName("name", name); err != nil {
		return Operation{}, err
	}
	return d.transact(ctx, by, "snapshot.create", func(tx *store.Tx) ([]operation.Subject, error) {
		g, err := there(d.Tables.Guests, guest.Kind, guestName)
		if err != nil {
			return nil, err
		}
		if err := d.checkSnapshot(g, name, w.Memory); err != nil {
			return nil, err
		}
		r := d.Tables.Snapshots.CreateIn(tx, snapshot.RecordName(g.ID, name), snapshot.Spec{
			Guest: g.ID, Name: name, Pool: g.Spec.Pool, Note: w.Note, Memory: w.Memory,
		})
		return []operation.Subject{subject(snapshot.Kind, r.Meta)}, nil
	})
}

func (d *Door) checkSnapshot(g tables.GuestRecord, name string, memory bool) error {
	if _, err := d.Tables.Snapshots.Get(snapshot.RecordName(g.ID, name)); err == nil {
		return &errs.Error{Kind: errs.Exists, Ref: "guest/" + g.Name, Field: "name", Msg: "has a snapshot " + name + " already",
			Hint: fmt.Sprintf("choose another name, or: lodge snapshot rm %s %s", g.Name, name)}
	}
	if len(d.SnapshotsOf(g.ID)) >= maxSnapshots {
		return &errs.Error{Kind: errs.Conflict, Ref: "guest/" + g.Name, Msg: fmt.Sprintf("has %d snapshots, which is the most", maxSnapshots), Hint: "remove some: lodge snapshot ls " + g.Name}
	}
	if !memory {
		return nil
	}
	if !running(&g) {
		return &errs.Error{Kind: errs.Conflict, Ref: "guest/" + g.Name, Field: "memory", Msg: "does not run, so it has no memory to keep", Hint: "leave out --memory, or: lodge start " + g.Name}
	}
	_, err := d.saving(g)
	return err
}

// saving returns the engine of a guest whose memory can be kept, or says that it
// cannot.
func (d *Door) saving(g tables.GuestRecord) (Engine, error) {
	model, name := (guest.Guest{Spec: g.Spec, Status: g.Status}).InForce()
	if up(&g) {
		name = cmp.Or(g.Status.Engine, name)
	}
	e, err := d.Engine(model, name)
	if err != nil {
		return e, err
	}
	if !e.Save {
		return e, &errs.Error{Kind: errs.Unsupported, Ref: "guest/" + g.Name, Msg: fmt.Sprintf("is run by engine %s, which cannot keep its memory", e.Name),
			Hint: "only virtual machines can: lodge model " + g.Name + " vm"}
	}
	return e, nil
}

// SnapshotsOf lists the snapshots of the guest with the given id.
func (d *Door) SnapshotsOf(guestID string) (all []tables.SnapshotRecord) {
	for _, s := range d.Tables.Snapshots.List() {
		if s.Spec.Guest == guestID {
			all = append(all, s)
		}
	}
	return all
}

// Snapshot returns a guest and the snapshot of it called name.
func (d *Door) Snapshot(guestName, name string) (tables.GuestRecord, tables.SnapshotRecord, error) {
	g, err := d.Tables.Guests.Get(guestName)
	if err != nil {
		return g, tables.SnapshotRecord{}, err
	}
	s, err := d.Tables.Snapshots.Get(snapshot.RecordName(g.ID, name))
	if err != nil {
		return g, s, &errs.Error{Kind: errs.NotFound, Ref: "guest/" + guestName, Msg: "has no snapshot " + name, Hint: "lodge snapshot ls " + guestName, Err: err}
	}
	return g, s, nil
}

// usable returns a snapshot that can be gone back to.
func (d *Door) usable(guestName, name string) (tables.GuestRecord, tables.SnapshotRecord, error) {
	g, s, err := d.Snapshot(guestName, name)
	ref := "guest/" + guestName
	switch {
	case err != nil:
	case g.Deleting != nil || s.Deleting != nil:
		err = &errs.Error{Kind: errs.Conflict, Ref: ref, Msg: "snapshot " + name + " is being removed", Hint: "lodge snapshot ls " + guestName}
	case s.Status.Taken == nil:
		err = &errs.Error{Kind: errs.Conflict, Ref: ref, Msg: "snapshot " + name + " is not taken yet", Hint: fmt.Sprintf("lodge snapshot show %s %s", guestName, name)}
	}
	return g, s, err
}

// RemoveSnapshot asks that a snapshot be no more.
func (d *Door) RemoveSnapshot(ctx context.Context, by, guestName, name string) (Operation, error) {
	return d.transact(ctx, by, "snapshot.remove", func(tx *store.Tx) ([]operation.Subject, error) {
		_, s, err := d.Snapshot(guestName, name)
		if err != nil {
			return nil, err
		}
		for _, g := range d.Tables.Guests.List() {
			whole := guest.Guest{Spec: g.Spec, Status: g.Status}
			if whole.CloneWanted() && g.Spec.Clone.Snapshot == s.ID || whole.RestoreWanted() && g.Spec.Restore.Snapshot == s.ID {
				return nil, &errs.Error{Kind: errs.Conflict, Ref: "guest/" + g.Name, Msg: "is being made of snapshot " + name, Hint: "wait until that is done: lodge op ls"}
			}
		}
		if s.Deleting == nil {
			now := d.Now()
			s.Deleting = &now
			s = d.Tables.Snapshots.UpdateIn(tx, s)
		}
		return []operation.Subject{gone(snapshot.Kind, s.Meta)}, nil
	})
}

// removeSnapshotsIn removes the snapshots of a guest that goes; without force it
// is refused while there are any.
func (d *Door) removeSnapshotsIn(tx *store.Tx, g tables.GuestRecord, force bool) error {
	all := d.SnapshotsOf(g.ID)
	if len(all) > 0 && !force && g.Deleting == nil {
		return &errs.Error{Kind: errs.Conflict, Ref: "guest/" + g.Name, Msg: fmt.Sprintf("has %d snapshots, which go with it", len(all)),
			Hint: fmt.Sprintf("see lodge snapshot ls %s, then: lodge rm --force %s", g.Name, g.Name)}
	}
	for _, s := range all {
		if s.Deleting == nil {
			now := d.Now()
			s.Deleting = &now
			d.Tables.Snapshots.UpdateIn(tx, s)
		}
	}
	return nil
}

// RestoreGuest takes a guest back to a snapshot. With start it runs afterwards:
// from the memory in the snapshot, if there is one that its model can use. A
// guest that runs is taken down only with start.
func (d *Door) RestoreGuest(ctx context.Context, by, guestName, name string, start bool) (Operation, error) {
	return d.transact(ctx, by, "guest.restore", func(tx *store.Tx) ([]operation.Subject, error) {
		g, s, err := d.usable(guestName, name)
		if err != nil {
			return nil, err
		}
		if running(&g) && !start {
			return nil, &errs.Error{Kind: errs.Conflict, Ref: "guest/" + guestName, Msg: "is running; what it did since would be lost",
				Hint: fmt.Sprintf("stop it first, or take it down and start it again: lodge snapshot restore %s %s --start", guestName, name)}
		}
		memory := s.Status.Taken.Memory
		if memory {
			_, err := d.saving(g)
			memory = err == nil
		}
		wish := int64(1)
		if g.Spec.Restore != nil {
			wish = g.Spec.Restore.Wish + 1
		}
		g.Spec.Restore = &guest.RestoreOf{Wish: wish, Snapshot: s.ID, Memory: memory}
		switch {
		case start:
			g.Spec.Power, g.Spec.Force, g.Spec.Within = guest.On, false, 0
			g.Spec.Boots++
		case memory:
			g.Spec.Power = guest.Saved
		default:
			g.Spec.Power = guest.Off
		}
		r := d.Tables.Guests.UpdateIn(tx, g)
		return []operation.Subject{guestSubject(r)}, nil
	})
}

// SaveGuest keeps the memory of a guest that runs and switches it off; the next
// start goes on from there.
func (d *Door) SaveGuest(ctx context.Context, by, name string) (Operation, error) {
	return d.edit(ctx, by, "guest.save", name, func(_ *store.Tx, r *tables.GuestRecord) error {
		if r.Status.Saved && r.Spec.Power == guest.Saved {
			return nil
		}
		if !running(r) {
			return notRunning(name)
		}
		if _, err := d.saving(*r); err != nil {
			return err
		}
		r.Spec.Power, r.Spec.Force = guest.Saved, false
		return nil
	})
}

// CloneWish asks for a guest that is like another.
type CloneWish struct {
	Name     string
	Snapshot string // empty: as the other is now
	Running  bool   // it goes on from where the other was
	Start    bool
	Count    int // more than 0: make this many, named Name-1, Name-2, ...
}

// CloneGuest makes a guest of another's private data, or w.Count of them, with a
// name and addresses of its own. Ports of the host keep leading to the other.
func (d *Door) CloneGuest(ctx context.Context, by, from string, w CloneWish) (Operation, error) {
	names, err := guestNames(GuestWish{Name: w.Name, Count: w.Count})
	if err != nil {
		return Operation{}, err
	}
	for _, n := range names {
		if err := d.unnamed(n); err != nil {
			return Operation{}, err
		}
	}
	g, err := there(d.Tables.Guests, guest.Kind, from)
	if err != nil {
		return Operation{}, err
	}
	of, err := d.checkClone(g, w)
	if err != nil {
		return Operation{}, err
	}
	if len(names) > 1 && of.Snapshot == "" {
		of.Group = d.NewID()
	}
	p := &guestPlan{names: names, spec: cloneSpec(g, of, w.Start || w.Running), labels: maps.Clone(g.Labels)}
	defer p.free()
	networks := []string{"none"}
	if len(g.Spec.NICs) > 0 {
		networks = nil
		for _, n := range g.Spec.NICs {
			networks = append(networks, n.Network)
		}
	}
	if err := d.findNetworks(networks, p); err != nil {
		return Operation{}, err
	}
	return d.createPlanned(ctx, by, "guest.clone", p)
}

// checkClone says whether g can be cloned as asked.
func (d *Door) checkClone(g tables.GuestRecord, w CloneWish) (guest.CloneOf, error) {
	of := guest.CloneOf{Guest: g.ID, Memory: w.Running}
	if w.Snapshot != "" {
		_, s, err := d.usable(g.Name, w.Snapshot)
		if err != nil {
			return of, err
		}
		of.Snapshot = s.ID
		if w.Running && !s.Status.Taken.Memory {
			return of, &errs.Error{Kind: errs.Conflict, Ref: "guest/" + g.Name, Field: "running", Msg: "snapshot " + w.Snapshot + " was taken without memory", Hint: "leave out --running, or use one that was taken with --memory"}
		}
	} else if w.Running && !running(&g) {
		return of, notRunning(g.Name)
	}
	if !w.Running {
		return of, nil
	}
	if g.Spec.Hardware.TPM {
		return of, &errs.Error{Kind: errs.Unsupported, Ref: "guest/" + g.Name, Field: "running",
			Msg: "has a security module (TPM), whose secrets the clone would have too", Hint: "leave out --running: the clone boots with a module of its own"}
	}
	e, err := d.saving(g)
	if err == nil && !e.Renew {
		err = &errs.Error{Kind: errs.Unsupported, Ref: "guest/" + g.Name, Field: "running", Msg: fmt.Sprintf("engine %s cannot give a running guest another identity", e.Name), Hint: "leave out --running"}
	}
	return of, err
}

// cloneSpec is the spec of a clone of g.
func cloneSpec(g tables.GuestRecord, of guest.CloneOf, start bool) guest.Spec {
	s := g.Spec
	s.Model, s.Engine = (guest.Guest{Spec: g.Spec, Status: g.Status}).InForce()
	s.Models, s.Restore, s.Clone, s.NICs = 0, nil, &of, nil
	s.Power, s.Boots, s.Force, s.Within = guest.Off, 0, false, 0
	if start {
		s.Power, s.Boots = guest.On, 1
	}
	return s
}
