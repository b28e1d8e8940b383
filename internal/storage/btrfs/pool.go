package btrfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
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
	"lodge/internal/storage"
)

var (
	_ storage.Unmounter = (*btrfsPool)(nil)
	_ storage.Gauged    = (*btrfsPool)(nil)
)

type btrfsPool struct {
	name, ref   string
	dir         string // the pool's own place in the data directory
	where       place
	source      string
	root        string // where volumes/ and trash/ are
	sys         string // what /sys tells about the file system
	quota       string
	log         *slog.Logger
	mu          sync.RWMutex // held for writing by Destroy, so that no volume is made meanwhile
	shared      sync.Mutex   // held while snapshots of volumes are made, used or removed
	woken       chan struct{}
	stopCleaner context.CancelFunc
	cleaner     sync.WaitGroup
}

func (p *btrfsPool) Path(volume string) string { return filepath.Join(p.root, "volumes", volume) }

func (p *btrfsPool) Quota() string { return p.quota }

// Space never promises more than the disk under the pool's file can still
// hold: the file is sparse.
func (p *btrfsPool) Space(context.Context) (storage.Space, error) {
	s, err := storage.SpaceOf(p.root)
	if err == nil && p.where == onFile {
		var under storage.Space
		under, err = storage.SpaceOf(p.dir)
		s.Free = min(s.Free, under.Free)
	}
	return s, storage.Failed("pool.space", p.ref, err)
}

func (p *btrfsPool) Volumes(context.Context) ([]string, error) {
	names, err := storage.List(filepath.Join(p.root, "volumes"))
	return names, storage.Failed("pool.volumes", p.ref, err)
}

// Create makes nothing durable: a volume lost in a power cut was empty and is
// made again by the next call.
func (p *btrfsPool) Create(_ context.Context, volume string, quota uint64) error {
	if err := storage.CheckVolume(volume); err != nil {
		return err
	}
	p.mu.RLock()
	defer p.mu.RUnlock()
	path, ref := p.Path(volume), "volume/"+volume
	if err := p.spaceUnder(); err != nil {
		return storage.Failed("volume.create", ref, err)
	}
	if err := createSubvolume(path); err != nil && !errors.Is(err, fs.ErrExist) {
		return storage.Failed("volume.create", ref, err)
	}
	if !isSubvolume(path) {
		return &errs.Error{Op: "volume.create", Kind: errs.Conflict, Ref: ref,
			Msg: path + " is there and is not a subvolume", Hint: "move it away"}
	}
	err := errors.Join(hide(path), storage.Furnish(path))
	if err == nil {
		err = p.limit(volume, quota, 0)
	}
	return storage.Failed("volume.create", ref, err)
}

// hide keeps a volume from other users. A volume that is full takes no change,
// not even one to what it is already.
func hide(path string) error {
	const mode = 0o700
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() == mode {
		return err
	}
	return os.Chmod(path, mode)
}

// reserve is what must be free under a pool's file before another volume is
// made: a write that the disk cannot take turns the whole pool read-only.
const reserve = 64 << 20

func (p *btrfsPool) spaceUnder() error {
	if p.where != onFile {
		return nil
	}
	under, err := storage.SpaceOf(p.dir)
	if err == nil && under.Free < reserve {
		err = unix.ENOSPC
	}
	return err
}

func (p *btrfsPool) SetQuota(_ context.Context, volume string, quota uint64) error {
	if err := storage.CheckVolume(volume); err != nil {
		return err
	}
	return storage.Failed("volume.quota", "volume/"+volume, p.limit(volume, quota, 0))
}

