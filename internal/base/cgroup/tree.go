package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
)

// Tree is Lodge's own part of every hierarchy: one group for each guest. Its
// methods are safe for concurrent use on different groups.
type Tree struct {
	layout  *Layout
	unified string            // directory of the subtree in the v2 hierarchy
	v1      map[string]string // controller -> directory of the subtree in its v1 hierarchy
}

// write writes a value to a control file, which must exist.
func write(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// checkName keeps names to one plain path element.
func checkName(name string) error {
	ok := name != "" && len(name) <= 128 && name[0] != '.' && !strings.ContainsFunc(name, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._-", r))
	})
	if !ok {
		return errs.Bad("cgroup", fmt.Sprintf("%q cannot name a control group", name), "use letters, digits, '.', '_' and '-'")
	}
	return nil
}

// dirs returns the group's directories: first that of v2, then those of v1,
// each once though several controllers may share it.
func (t *Tree) dirs(name string) []string {
	return append([]string{filepath.Join(t.unified, name)}, t.v1dirs(name)...)
}

func (t *Tree) v1dirs(name string) []string {
	var out []string
	for _, dir := range t.v1 {
		out = append(out, filepath.Join(dir, name))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Create makes the group called name with limits l, or gives a group that is
// there already these limits. A group that could not be made whole is removed.
func (t *Tree) Create(name string, l Limits) error {
	if err := checkName(name); err != nil {
		return err
	}
	var made []string
	err := func() error {
		for _, dir := range t.dirs(name) {
			switch err := os.Mkdir(dir, 0o755); {
			case err == nil:
				made = append(made, dir)
			case !errors.Is(err, fs.ErrExist):
				return err
			}
		}
		return t.Set(name, l)
	}()
	if err != nil {
		for _, dir := range made {
			err = errors.Join(err, os.Remove(dir))
		}
		return fmt.Errorf("control group %s: %w", name, err)
	}
	return nil
}

// JoinPaths is what a launcher needs to start a process inside a group.
type JoinPaths struct {
	// Dir is the v2 group. Processes are made in it with CLONE_INTO_CGROUP:
	// that takes no host-wide lock, which moving them there would.
	Dir string
	// Tasks are the v1 groups' files. The process itself, while it has one
	// thread, writes "0" to each, for the same reason.
	Tasks []string
	// Delegate are the paths that become the guest's root's own, so that the
	// guest can make groups in its group: Dir and three files in it.
	Delegate []string
}

// Join returns how to get into the group called name, which must exist.
func (t *Tree) Join(name string) JoinPaths {
	dir := filepath.Join(t.unified, name)
	j := JoinPaths{Dir: dir, Delegate: []string{dir}}
	for _, d := range t.v1dirs(name) {
		j.Tasks = append(j.Tasks, filepath.Join(d, "tasks"))
	}
	for _, f := range []string{"cgroup.procs", "cgroup.subtree_control", "cgroup.threads"} {
		j.Delegate = append(j.Delegate, filepath.Join(dir, f))
	}
	return j
}

// Delegate gives the group called name to the guest's root user, so that the
// guest may build its own groups in it. Its limits stay out of reach.
func (t *Tree) Delegate(name string, uid, gid int) error {
	for _, path := range t.Join(name).Delegate {
		if err := os.Chown(path, uid, gid); err != nil {
			return err
		}
	}
	return nil
}

// List returns the names of all groups there are, sorted.
func (t *Tree) List() ([]string, error) {
	var out []string
	for _, dir := range t.dirs("") {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, e := range entries {
			if e.IsDir() {
				out = append(out, e.Name())
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// Kill ends every process of the group called name, whatever state it is in,
// frozen ones too, and returns at once. A group that is not there has none.
func (t *Tree) Kill(name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	err := write(filepath.Join(t.unified, name, "cgroup.kill"), "1")
	if errors.Is(err, fs.ErrNotExist) {
		if _, gone := os.Stat(filepath.Join(t.unified, name)); errors.Is(gone, fs.ErrNotExist) {
			return nil
		}
		return &errs.Error{Op: "cgroup.kill", Kind: errs.Unsupported, Ref: name, Msg: "this kernel cannot kill a whole control group",
			Hint: "Linux 5.14 or newer is needed", Err: err}
	}
	return err
}

// emptyWait is how long Remove lets the kernel take to clear away the last
// process of a group after it was reaped: a grace period, mostly under 50 ms.
const emptyWait = 2 * time.Second

// Remove removes the group called name and what the guest made in it. It waits
// a moment for processes that are ending, and fails with errs.Busy if some are
// left. A group that is not there counts as removed.
func (t *Tree) Remove(ctx context.Context, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	return t.clear(ctx, name)
}

// clear removes the group's directories, that of v2 first: while it has
// processes its limits stay in force.
func (t *Tree) clear(ctx context.Context, name string) error {
	until := time.Now().Add(emptyWait)
	for _, dir := range t.dirs(name) {
		if err := removeAll(ctx, dir, until); err != nil {
			return err
		}
	}
	return nil
}

// removeAll removes a group and those below it, deepest first.
func removeAll(ctx context.Context, dir string, until time.Time) error {
	pause := time.Millisecond
	for {
		entries, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, e := range entries {
			if e.IsDir() {
				if err := removeAll(ctx, filepath.Join(dir, e.Name()), until); err != nil {
					return err
				}
			}
		}
		err = unix.Rmdir(dir)
		switch {
		case err == nil, errors.Is(err, unix.ENOENT):
			return nil
		case !errors.Is(err, unix.EBUSY):
			return &fs.PathError{Op: "rmdir", Path: dir, Err: err}
		case time.Now().After(until):
			return &errs.Error{Op: "cgroup.remove", Kind: errs.Busy, Ref: dir, Msg: "control group still has processes", Err: err}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
			pause = min(2*pause, 50*time.Millisecond)
		}
	}
}

// Destroy removes all groups and the subtree itself. All guests must be gone.
func (t *Tree) Destroy(ctx context.Context) error {
	return t.clear(ctx, "")
}

// Freeze stops all processes of the group called name and returns once they
// have stopped. When that does not happen before ctx ends, the group is thawed
// again.
func (t *Tree) Freeze(ctx context.Context, name string) error {
	if err := t.setFrozen(ctx, name, true); err != nil {
		return errors.Join(err, write(filepath.Join(t.unified, name, "cgroup.freeze"), "0"))
	}
	return nil
}

// Thaw lets the processes of the group called name run on.
func (t *Tree) Thaw(ctx context.Context, name string) error { return t.setFrozen(ctx, name, false) }

// Frozen reports whether all processes of the group called name are stopped.
func (t *Tree) Frozen(name string) (bool, error) {
	b, err := os.ReadFile(filepath.Join(t.unified, name, "cgroup.events"))
	if err != nil {
		return false, err
	}
	return parseKeyed(string(b))["frozen"] == 1, nil
}

func (t *Tree) setFrozen(ctx context.Context, name string, want bool) error {
	if err := checkName(name); err != nil {
		return err
	}
	dir := filepath.Join(t.unified, name)
	// Opened before the change, so that poll cannot miss it.
	events, err := os.Open(filepath.Join(dir, "cgroup.events"))
	if err != nil {
		return err
	}
	defer events.Close()
	value := "0"
	if want {
		value = "1"
	}
	if err := write(filepath.Join(dir, "cgroup.freeze"), value); err != nil {
		return err
	}
	var b [256]byte
	for {
		n, err := events.ReadAt(b[:], 0) // reading arms the next POLLPRI
		if n == 0 {
			return err
		}
		if (parseKeyed(string(b[:n]))["frozen"] == 1) == want {
			return nil
		}
		if ctx.Err() != nil {
			return &errs.Error{Op: "cgroup.freeze", Kind: errs.Busy, Ref: name, Msg: "some processes could not be stopped in time", Err: ctx.Err()}
		}
		fds := []unix.PollFd{{Fd: int32(events.Fd()), Events: unix.POLLPRI}}
		// Short turns, because poll cannot wait for ctx.
		if _, err := unix.Poll(fds, 50); err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
