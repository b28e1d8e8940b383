package uml

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
	"lodge/internal/engine"
)

func (m *Machine) refuse(kind errs.Kind, op, msg, hint string) error {
	return &errs.Error{Op: "uml." + op, Kind: kind, Ref: m.g.Key().String(), Msg: msg, Hint: hint}
}

// PlugDisk shows a file of the host in the guest's jail and tells its kernel.
func (m *Machine) PlugDisk(ctx context.Context, d engine.Disk) error {
	if err := fitDisk(m.g, d); err != nil {
		return err
	}
	slots, err := m.disks(ctx)
	if err != nil {
		return err
	}
	if slices.Contains(slots, d.Name) {
		return m.refuse(errs.Exists, "plug", "the guest has a disk "+d.Name+" already", "")
	}
	n := slices.Index(slots, "")
	if n < 0 {
		return m.refuse(errs.Conflict, "plug", "the guest has as many disks as it can", "take one away first")
	}
	if err := m.show(d); err != nil {
		return fmt.Errorf("disk %s: %w", d.Name, err)
	}
	if _, err := m.manage(ctx, "config "+diskArgument(firstDisk+n, d)); err != nil {
		return errors.Join(err, m.hide(d.Name))
	}
	return nil
}

// UnplugDisk takes a disk away, which the guest must not use.
func (m *Machine) UnplugDisk(ctx context.Context, name string) error {
	slots, err := m.disks(ctx)
	if err != nil {
		return err
	}
	n := slices.Index(slots, name)
	if n < 0 || name == "" {
		// It may be in sight yet: of an attempt that was cut off.
		return cmp.Or(m.hide(name), m.refuse(errs.NotFound, "unplug", "the guest has no disk "+strconv.Quote(name), ""))
	}
	if _, err := m.manage(ctx, "remove ubd"+strconv.Itoa(firstDisk+n)); err != nil {
		return err
	}
	return m.hide(name)
}

// disks asks the guest's kernel for the names of the further disks, "" where
// there is room for one.
func (m *Machine) disks(ctx context.Context) ([]string, error) {
	if err := m.runs(); err != nil {
		return nil, err
	}
	var slots []string
	for n := firstDisk; n < disksMax; n++ {
		text, err := m.manage(ctx, "config ubd"+strconv.Itoa(n))
		if err != nil {
			return nil, err
		}
		name, _, _ := strings.Cut(strings.TrimPrefix(strings.TrimSpace(text), placesAt+"/"), ",")
		slots = append(slots, name)
	}
	return slots, nil
}

// show makes a file of the host appear in the jail.
func (m *Machine) show(d engine.Disk) error {
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV}
	if writable(d) {
		if err := unix.Chown(d.Path, int(m.parts.IDBase), int(m.parts.IDBase)); err != nil {
			return err
		}
	} else {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	file, err := unix.OpenTree(unix.AT_FDCWD, d.Path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(file)
	if err := unix.MountSetattr(file, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return err
	}
	return m.within(func(root int) error {
		if err := vanish(root, d.Name); err != nil { // left by an attempt that was cut off
			return err
		}
		at := place(d.Name)[1:]
		if err := unix.Mkdirat(root, placesAt[1:], 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
		if err := unix.Mknodat(root, at, unix.S_IFREG|0o644, 0); err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
		return unix.MoveMount(file, "", unix.AT_FDCWD, "/"+at, unix.MOVE_MOUNT_F_EMPTY_PATH)
	})
}

// hide takes it away again, if it is there.
func (m *Machine) hide(name string) error {
	return m.within(func(root int) error { return vanish(root, name) })
}

// vanish is hide among the mounts of the jail.
func vanish(root int, name string) error {
	if name == "" {
		return nil
	}
	for {
		err := unix.Unmount(place(name), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break // none is left
		}
		if err != nil {
			return err
		}
	}
	if err := unix.Unlinkat(root, place(name)[1:], 0); !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}

// within calls do among the mounts of the jail, with its root as a folder that
// can be written to. It is the host's root who does it, and nothing there but
// /tmp is the guest's.
func (m *Machine) within(do func(root int) error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // the thread never comes back
		done <- func() error {
			if err := errors.Join(unix.Unshare(unix.CLONE_FS), unix.Setns(m.held.Pidfd(), unix.CLONE_NEWNS)); err != nil {
				return err
			}
			root, err := unix.OpenTree(unix.AT_FDCWD, "/", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
			if err != nil {
				return err
			}
			defer unix.Close(root)
			if err := unix.MountSetattr(root, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY}); err != nil {
				return err
			}
			return do(root)
		}()
	}()
	return <-done
}