// limit sets the quota of a volume. What its snapshots hold comes on top: as much
// as is known of them, and at least held if the kernel counts it.
func (p *btrfsPool) limit(volume string, quota, held uint64) error {
	id, err := subvolumeID(p.Path(volume))
	if err != nil {
		return err
	}
	if quota != 0 {
		known, err := p.heldBySnapshots(volume, id)
		if err != nil {
			return err
		}
		if p.quota == simple {
			known = max(known, held)
		}
		quota += known
	}
	err = limitSubvolume(p.root, id, quota)
	if quota == 0 && errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// Usage is what the kernel has counted. It counts when it commits, so it runs
// behind writes by up to 30 s; the limit does not. Where quotas are simple, what
// a volume shares with the one that it was cloned from does not count, and what
// only a snapshot still holds does.
func (p *btrfsPool) Usage(_ context.Context, volume string) (uint64, error) {
	n, err := p.qgroupNumber(volume, "referenced")
	return n, storage.Failed("volume.usage", "volume/"+volume, err)
}

// Gauges implements storage.Gauged. What the kernel has reserved for writes that
// it has not committed yet counts against the limit as well, so it is part of
// what is used: without it a guest would see its writes up to 30 s late.
func (p *btrfsPool) Gauges(volume string) (storage.Gauges, error) {
	dir, err := p.qgroupDir(volume)
	if err != nil {
		return storage.Gauges{}, storage.Failed("volume.gauges", "volume/"+volume, err)
	}
	g := storage.Gauges{Limit: filepath.Join(dir, "max_referenced")}
	for _, name := range []string{"referenced", "rsv_data", "rsv_meta_pertrans", "rsv_meta_prealloc"} {
		g.Used = append(g.Used, filepath.Join(dir, name))
	}
	return g, nil
}

// QuotaOf returns the quota in bytes that holds for volume, 0 for none.
func (p *btrfsPool) QuotaOf(volume string) (uint64, error) {
	n, err := p.qgroupNumber(volume, "max_referenced")
	if n == clearLimit || n == 0 || err != nil {
		return 0, storage.Failed("volume.quota", "volume/"+volume, err)
	}
	id, err := subvolumeID(p.Path(volume))
	if err != nil {
		return 0, storage.Failed("volume.quota", "volume/"+volume, err)
	}
	held, err := p.heldBySnapshots(volume, id)
	return n - min(n, held), storage.Failed("volume.quota", "volume/"+volume, err)
}

// qgroupDir returns where the kernel shows the volume's quota group.
func (p *btrfsPool) qgroupDir(volume string) (string, error) {
	if err := storage.CheckVolume(volume); err != nil {
		return "", err
	}
	id, err := subvolumeID(p.Path(volume))
	if err != nil {
		return "", err
	}
	return filepath.Join(p.sys, "qgroups", "0_"+strconv.FormatUint(id, 10)), nil
}

func (p *btrfsPool) qgroupNumber(volume, what string) (uint64, error) {
	dir, err := p.qgroupDir(volume)
	if err != nil {
		return 0, err
	}
	text, err := os.ReadFile(filepath.Join(dir, what))
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
}

// Remove moves the volume out of the way; the subvolume is destroyed behind,
// since that takes as long as a guest has files in the kernel's caches.
func (p *btrfsPool) Remove(ctx context.Context, volume string) error {
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
	p.wake()
	return nil
}

// discard moves a subvolume to the trash. One that is not there is fine.
func (p *btrfsPool) discard(path string) error {
	err := os.Rename(path, filepath.Join(p.root, "trash", filepath.Base(path)+"."+ids.New()))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (p *btrfsPool) wake() {
	select {
	case p.woken <- struct{}{}:
	default:
	}
}

func (p *btrfsPool) startCleaner() {
	ctx, cancel := context.WithCancel(context.Background())
	p.woken, p.stopCleaner = make(chan struct{}, 1), cancel
	p.wake() // what an earlier daemon left
	p.cleaner.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-p.woken:
			}
			if err := p.emptyTrash(ctx); err != nil && ctx.Err() == nil {
				p.log.Warn("removed volumes could not be destroyed; it is tried again with the next removal", "err", err)
			}
		}
	})
}

func (p *btrfsPool) emptyTrash(ctx context.Context) error {
	trash := filepath.Join(p.root, "trash")
	entries, err := os.ReadDir(trash)
	if err != nil {
		return err
	}
	var failed []error
	var gone []uint64
	for _, e := range entries {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		path := filepath.Join(trash, e.Name())
		if !isSubvolume(path) {
			failed = append(failed, os.RemoveAll(path))
			continue
		}
		id, err := subvolumeID(path)
		if err == nil {
			err = destroySubvolume(path)
		}
		if err == nil {
			gone = append(gone, id)
		}
		failed = append(failed, err)
	}
	p.dropQgroups(gone)
	return errors.Join(failed...)
}

// dropQgroups tries to remove the groups of what was destroyed just now. The
// kernel keeps those it still counts in (EBUSY); kernels since 6.11 remove
// them by themselves, older ones keep a few hundred bytes each.
func (p *btrfsPool) dropQgroups(ids []uint64) {
	for _, id := range ids {
		if err := dropQgroup(p.root, id); err != nil && !errors.Is(err, unix.EBUSY) {
			p.log.Debug("a quota group stays behind", "id", id, "err", err)
		}
	}
}

func (p *btrfsPool) Close() error {
	p.stopCleaner()
	p.cleaner.Wait()
	return nil
}

