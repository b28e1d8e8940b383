package kernels

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
	"lodge/internal/base/fsx"
	"lodge/internal/model/kernel"
)

// spare is what must be free before a build starts: less would only fail later.
const spare = 512 << 20

// Store keeps each kernel in a folder of its name.
//
// A kernel is whole or not there: it is made in a private folder, sealed by a
// manifest with the digest of each file, synced, and put into place at once.
type Store struct {
	dir   string
	agent string // the program that becomes /init of every initrd
	log   *slog.Logger

	mu       sync.Mutex
	sound    map[string]os.FileInfo // manifests whose files were found to be what they say
	checking sync.Mutex             // one initrd is made at a time
}

// Built is a kernel that is in the store.
type Built struct {
	Digest string // of its manifest, and so of all its files
	Size   uint64 // bytes of all files
	Info   kernel.Info
}

// OpenStore opens or makes the store at dir, whose guests run the program agent
// first, and removes what builds left that a crash cut off. Only one process
// may have a store open.
func OpenStore(dir, agent string, log *slog.Logger) (*Store, error) {
	s := &Store{dir: dir, agent: agent, log: log, sound: map[string]os.FileInfo{}}
	if err := os.RemoveAll(s.temps()); err != nil {
		return nil, fmt.Errorf("kernel store: removing an unfinished build: %w", err)
	}
	if err := os.MkdirAll(s.temps(), 0o711); err != nil {
		return nil, fmt.Errorf("kernel store: %w", err)
	}
	return s, nil
}

func (s *Store) temps() string             { return filepath.Join(s.dir, "tmp") }
func (s *Store) folder(name string) string { return filepath.Join(s.dir, name) }

// valid refuses what is not the name of a kernel, so that it can become a path.
func valid(name string) error {
	sort, rest, ok := strings.Cut(name, "/")
	if !ok || sort == "tmp" || sort == "cache" || strings.HasPrefix(rest, ".") || strings.Contains(rest, "/") || !filepath.IsLocal(name) || filepath.Clean(name) != name {
		return errs.Bad("kernel", fmt.Sprintf("%q is not the name of a kernel", name), "such names are linux/debian-12 and um/debian-sid")
	}
	return nil
}

// Build makes a kernel and puts it in the place of one of that name, if there
// is one: guests that run keep what they run on. After an error nothing of it
// is left and the old one is there still.
func (s *Store) Build(ctx context.Context, source Source, name string, told Told) (Built, error) {
	if err := valid(name); err != nil {
		return Built{}, err
	}
	if err := source.Check(name); err != nil {
		return Built{}, err
	}
	if err := s.disk().Need(spare); err != nil {
		return Built{}, err
	}
	temp, err := os.MkdirTemp(s.temps(), "build-")
	if err != nil {
		return Built{}, s.disk().Explain("building a kernel", err)
	}
	defer func() {
		if e := os.RemoveAll(temp); e != nil {
			s.log.Warn("an unfinished kernel build could not be removed", "folder", temp, "error", e)
		}
	}()
	built, err := s.build(ctx, source, name, temp, told)
	if ctx.Err() != nil {
		return Built{}, &errs.Error{Op: "kernel.build", Kind: errs.Cancelled, Msg: "the build was cancelled", Err: ctx.Err()}
	}
	if err != nil {
		return Built{}, s.disk().Failed("building a kernel", err)
	}
	return built, nil
}

func (s *Store) build(ctx context.Context, source Source, name, temp string, told Told) (built Built, err error) {
	dir, work := filepath.Join(temp, "kernel"), filepath.Join(temp, "work")
	for _, d := range []string{dir, work} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return built, err
		}
	}
	made, err := source.Make(ctx, name, dir, work, told)
	if err != nil {
		return built, err
	}
	told("storing", 0, 0, "", "")
	if built, err = seal(dir, made); err != nil {
		return built, err
	}
	if err := ctx.Err(); err != nil {
		return built, err
	}
	return built, s.place(dir, name)
}

// place puts the folder dir where the kernel called name belongs. What was
// there is left in dir.
func (s *Store) place(dir, name string) error {
	to := s.folder(name)
	if err := os.MkdirAll(filepath.Dir(to), 0o711); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	err := unix.Renameat2(unix.AT_FDCWD, dir, unix.AT_FDCWD, to, unix.RENAME_EXCHANGE)
	if errors.Is(err, unix.ENOENT) {
		err = os.Rename(dir, to)
	}
	if err != nil {
		return err
	}
	delete(s.sound, name)
	return fsx.SyncDir(filepath.Dir(to))
}

// Names lists the kernels that are there, sorted.
func (s *Store) Names() ([]string, error) {
	found, err := filepath.Glob(filepath.Join(s.dir, "*", "*", manifestFile))
	if err != nil {
		return nil, err
	}
	var names []string
	for _, f := range found {
		name, err := filepath.Rel(s.dir, filepath.Dir(f))
		if err == nil && valid(name) == nil {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// Remove deletes a kernel; an absent one is no error. Guests that run keep what
// they run on.
func (s *Store) Remove(name string) error {
	if err := valid(name); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sound, name)
	gone, err := os.MkdirTemp(s.temps(), "gone-")
	if err != nil {
		return fmt.Errorf("removing a kernel: %w", err)
	}
	err = os.Rename(s.folder(name), filepath.Join(gone, "kernel"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing a kernel: %w", err)
	}
	if err := os.RemoveAll(gone); err != nil {
		return fmt.Errorf("removing a kernel: %w", err)
	}
	return nil
}

// disk is the one that kernels lie and are made on.
func (s *Store) disk() fsx.Room {
	return fsx.Room{Dir: s.dir, Op: "kernel.build", Kept: "kernels",
		Hint: "free some space on the disk of the data directory, then try again"}
}
