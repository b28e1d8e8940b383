// Package storage is the contract of a storage driver: one folder below this
// one for each, one line in daemon/drivers.go.
package storage

import (
	"context"

	"lodge/internal/model/pool"
)

// Driver opens pools of one kind.
type Driver interface {
	Info() Info
	// Open makes the pool ready, creating what spec says Lodge owns if it is
	// missing. It may be called again after a crash. dir is the pool's own
	// place in the data directory.
	Open(ctx context.Context, name string, spec pool.Spec, dir string) (Pool, error)
}

// Volumes are writable directories, one for each guest, named by the guest's
// id. All methods are idempotent and safe for concurrent use.
type Volumes interface {
	Volumes(ctx context.Context) ([]string, error)
	// Create makes an empty volume with "upper" (mode 0755) and "work" (mode
	// 0700) in it, and sets its quota in bytes (0: none).
	Create(ctx context.Context, volume string, quota uint64) error
	// Path returns where the volume's directory is. It does no I/O.
	Path(volume string) string
	SetQuota(ctx context.Context, volume string, quota uint64) error
	Usage(ctx context.Context, volume string) (used uint64, err error)
	// Remove returns once the volume and its snapshots are out of the way;
	// freeing their space may go on behind.
	Remove(ctx context.Context, volume string) error
}

// Snapshots are moments that volumes can go back to. All methods are idempotent:
// a snapshot that is there already is as good as a new one. They happen wholly
// or not at all, even when the host goes down.
type Snapshots interface {
	// Snapshot keeps what the volume holds at one moment. Nothing may write to
	// the volume meanwhile; where taking it is one act of the file system, it
	// returns at once.
	Snapshot(ctx context.Context, volume, name string) error
	// Restore makes the volume what it was then, in place of what it is now;
	// its quota stays. Nobody may use the volume.
	Restore(ctx context.Context, volume, name string) error
	RemoveSnapshot(ctx context.Context, volume, name string) error
	Snapshots(ctx context.Context, volume string) ([]string, error)
	// SnapshotPath returns where a snapshot's directory is. It does no I/O;
	// what is in it must not be changed.
	SnapshotPath(volume, name string) string
	// Clone makes a volume of what another holds, or held when a snapshot of
	// it was taken. The new one has no quota; Create gives it one. A volume
	// that is there already is left as it is.
	Clone(ctx context.Context, from, snapshot, to string) error
}

// Pool is an open pool.
type Pool interface {
	Volumes
	Snapshots
	Space(ctx context.Context) (Space, error)
	// Quota says how a quota is kept: "enforced (squota)", "soft: counted,
	// not enforced".
	Quota() string
	Close() error // what is mounted stays mounted: guests may run on it
	// Destroy unmounts the pool and removes what Lodge made for it. It fails
	// with errs.Conflict while a volume is left.
	Destroy(ctx context.Context) error
}

// Unmounter is what a pool with a mount of its own also is.
type Unmounter interface {
	// Unmount takes the mount away, when no guest runs on it; the volumes
	// stay. Call it after Close.
	Unmount(ctx context.Context) error
}

// Gauged is what a pool also is whose quotas the kernel counts where others can
// read them.
type Gauged interface {
	// Gauges says where the counts of a volume are, as long as the pool is
	// open and the volume is there.
	Gauges(volume string) (Gauges, error)
}

// Gauges are paths of files that each hold one decimal number of bytes.
type Gauges struct {
	Used  []string // their sum is what counts against the quota, at once
	Limit string   // the quota; 0 and the largest numbers mean that there is none
}

// Space is a pool's size in bytes.
type Space struct {
	Total, Used, Free uint64
}

// Info describes a driver.
type Info struct {
	Name    string
	Missing string // why it cannot work on this host, or empty
	Hint    string // what would cure that
	Quota   bool   // quotas are enforced, not only counted
}
