package doctor

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
	"lodge/internal/base/fsx"
)

// limit is a number of the kernel that many guests share, and the least that
// lets a thousand of them live.
type limit struct {
	key   string // as sysctl(8) writes it
	least uint64
	cause string // what happens below it
}

const namespaces = "each guest takes one of these; the start of the guest that has none left fails"

// limits are what research with a thousand guests, and other people's
// production settings, say. A key that this kernel or network namespace does
// not have is skipped.
func limits() []limit {
	all := []limit{
		{"fs.inotify.max_user_instances", 1 << 20, "all guests share them: with 128, systemd dies in one guest out of three"},
		{"fs.inotify.max_user_watches", 1 << 20, "all guests share them: file watching fails in guests"},
		{"fs.inotify.max_queued_events", 16384, "guests lose file events"},
		{"fs.nr_open", 1 << 20, "a program cannot have more files open than this, whatever its limit says"},
		{"fs.file-max", 1 << 20, "all guests share them: opening a file fails everywhere at once"},
		{"fs.aio-max-nr", 1 << 20, "all guests share them: databases in guests fail to start"},
		{"kernel.pid_max", 1 << 22, "all guests share the process ids: fork fails everywhere at once"},
		{"kernel.threads-max", 1 << 17, "all guests share them: fork fails everywhere at once"},
		{"kernel.keys.maxkeys", 2000, "systemd in a guest cannot make its session keys"},
		{"kernel.keys.maxbytes", 2_000_000, "systemd in a guest cannot make its session keys"},
		{"kernel.pty.max", 1 << 18, "all guests share them: no console or exec -t opens any more"},
		{"vm.max_map_count", 1 << 18, "databases and language runtimes in guests cannot map their files"},
		{"net.netfilter.nf_conntrack_max", 1 << 18, "all guests share them: new connections are dropped"},
		{"net.ipv4.neigh.default.gc_thresh1", 1 << 14, "the neighbour table is swept while guests use it: packets are lost"},
		{"net.ipv4.neigh.default.gc_thresh2", 1 << 15, "the neighbour table is swept while guests use it: packets are lost"},
		{"net.ipv4.neigh.default.gc_thresh3", 1 << 16, "the neighbour table is full before a thousand guests talk: packets are lost"},
		{"net.ipv6.neigh.default.gc_thresh1", 1 << 14, "the neighbour table is swept while guests use it: packets are lost"},
		{"net.ipv6.neigh.default.gc_thresh2", 1 << 15, "the neighbour table is swept while guests use it: packets are lost"},
		{"net.ipv6.neigh.default.gc_thresh3", 1 << 16, "the neighbour table is full before a thousand guests talk: packets are lost"},
	}
	for _, ns := range []string{"user", "mnt", "pid", "net", "ipc", "uts", "cgroup"} {
		all = append(all, limit{"user.max_" + ns + "_namespaces", 1 << 15, namespaces})
	}
	return all
}

// sysctls is the tree of the kernel's settings, /proc/sys but in tests.
type sysctls string

const procSys sysctls = "/proc/sys"

func (s sysctls) path(key string) string {
	return filepath.Join(string(s), strings.ReplaceAll(key, ".", "/"))
}

// get returns the value and whether the key exists here.
func (s sysctls) get(key string) (uint64, bool, error) {
	text, err := os.ReadFile(s.path(key))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, false, nil
	}
	if err != nil {
		return 0, true, err
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return 0, true, fmt.Errorf("%s: %w", key, err)
	}
	return n, true, nil
}

