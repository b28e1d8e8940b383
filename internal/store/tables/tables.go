// Package tables names every table of the house in one place, so that the door
// through which specs are written and the reconcilers that answer them read
// the same twins.
package tables

import (
	"lodge/internal/model/forward"
	"lodge/internal/model/guest"
	"lodge/internal/model/image"
	"lodge/internal/model/kernel"
	"lodge/internal/model/network"
	"lodge/internal/model/operation"
	"lodge/internal/model/pool"
	"lodge/internal/model/snapshot"
	"lodge/internal/store"
)

// Tables is all of them. A holder's record has the id of its guest, which is
// also its name; a lease's name is "NETWORK/ADDRESS", a snapshot's "GUEST-ID/NAME".
type Tables struct {
	Guests     *store.Table[guest.Spec, guest.Status]
	Holders    *store.Table[guest.Holder, struct{}]
	Images     *store.Table[image.Spec, image.Status]
	Kernels    *store.Table[kernel.Spec, kernel.Status]
	Pools      *store.Table[pool.Spec, pool.Status]
	Networks   *store.Table[network.Spec, network.Status]
	Leases     *store.Table[network.LeaseSpec, struct{}]
	Forwards   *store.Table[forward.Spec, forward.Status]
	Snapshots  *store.Table[snapshot.Spec, snapshot.Status]
	Operations *store.Table[operation.Spec, operation.Status]
}

// Open loads every table of s. It may be called once for each store: a table
// follows its store until the store is closed.
func Open(s *store.Store) *Tables {
	return &Tables{
		Guests:     store.NewTable[guest.Spec, guest.Status](s, guest.Kind),
		Holders:    store.NewTable[guest.Holder, struct{}](s, guest.HolderKind),
		Images:     store.NewTable[image.Spec, image.Status](s, image.Kind),
		Kernels:    store.NewTable[kernel.Spec, kernel.Status](s, kernel.Kind),
		Pools:      store.NewTable[pool.Spec, pool.Status](s, pool.Kind),
		Networks:   store.NewTable[network.Spec, network.Status](s, network.Kind),
		Leases:     store.NewTable[network.LeaseSpec, struct{}](s, network.Lease),
		Forwards:   store.NewTable[forward.Spec, forward.Status](s, forward.Kind),
		Snapshots:  store.NewTable[snapshot.Spec, snapshot.Status](s, snapshot.Kind),
		Operations: store.NewTable[operation.Spec, operation.Status](s, operation.Kind),
	}
}

// GuestRecord and its kin are what the tables hold.
type (
	GuestRecord     = store.Record[guest.Spec, guest.Status]
	ImageRecord     = store.Record[image.Spec, image.Status]
	KernelRecord    = store.Record[kernel.Spec, kernel.Status]
	PoolRecord      = store.Record[pool.Spec, pool.Status]
	NetworkRecord   = store.Record[network.Spec, network.Status]
	SnapshotRecord  = store.Record[snapshot.Spec, snapshot.Status]
	ForwardRecord   = store.Record[forward.Spec, forward.Status]
	OperationRecord = store.Record[operation.Spec, operation.Status]
)
