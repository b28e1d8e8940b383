// Package admission is the one door through which specs are written: by people
// now, by the autonomic controller later. A verb checks a wish, edits specs and
// issues the receipt of it in one transaction of the store, and does no work
// itself: that is the reconcilers', which wake by the write.
package admission

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"lodge/internal/base/errs"
	"lodge/internal/base/ids"
	"lodge/internal/model"
	"lodge/internal/model/guest"
	"lodge/internal/model/image"
	"lodge/internal/model/operation"
	"lodge/internal/store"
	"lodge/internal/store/tables"
)

// Host is what the machine has to give.
type Host struct {
	CPUs         int
	Memory       uint64 // bytes
	Architecture string // as images name it: "amd64"; empty: any will do
}

// Engine is what the guests of one engine can be made of, and what can be done
// with them.
type Engine struct {
	Name      string
	Model     guest.Model
	Form      guest.Form // of the writable layer
	Kernel    string     // kind of kernel that its guests boot; empty: the host's own
	Machines  []Machine  // that may be chosen; the first is what one gets otherwise
	CPUModels []string   // that may be chosen
	Features  []string   // of processors, that may be added and taken away
	Pause     bool
	Plug      bool // disks and network cards while the guest runs
	Disk      bool // boots disks with a boot loader of their own
	Save      bool // keeps a guest's memory
	Renew     bool // gives a running copy of a guest an identity of its own
}

// Machine is a kind of machine that guests may have.
type Machine struct {
	Name     string
	Firmware []string // that it boots disks with
	TPM      bool
}

// Driver is a pool or network driver that may be asked for.
type Driver struct {
	Name    string
	Missing string // why it cannot work here, or empty
	Hint    string
}

// Options is what the door needs to know to judge a wish. Functions may be
// called from any goroutine.
type Options struct {
	Store  *store.Store
	Tables *tables.Tables
	Host   Host
	// Engine returns what runs guests of a model here: the engine called name,
	// or if that is empty the preferred one. If there is none, the error says
	// why.
	Engine         func(m guest.Model, name string) (Engine, error)
	PoolDrivers    func() []Driver
	NetworkDrivers func() []Driver
	// CheckSource says whether the image source can make what is asked.
	CheckSource func(image.Spec) error
	// CheckKernel says whether the kernel called so can be built here.
	CheckKernel func(name string) error
	// CheckDisc says whether guests can be given a file of the host as a disc.
	CheckDisc func(path string) error
	// PortFree returns nil if nothing of the host listens there.
	PortFree func(protocol string, listen netip.Addr, port uint16) error
	// HostPrefixes is what the host itself can reach directly, which a new
	// network must stay clear of.
	HostPrefixes func() []netip.Prefix
	Now          func() time.Time // nil: time.Now
	NewID        func() string    // nil: ids.New
	// TakeStandby returns the id of a guest that runs already and can be one of
	// this spec with cards in these networks; nil: there is none.
	TakeStandby func(ctx context.Context, s guest.Spec, networks []string) (id string, ok bool)
}

// Operation is the receipt of a verb.
type Operation = tables.OperationRecord

// Door writes specs. It is safe for concurrent use.
type Door struct {
	Options
	addresses addresses
}

// New returns a door to the tables of o.
func New(o Options) *Door {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.NewID == nil {
		o.NewID = ids.New
	}
	return &Door{Options: o, addresses: addresses{
		leases: o.Tables.Leases, reserved: map[string]struct{}{}, next: map[string]uint64{}, mu: &sync.Mutex{},
	}}
}

// attempts is how often a verb is tried again when somebody else changed the
// record in between. Reconcilers write statuses only, so a second try nearly
// always goes through.
const attempts = 10

// transact runs build, which fills a transaction and names the subjects, and
// commits it with a receipt. build is called again when a record it read has
// changed meanwhile.
func (d *Door) transact(ctx context.Context, by, verb string, build func(*store.Tx) ([]operation.Subject, error)) (Operation, error) {
	var last error
	for range attempts {
		tx := d.Store.Begin()
		subjects, err := build(tx)
		if err != nil {
			return Operation{}, err
		}
		op := d.receipt(tx, by, verb, subjects)
		_, err = tx.Commit(ctx)
		if err == nil {
			return d.Tables.Operations.ByID(op.ID)
		}
		if !errs.Is(err, errs.Conflict) {
			return Operation{}, err
		}
		last = err
	}
	return Operation{}, last
}

func (d *Door) receipt(tx *store.Tx, by, verb string, subjects []operation.Subject) Operation {
	id := d.NewID()
	return d.Tables.Operations.CreateIn(tx, id, operation.Spec{By: by, Verb: verb, Subjects: subjects}, store.WithID(id))
}

func subject(kind model.Kind, m model.Meta) operation.Subject {
	return operation.Subject{Key: model.Key{Kind: kind, Name: m.Name}, ID: m.ID, Generation: m.Generation}
}

// gone is the subject of a removal.
func gone(kind model.Kind, m model.Meta) operation.Subject {
	s := subject(kind, m)
	s.Gone = true
	return s
}

// there returns the record named, refusing one that is being removed.
func there[S, T any](t *store.Table[S, T], kind model.Kind, name string) (store.Record[S, T], error) {
	r, err := t.Get(name)
	if err != nil {
		return r, err
	}
	if r.Deleting != nil {
		return r, &errs.Error{Kind: errs.Conflict, Ref: model.Key{Kind: kind, Name: name}.String(), Msg: "is being removed", Hint: "wait until it is gone"}
	}
	return r, nil
}

// remove marks a record for its owner to tear down.
func remove[S, T any](ctx context.Context, d *Door, by string, t *store.Table[S, T], kind model.Kind, name string, check func(store.Record[S, T]) error) (Operation, error) {
	return d.transact(ctx, by, string(kind)+".remove", func(tx *store.Tx) ([]operation.Subject, error) {
		r, err := t.Get(name)
		if err != nil {
			return nil, err
		}
		if r.Deleting == nil {
			if err := check(r); err != nil {
				return nil, err
			}
			now := d.Now()
			r.Deleting = &now
			r = t.UpdateIn(tx, r)
		}
		return []operation.Subject{gone(kind, r.Meta)}, nil
	})
}

// Cancel asks that an operation be waited for no longer. What it has already
// brought about stays.
func (d *Door) Cancel(ctx context.Context, id string) (Operation, error) {
	op, err := d.Tables.Operations.ByID(id)
	if err != nil {
		return op, err
	}
	if op.Status.State.Final() {
		return op, &errs.Error{Kind: errs.Conflict, Ref: "operation/" + id, Msg: "has ended already"}
	}
	return d.Tables.Operations.Update(ctx, op.Name, func(r *Operation) error {
		r.Spec.Cancel = true
		return nil
	})
}
