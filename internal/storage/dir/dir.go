// Package dir is the storage driver that works everywhere: a volume is a
// directory, and its quota is counted but not enforced.
package dir

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
	"lodge/internal/base/ids"
	"lodge/internal/model/pool"
	"lodge/internal/storage"
)

// Driver opens pools that are plain directories.
type Driver struct {
	log *slog.Logger
}

// New returns the driver.
func New(log *slog.Logger) *Driver { return &Driver{log: log} }

// Info implements storage.Driver: nothing can be missing.
func (d *Driver) Info() storage.Info { return storage.Info{Name: "dir"} }

// Open implements storage.Driver. With a source the pool is the folder
// "lodge-NAME" in it, else dir itself. What an earlier daemon did not finish
// removing is removed behind.
func (d *Driver) Open(_ context.Context, name string, spec pool.Spec, dir string) (storage.Pool, error) {
	ref := string(pool.Kind) + "/" + name
	root := dir
	if spec.Source != "" {
		if !filepath.IsAbs(spec.Source) {
			return nil, errs.Bad("source", "is not an absolute path", "write it as /srv/guests")
		}
		if st, err := os.Stat(spec.Source); err != nil || !st.IsDir() {
			return nil, &errs.Error{Op: "pool.open", Kind: errs.Invalid, Ref: ref, Field: "source",
				Msg: spec.Source + " is not a directory", Hint: "make it first: mkdir -p " + spec.Source, Err: err}
		}
		root = filepath.Join(spec.Source, "lodge-"+name)
	}
	p := &dirPool{ref: ref, root: root, log: d.log.With("pool", name), usage: newUsageCache()}
	// 0700: a set-user-id file of a guest must be out of reach for the host's users.
	for _, sub := range subs {
		if err := os.MkdirAll(p.sub(sub), 0o700); err != nil {
			return nil, storage.Failed("pool.open", ref, err)
		}
	}
	if err := p.incoming().Sweep(p.discard); err != nil {
		return nil, storage.Failed("pool.open", ref, err)
	}
	p.cleaner = newCleaner(p.sub("trash"), p.log)
	return p, nil
}

// subs are the folders of a pool.
var subs = []string{"incoming", "snapshots", "trash", "quotas", "volumes"}

type dirPool struct {
	ref     string
	root    string
	log     *slog.Logger
	usage   *usageCache
	cleaner *cleaner
	mu      sync.RWMutex // held for writing by Destroy, so that no volume is made meanwhile
}

func (p *dirPool) sub(name string) string { return filepath.Join(p.root, name) }

func (p *dirPool) quotaFile(volume string) string { return filepath.Join(p.root, "quotas", volume) }

func (p *dirPool) Path(volume string) string { return filepath.Join(p.root, "volumes", volume) }

func (p *dirPool) Quota() string { return "soft: counted, not enforced" }

func (p *dirPool) Space(context.Context) (storage.Space, error) {
	s, err := storage.SpaceOf(p.root)
	return s, storage.Failed("pool.space", p.ref, err)
}

func (p *dirPool) Volumes(context.Context) ([]string, error) {
	names, err := storage.List(p.sub("volumes"))
	return names, storage.Failed("pool.volumes", p.ref, err)
}

// Create makes no file durable: a volume lost in a power cut was empty and is
// made again by the next call.
func (p *dirPool) Create(ctx context.Context, volume string, quota uint64) error {
	if err := storage.CheckVolume(volume); err != nil {
		return err
	}
	p.mu.RLock()
	defer p.mu.RUnlock()
	path := p.Path(volume)
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return storage.Failed("volume.create", "volume/"+volume, err)
	}
	if err := storage.Furnish(path); err != nil {
		return storage.Failed("volume.create", "volume/"+volume, err)
	}
	return p.setQuota(volume, quota)
}

func (p *dirPool) SetQuota(_ context.Context, volume string, quota uint64) error {
	if err := p.mustExist(volume); err != nil {
		return err
	}
	return p.setQuota(volume, quota)
}

// setQuota writes the quota beside the volume, where the guest cannot see it.
// It is not synced: the guest's spec in the store is what counts.
func (p *dirPool) setQuota(volume string, quota uint64) error {
	file := p.quotaFile(volume)
	tmp := file + "." + ids.New()
	err := os.WriteFile(tmp, []byte(strconv.FormatUint(quota, 10)+"\n"), 0o600)
	if err == nil {
		err = os.Rename(tmp, file)
	}
	if err != nil {
		os.Remove(tmp)
	}
	return storage.Failed("volume.quota", "volume/"+volume, err)
}

// QuotaOf returns the quota in bytes that was set for volume, 0 for none.
func (p *dirPool) QuotaOf(volume string) (uint64, error) {
	if err := p.mustExist(volume); err != nil {
		return 0, err
	}
	text, err := os.ReadFile(p.quotaFile(volume))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	n, perr := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	return n, storage.Failed("volume.quota", "volume/"+volume, cmp.Or(err, perr))
}

func (p *dirPool) mustExist(volume string) error {
	if err := storage.CheckVolume(volume); err != nil {
		return err
	}
	if _, err := os.Lstat(p.Path(volume)); err != nil {
		return storage.Failed("volume.look", "volume/"+volume, err)
	}
	return nil
}

// Usage is up to a minute old, or more for a volume with very many files.
func (p *dirPool) Usage(ctx context.Context, volume string) (uint64, error) {
	if err := p.mustExist(volume); err != nil {
		return 0, err
	}
	n, err := p.usage.get(ctx, volume, p.Path(volume))
	return n, storage.Failed("volume.usage", "volume/"+volume, err)
}

func (p *dirPool) Remove(ctx context.Context, volume string) error {
	names, err := p.Snapshots(ctx, volume)
	if err != nil {
		return err
	}
	if err := p.discard(p.Path(volume)); err != nil {
		return storage.Failed("volume.remove", "volume/"+volume, err)
	}
	for _, name := range names {
		if err := p.RemoveSnapshot(ctx, volume, name); err != nil {
			return err
		}
	}
	p.usage.forget(volume)
	if err := os.Remove(p.quotaFile(volume)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return storage.Failed("volume.remove", "volume/"+volume, err)
	}
	p.cleaner.wake()
	return nil
}

// discard moves a folder to the trash. One that is not there is fine.
func (p *dirPool) discard(path string) error {
	err := os.Rename(path, filepath.Join(p.sub("trash"), filepath.Base(path)+"."+ids.New()))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (p *dirPool) Close() error {
	p.cleaner.stop()
	return nil
}

func (p *dirPool) Destroy(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	left, err := storage.List(p.sub("volumes"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return storage.Failed("pool.destroy", p.ref, err)
	}
	if len(left) > 0 {
		return storage.StillUsed(p.ref, left)
	}
	p.cleaner.stop()
	if err := emptyTrash(ctx, p.sub("trash")); err != nil {
		return storage.Failed("pool.destroy", p.ref, err)
	}
	for _, sub := range subs {
		if err := os.RemoveAll(p.sub(sub)); err != nil {
			return storage.Failed("pool.destroy", p.ref, err)
		}
	}
	// Whatever else somebody put into the folder is theirs, so it may stay.
	if err := unix.Rmdir(p.root); err != nil && err != unix.ENOTEMPTY && err != unix.ENOENT {
		return storage.Failed("pool.destroy", p.ref, err)
	}
	return nil
}