func (p *btrfsPool) Destroy(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	unlock, err := lockDir(p.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // destroyed before
	}
	if err != nil {
		return storage.Failed("pool.destroy", p.ref, err)
	}
	defer unlock()
	left, err := storage.List(filepath.Join(p.root, "volumes"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return storage.Failed("pool.destroy", p.ref, err)
	}
	if len(left) > 0 {
		return storage.StillUsed(p.ref, left)
	}
	p.Close()
	return storage.Failed("pool.destroy", p.ref, p.takeApart(ctx))
}

// Unmount takes the pool's own mount away; its loop device goes with it.
func (p *btrfsPool) Unmount(context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.where == onDirectory {
		return nil
	}
	return storage.Failed("pool.unmount", p.ref, p.unmount("pool.unmount"))
}

func (p *btrfsPool) unmount(op string) error {
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	if fstype, _ := mountedAt(string(info), p.root); fstype == "" {
		return nil
	}
	if err := unix.Unmount(p.root, 0); err != nil {
		if errors.Is(err, unix.EBUSY) {
			return &errs.Error{Op: op, Kind: errs.Busy, Ref: p.ref, Err: err,
				Msg: "something still uses " + p.root, Hint: "see who: fuser -vm " + p.root}
		}
		return &os.PathError{Op: "umount", Path: p.root, Err: err}
	}
	return nil
}

// takeApart removes what Lodge made, the file system last of all.
func (p *btrfsPool) takeApart(ctx context.Context) error {
	if p.where == onDirectory {
		if err := p.emptyTrash(ctx); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := destroySubvolume(p.root); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return p.removeDir()
	}
	if err := p.unmount("pool.destroy"); err != nil {
		return err
	}
	if p.where == onDevice {
		if err := p.wipe(); err != nil {
			return err
		}
	}
	return p.removeDir()
}

// removeDir removes the mount point, the file and the pool's own directory;
// what somebody else put there stays, and the directory with it.
func (p *btrfsPool) removeDir() error {
	for _, path := range []string{filepath.Join(p.dir, "mnt"), p.file(), p.file() + ".new", filepath.Join(p.dir, lockName), p.dir} {
		err := os.Remove(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
			return err
		}
	}
	return nil
}

// mounted reports whether the pool's file system is mounted where it belongs.
// dev is the device it is on, "" if on none yet.
func (p *btrfsPool) mounted(dev string) (bool, error) {
	if err := os.MkdirAll(p.root, 0o700); err != nil {
		return false, err
	}
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false, err
	}
	fstype, source := mountedAt(string(info), p.root)
	switch {
	case fstype == "":
		return false, nil
	case fstype == "btrfs" && source == dev:
		return true, nil
	default:
		return false, &errs.Error{Op: "pool.open", Kind: errs.Conflict, Ref: p.ref,
			Msg:  fmt.Sprintf("%s (%s) is mounted at %s and is not this pool", source, fstype, p.root),
			Hint: "umount " + p.root}
	}
}

// mount options: freed space goes back to the disk under the pool, and reading
// a file writes nothing.
func (p *btrfsPool) mount(dev string) error {
	if err := unix.Mount(dev, p.root, "btrfs", unix.MS_NOATIME, "discard=async"); err != nil {
		return &os.PathError{Op: "mount " + dev + " at", Path: p.root, Err: err}
	}
	return nil
}

// The superblock of btrfs: where it is, and where in it magic and label are.
const (
	superOffset = 64 << 10
	magicOffset = 0x40
	labelOffset = 0x12b
	labelLength = 256
)

// btrfsLabel reads the label from a device's superblock.
func btrfsLabel(dev string) (label string, isBtrfs bool, err error) {
	f, err := os.Open(dev)
	if err != nil {
		return "", false, err
	}
	defer f.Close()
	super := make([]byte, 4096)
	if _, err := f.ReadAt(super, superOffset); err != nil {
		if errors.Is(err, io.EOF) { // smaller than any btrfs
			return "", false, nil
		}
		return "", false, err
	}
	if string(super[magicOffset:magicOffset+8]) != "_BHRfS_M" {
		return "", false, nil
	}
	text, _, _ := bytes.Cut(super[labelOffset:labelOffset+labelLength], []byte{0})
	return string(text), true, nil
}

// wipe makes the pool's device blank again, as far as any tool looks. A device
// that holds something else by now is left alone.
func (p *btrfsPool) wipe() error {
	f, err := os.OpenFile(p.source, os.O_WRONLY|unix.O_EXCL, 0) // EBUSY while it is mounted anywhere
	if err != nil {
		return err
	}
	defer f.Close()
	if label, isBtrfs, err := btrfsLabel(p.source); err != nil || !isBtrfs || label != p.label() {
		return err
	}
	if _, err := f.WriteAt(make([]byte, 4096), superOffset); err != nil {
		return err
	}
	return f.Sync()
}

const lockName = "lock"

// lockDir makes sure that only one daemon and one goroutine mounts or unmounts
// the pool in dir, so there are never two loop devices for one file.
func lockDir(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}