func (s sysctls) set(key string, v uint64) error {
	f, err := os.OpenFile(s.path(key), os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(strconv.FormatUint(v, 10) + "\n")
	return errors.Join(err, f.Close())
}

// judgeLimit says what a value means.
func judgeLimit(l limit, found uint64) verdict {
	text := strconv.FormatUint(found, 10)
	if found >= l.least {
		return good(text)
	}
	v := verdict{state: Warning, found: fmt.Sprintf("%s, should be %d or more", text, l.least), cause: l.cause,
		fix: fmt.Sprintf("sysctl -w %s=%d   (or lodge doctor --fix)", l.key, l.least)}
	if found == 0 {
		v.state = Fault
	}
	return v
}

// old is what a limit was before Lodge raised it, and what Lodge made of it.
type old struct {
	Before uint64 `json:"before"`
	After  uint64 `json:"after"`
}

// beforeFile keeps the old values until Restore.
func beforeFile(dataDir string) string { return filepath.Join(dataDir, "doctor-before.json") }

func readBefore(dataDir string) (map[string]old, error) {
	text, err := os.ReadFile(beforeFile(dataDir))
	if errors.Is(err, fs.ErrNotExist) {
		return map[string]old{}, nil
	}
	if err != nil {
		return nil, err
	}
	m := map[string]old{}
	if err := json.Unmarshal(text, &m); err != nil {
		return nil, &errs.Error{Op: "doctor", Kind: errs.Internal, Err: err, Msg: beforeFile(dataDir) + " is damaged",
			Hint: "remove it; the limits go back to their old values with the next boot"}
	}
	return m, nil
}

func writeBefore(dataDir string, m map[string]old) error {
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	return fsx.WriteFile(beforeFile(dataDir), append(text, '\n'), 0o600)
}

// lockData keeps two doctors from raising, or restoring, at once.
func lockData(dataDir string) (unlock func(), err error) {
	d, err := os.Open(dataDir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX); err != nil {
		d.Close()
		return nil, err
	}
	return func() { d.Close() }, nil
}

// raise brings every limit that is too low to its least value, after having
// written the old ones to disk. It returns what it changed; a limit that
// cannot be raised does not keep the others from it.
func (s sysctls) raise(dataDir string, all []limit) (map[string]old, error) {
	low := map[string]old{}
	for _, l := range all {
		if n, ok, err := s.get(l.key); err == nil && ok && n < l.least {
			low[l.key] = old{Before: n, After: l.least}
		}
	}
	if len(low) == 0 {
		return low, nil
	}
	unlock, err := lockData(dataDir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	known, err := readBefore(dataDir)
	if err != nil {
		return nil, err
	}
	for key, o := range low {
		if k, ok := known[key]; ok && k.After == o.After {
			continue // raised before the last boot: the first value is the one to go back to
		}
		known[key] = o
	}
	if err := writeBefore(dataDir, known); err != nil {
		return nil, err
	}
	var failed []error
	for _, l := range all { // in their order: gc_thresh1 to 3 are compared by the kernel's users, not by it
		if o, ok := low[l.key]; ok {
			if err := s.set(l.key, o.After); err != nil {
				failed = append(failed, err)
				delete(low, l.key)
			}
		}
	}
	return low, errors.Join(failed...)
}

// restore sets the old values again, but leaves alone what somebody changed
// after Lodge did.
func (s sysctls) restore(dataDir string) error {
	unlock, err := lockData(dataDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	known, err := readBefore(dataDir)
	if err != nil {
		return err
	}
	var failed []error
	for key, o := range known {
		n, ok, err := s.get(key)
		if err == nil && ok && n == o.After {
			err = s.set(key, o.Before)
		}
		failed = append(failed, err)
	}
	if err := errors.Join(failed...); err != nil {
		return err
	}
	if err := os.Remove(beforeFile(dataDir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// EnsureLimits raises the limits that many guests need, remembering the old
// values in dataDir. The daemon calls it before the first guest starts; an
// error is no reason not to go on.
func EnsureLimits(_ context.Context, dataDir string, log *slog.Logger) error {
	raised, err := procSys.raise(dataDir, limits())
	for key, o := range raised {
		log.Info("raised a limit of the host", "key", key, "before", o.Before, "after", o.After)
	}
	return err
}

// Restore gives the host's limits their old values back. It is for uninstall,
// after the last guest; without a file of old values it does nothing.
func Restore(_ context.Context, dataDir string) error { return procSys.restore(dataDir) }

// runLimits is the group "limits".
func runLimits(o Options) []Check { return procSys.checks(o, limits()) }

func (s sysctls) checks(o Options, all []limit) []Check {
	var raised map[string]old
	var failed error
	if o.Fix {
		raised, failed = s.raise(o.DataDir, all)
	}
	var out []Check
	for _, l := range all {
		n, ok, err := s.get(l.key)
		if !ok {
			continue
		}
		v := judgeLimit(l, n)
		if err != nil {
			v = verdict{state: Warning, found: err.Error(), cause: l.cause}
		}
		c := Check{Name: l.key, Group: "limits", State: v.state, Found: v.found, Cause: v.cause, Fix: v.fix}
		if r, ok := raised[l.key]; ok {
			c.Fixed, c.Before = true, strconv.FormatUint(r.Before, 10)
		}
		if failed != nil && v.state != OK {
			c.Cause = cmp.Or(c.Cause, l.cause) + " (it could not be raised: " + failed.Error() + ")"
		}
		out = append(out, c)
	}
	sort.SliceStable(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}
