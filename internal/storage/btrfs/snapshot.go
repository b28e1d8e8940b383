package btrfs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
	"lodge/internal/base/fsx"
	"lodge/internal/storage"
)

// heldAttr is set on a snapshot's folder: the subvolume that it was taken of,
// and the bytes which that had written by then.
const heldAttr = "trusted.lodge.held"

func (p *btrfsPool) incoming() storage.Incoming {
	return storage.Incoming(filepath.Join(p.root, "incoming"))
}

// SnapshotPath implements storage.Snapshots.
func (p *btrfsPool) SnapshotPath(volume, name string) string {
	return filepath.Join(p.root, "snapshots", volume, name)
}

// Snapshots implements storage.Snapshots.
func (p *btrfsPool) Snapshots(_ context.Context, volume string) ([]string, error) {
	if err := storage.CheckVolume(volume); err != nil {
		return nil, err
	}
	names, err := storage.List(filepath.Join(p.root, "snapshots", volume))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return names, storage.Failed("volume.snapshots", "volume/"+volume, err)
}

// Snapshot implements storage.Snapshots, in one act of the file system.
func (p *btrfsPool) Snapshot(_ context.Context, volume, name string) error {
	if err := storage.CheckSnapshot(volume, name); err != nil {
		return err
	}
	p.mu.RLock()
	defer p.mu.RUnlock()
	p.shared.Lock()
	defer p.shared.Unlock()
	if isSubvolume(p.SnapshotPath(volume, name)) {
		return nil
	}
	err := p.snapshot(volume, name)
	return storage.Failed("volume.snapshot", "volume/"+volume, err)
}

func (p *btrfsPool) snapshot(volume, name string) (err error) {
	quota, err := p.QuotaOf(volume)
	if err != nil {
		return err
	}
	id, err := subvolumeID(p.Path(volume))
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(p.SnapshotPath(volume, name)), 0o700); err != nil {
		return err
	}
	fresh, lock, err := p.incoming().New()
	if err != nil {
		return err
	}
	defer func() { err = errs.Also(err, p.incoming().Done(fresh, lock, p.discard)) }()
	if err := snapshotSubvolume(p.Path(volume), fresh); err != nil {
		return err
	}
	used, err := p.qgroupNumber(volume, "referenced")
	if err != nil {
		return err
	}
	if err := unix.Setxattr(fresh, heldAttr, fmt.Appendf(nil, "%d %d", id, used), 0); err != nil {
		return err
	}
	// The larger limit comes first: if all ends here, the next Create mends it.
	if err := p.limit(volume, quota, used); err != nil {
		return err
	}
	return p.place(fresh, p.SnapshotPath(volume, name))
}

// place renames a subvolume that is whole to where it belongs, durably.
func (p *btrfsPool) place(fresh, path string) error {
	if err := unix.Renameat2(unix.AT_FDCWD, fresh, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE); err != nil {
		return &os.LinkError{Op: "rename", Old: fresh, New: path, Err: err}
	}
	return fsx.SyncDir(filepath.Dir(path))
}

// heldBySnapshots returns how much of what counts against the quota of volume,
// which is subvolume id now, is there for the sake of its snapshots at most.
// A simple quota counts what a subvolume wrote for as long as anybody holds it:
// without this a guest that only rewrites its files would fill its disk.
func (p *btrfsPool) heldBySnapshots(volume string, id uint64) (uint64, error) {
	if p.quota != simple {
		return 0, nil // full quota groups count what the volume refers to now
	}
	names, err := p.Snapshots(context.Background(), volume)
	var most uint64
	for _, name := range names {
		var b [64]byte
		n, xerr := unix.Getxattr(p.SnapshotPath(volume, name), heldAttr, b[:])
		if errors.Is(xerr, unix.ENOENT) {
			continue // removed meanwhile
		}
		var of, used uint64
		if xerr == nil {
			_, xerr = fmt.Sscanf(string(b[:n]), "%d %d", &of, &used)
		}
		err = cmp.Or(err, xerr)
		if of == id {
			most = max(most, used)
		}
	}
	return most, err
}

