package kernels

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"lodge/internal/agent/initrd"
	"lodge/internal/base/errs"
	"lodge/internal/base/fsx"
	"lodge/internal/model/image"
	"lodge/internal/model/kernel"
)

// For returns the kernel that a guest of an image boots: the one called wanted,
// or if that is empty the best of the sort. It is NotFound if that is not here;
// the error's hint says how to build it.
func (s *Store) For(ctx context.Context, sort string, im image.Info, wanted string) (Boot, error) {
	names, err := s.Names()
	if err != nil {
		return Boot{}, err
	}
	name, err := kernel.Choose(names, kernel.Sort(sort), im.OS, im.Release, wanted)
	if err != nil {
		return Boot{}, err
	}
	return s.Boot(ctx, name)
}

// Boot returns the kernel called name, and makes the initrd that goes with this
// agent if there is none yet.
func (s *Store) Boot(ctx context.Context, name string) (Boot, error) {
	if err := valid(name); err != nil {
		return Boot{}, err
	}
	m, err := s.read(name)
	if err != nil {
		return Boot{}, err
	}
	at := func(f string) string { return filepath.Join(s.folder(name), f) }
	b := Boot{Name: name, Version: m.Info.Version, Path: at(m.Kernel)}
	for _, f := range m.Support {
		b.Support = append(b.Support, at(f))
	}
	if m.Extra != "" {
		b.Modules = at(m.Extra)
	}
	if err := ctx.Err(); err != nil {
		return Boot{}, err
	}
	b.Initrd, err = s.initrd(name, m)
	return b, err
}

// initrd returns the file of a kernel's initrd. There is one for each agent:
// a lodged that was brought up to date makes its own, and takes away those of
// its predecessors, which guests that run need no more.
//
// It is not compressed: packing saves a disk 3 MB, and costs an imitated
// processor more at each boot than reading does (measured: 3.4 against 3.6 s of
// processor time until the agent had run).
func (s *Store) initrd(name string, m manifest) (string, error) {
	s.checking.Lock()
	defer s.checking.Unlock()
	agent, err := digest(s.agent, false)
	if err != nil {
		return "", fmt.Errorf("the guests' agent: %w", err)
	}
	path := filepath.Join(s.folder(name), "initrd-"+agent.SHA256[:16])
	if fi, err := os.Stat(path); err == nil && fi.Size() > int64(agent.Size) {
		return path, nil
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	program, err := os.ReadFile(s.agent)
	if err != nil {
		return "", err
	}
	var modules []initrd.Module
	for _, f := range m.Modules {
		b, err := os.ReadFile(filepath.Join(s.folder(name), f))
		if err != nil {
			return "", corrupt(name, err)
		}
		modules = append(modules, initrd.Module{Name: filepath.Base(f), Data: b})
	}
	var out bytes.Buffer
	if err := initrd.Base(&out, program, modules); err != nil {
		return "", &errs.Error{Op: "kernel.initrd", Kind: errs.Internal, Ref: "kernel/" + name, Err: err}
	}
	old, err := filepath.Glob(filepath.Join(s.folder(name), "initrd-*"))
	if err != nil {
		return "", err
	}
	if err := fsx.WriteFile(path, out.Bytes(), 0o644); err != nil {
		return "", s.disk().Explain("making an initrd", err)
	}
	for _, f := range old {
		if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	return path, nil
}
