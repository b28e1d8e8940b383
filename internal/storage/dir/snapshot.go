package dir

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
	"lodge/internal/base/fsx"
	"lodge/internal/base/trees"
	"lodge/internal/storage"
)

func (p *dirPool) incoming() storage.Incoming { return storage.Incoming(p.sub("incoming")) }

// SnapshotPath implements storage.Snapshots.
func (p *dirPool) SnapshotPath(volume, name string) string {
	return filepath.Join(p.sub("snapshots"), volume, name)
}

// Snapshots implements storage.Snapshots.
func (p *dirPool) Snapshots(_ context.Context, volume string) ([]string, error) {
	if err := storage.CheckVolume(volume); err != nil {
		return nil, err
	}
	names, err := storage.List(filepath.Join(p.sub("snapshots"), volume))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return names, storage.Failed("volume.snapshots", "volume/"+volume, err)
}

// Snapshot implements storage.Snapshots by a copy, which shares its content
// with the volume where the file system can.
func (p *dirPool) Snapshot(ctx context.Context, volume, name string) error {
	if err := storage.CheckSnapshot(volume, name); err != nil {
		return err
	}
	to := p.SnapshotPath(volume, name)
	if err := p.mustExist(volume); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return storage.Failed("volume.snapshot", "volume/"+volume, err)
	}
	return storage.Failed("volume.snapshot", "volume/"+volume, p.copy(ctx, p.Path(volume), to))
}

// Clone implements storage.Snapshots.
func (p *dirPool) Clone(ctx context.Context, from, snapshot, to string) error {
	if err := errors.Join(storage.CheckVolume(from), storage.CheckVolume(to)); err != nil {
		return err
	}
	source := p.Path(from)
	if snapshot != "" {
		if err := storage.CheckSnapshot(from, snapshot); err != nil {
			return err
		}
		source = p.SnapshotPath(from, snapshot)
	}
	return storage.Failed("volume.clone", "volume/"+from, p.copy(ctx, source, p.Path(to)))
}

// copy makes to of from, if it is not there yet.
func (p *dirPool) copy(ctx context.Context, from, to string) error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if _, err := os.Lstat(to); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return p.fresh(ctx, from, func(fresh string) error {
		err := unix.Renameat2(unix.AT_FDCWD, fresh, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
		if errors.Is(err, unix.EEXIST) { // somebody made the same copy meanwhile
			return nil
		}
		if err != nil {
			return &os.LinkError{Op: "rename", Old: fresh, New: to, Err: err}
		}
		return fsx.SyncDir(filepath.Dir(to))
	})
}

// fresh copies the folder from, makes the copy durable and hands it to place.
func (p *dirPool) fresh(ctx context.Context, from string, place func(fresh string) error) (err error) {
	fresh, lock, err := p.incoming().New()
	if err != nil {
		return err
	}
	defer func() {
		err = errs.Also(err, p.incoming().Done(fresh, lock, p.discard))
		p.cleaner.wake()
	}()
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	if err := os.Mkdir(fresh, 0o700); err != nil {
		return err
	}
	dst, err := os.Open(fresh)
	if err != nil {
		return err
	}
	defer dst.Close()
	if err := trees.Copy(ctx, src, dst, trees.Options{Share: true}); err != nil {
		return err
	}
	if err := unix.Syncfs(int(dst.Fd())); err != nil {
		return &os.PathError{Op: "syncfs", Path: fresh, Err: err}
	}
	return place(fresh)
}

// Restore implements storage.Snapshots: a copy of the snapshot changes places
// with the volume.
func (p *dirPool) Restore(ctx context.Context, volume, name string) error {
	if err := storage.CheckSnapshot(volume, name); err != nil {
		return err
	}
	if err := p.mustExist(volume); err != nil {
		return err
	}
	p.mu.RLock()
	defer p.mu.RUnlock()
	err := p.fresh(ctx, p.SnapshotPath(volume, name), func(fresh string) error {
		if err := unix.Renameat2(unix.AT_FDCWD, fresh, unix.AT_FDCWD, p.Path(volume), unix.RENAME_EXCHANGE); err != nil {
			return &os.LinkError{Op: "exchange", Old: fresh, New: p.Path(volume), Err: err}
		}
		return fsx.SyncDir(filepath.Dir(p.Path(volume)))
	})
	p.usage.forget(volume)
	return storage.Failed("volume.restore", "volume/"+volume, err)
}

// RemoveSnapshot implements storage.Snapshots.
func (p *dirPool) RemoveSnapshot(_ context.Context, volume, name string) error {
	if err := storage.CheckSnapshot(volume, name); err != nil {
		return err
	}
	path := p.SnapshotPath(volume, name)
	if err := p.discard(path); err != nil {
		return storage.Failed("volume.snapshot.remove", "volume/"+volume, err)
	}
	p.cleaner.wake()
	err := os.Remove(filepath.Dir(path))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTEMPTY) {
		return nil
	}
	return storage.Failed("volume.snapshot.remove", "volume/"+volume, err)
}