// RemoveSnapshot implements storage.Snapshots.
func (p *btrfsPool) RemoveSnapshot(_ context.Context, volume, name string) error {
	if err := storage.CheckSnapshot(volume, name); err != nil {
		return err
	}
	p.shared.Lock()
	defer p.shared.Unlock()
	err := p.removeSnapshot(volume, name)
	p.wake()
	return storage.Failed("volume.snapshot.remove", "volume/"+volume, err)
}

func (p *btrfsPool) removeSnapshot(volume, name string) error {
	quota, err := p.QuotaOf(volume)
	there := err == nil
	if err := p.discard(p.SnapshotPath(volume, name)); err != nil {
		return err
	}
	err = os.Remove(filepath.Dir(p.SnapshotPath(volume, name)))
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
		return err
	}
	if !there {
		return nil // the volume went first
	}
	return p.limit(volume, quota, 0)
}

// Restore implements storage.Snapshots: a copy of the snapshot changes places
// with the volume.
func (p *btrfsPool) Restore(_ context.Context, volume, name string) error {
	if err := storage.CheckSnapshot(volume, name); err != nil {
		return err
	}
	p.mu.RLock()
	defer p.mu.RUnlock()
	p.shared.Lock()
	defer p.shared.Unlock()
	return storage.Failed("volume.restore", "volume/"+volume, p.restore(volume, name))
}

func (p *btrfsPool) restore(volume, name string) (err error) {
	quota, err := p.QuotaOf(volume)
	if err != nil {
		return err
	}
	fresh, lock, err := p.incoming().New()
	if err != nil {
		return err
	}
	defer func() {
		err = errs.Also(err, p.incoming().Done(fresh, lock, p.discard))
		p.wake()
	}()
	if err := snapshotSubvolume(p.SnapshotPath(volume, name), fresh); err != nil {
		return err
	}
	if quota != 0 {
		id, err := subvolumeID(fresh)
		if err == nil {
			err = limitSubvolume(p.root, id, quota)
		}
		if err != nil {
			return err
		}
	}
	if err := unix.Renameat2(unix.AT_FDCWD, fresh, unix.AT_FDCWD, p.Path(volume), unix.RENAME_EXCHANGE); err != nil {
		return &os.LinkError{Op: "exchange", Old: fresh, New: p.Path(volume), Err: err}
	}
	return fsx.SyncDir(filepath.Dir(p.Path(volume)))
}

// Clone implements storage.Snapshots.
func (p *btrfsPool) Clone(_ context.Context, from, snapshot, to string) error {
	if err := storage.CheckVolume(to); err != nil {
		return err
	}
	source := p.Path(from)
	if err := storage.CheckVolume(from); err != nil {
		return err
	}
	if snapshot != "" {
		if err := storage.CheckSnapshot(from, snapshot); err != nil {
			return err
		}
		source = p.SnapshotPath(from, snapshot)
	}
	p.mu.RLock()
	defer p.mu.RUnlock()
	if isSubvolume(p.Path(to)) {
		return nil
	}
	return storage.Failed("volume.clone", "volume/"+from, p.clone(source, p.Path(to)))
}

func (p *btrfsPool) clone(source, to string) (err error) {
	if err := p.spaceUnder(); err != nil {
		return err
	}
	fresh, lock, err := p.incoming().New()
	if err != nil {
		return err
	}
	defer func() { err = errs.Also(err, p.incoming().Done(fresh, lock, p.discard)) }()
	if err := snapshotSubvolume(source, fresh); err != nil {
		return err
	}
	if err := p.place(fresh, to); err != nil && !errors.Is(err, unix.EEXIST) { // somebody made the same clone meanwhile
		return err
	}
	return nil
}
