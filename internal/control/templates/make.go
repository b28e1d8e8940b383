package templates

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
	"lodge/internal/base/fsx"
	"lodge/internal/engine"
	"lodge/internal/keeper"
	"lodge/internal/model"
	"lodge/internal/model/guest"
)

// prefix begins the names of programs and control groups that are templates in
// the making. No guest's id begins so.
const prefix = "template-"

// Time that making one may take: a boot on a busy host, and how long one that
// is up is left to come to rest before its memory is taken.
const (
	bootTime   = 5 * time.Minute
	settleTime = 3 * time.Second
	lookEvery  = 250 * time.Millisecond
	endTime    = 30 * time.Second
)

// weight keeps what nobody waits for behind what somebody does.
const weight = 10

// make boots a guest that nobody sees and keeps its memory and disk.
func (t *Templates) make(ctx context.Context, j job) (*template, error) {
	name, dir := prefix+j.key, t.folder(j.key)+unfinished
	if err := os.RemoveAll(dir); err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	for _, d := range []string{"disk", "memory", "run"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			return nil, err
		}
	}
	if err := room(dir, j.g.Spec.Memory); err != nil {
		return nil, err
	}
	e, info, err := t.Engines.Pick(ctx, j.g.Spec.Model, j.g.Spec.Engine)
	if err != nil {
		return nil, err
	}
	g, parts := stranger(j, name, dir, t.Cards, t.IDBase)
	if err := t.Volume(ctx, parts.Root.Volume, g.Spec.Disk); err != nil {
		return nil, err
	}
	limits := info.Overhead.Limits(g.Spec, "")
	limits.CPUWeight = weight
	if err := t.Cgroups.Create(name, limits); err != nil {
		return nil, err
	}
	defer t.end(name)
	if parts, err = engine.ForBoot(parts); err != nil {
		return nil, err
	}
	p, err := e.Program(g, parts)
	if err != nil {
		return nil, err
	}
	held, err := t.Keepers.Start(ctx, name, p)
	if err != nil {
		return nil, err
	}
	if err := t.record(ctx, e, g, parts, held, filepath.Join(dir, "memory")); err != nil {
		return nil, fmt.Errorf("%w; it said last: %s", err, lastWords(parts.Dir))
	}
	t.end(name)
	return t.commit(j.key, dir)
}

// stranger is a guest as j's that is nobody's: it has the same machine, and no
// name, address or way out.
func stranger(j job, name, dir, cards string, ids uint32) (guest.Guest, engine.Parts) {
	// No name is shorter, so that files with a copy's own grow: that is less work
	// for it than to have them shrink.
	g := guest.Guest{Meta: model.Meta{ID: name, Name: "t"}, Spec: j.g.Spec, Holder: j.g.Holder}
	g.Spec.Restart, g.Spec.NICs = guest.Never, nil
	parts := j.parts
	parts.Dir, parts.Cgroup, parts.IDBase, parts.CPUSet, parts.Memory = filepath.Join(dir, "run"), name, ids, nil, ""
	parts.Root.Writable = filepath.Join(dir, "disk")
	parts.Root.Volume = filepath.Join(parts.Root.Writable, volumeFile)
	parts.NICs, parts.DNS, parts.Domain = nil, nil, ""
	for i, n := range j.parts.NICs {
		parts.NICs = append(parts.NICs, engine.NIC{
			Name: n.Name, MTU: n.MTU, MAC: fmt.Sprintf("02:00:00:00:00:%02x", i+1), Device: fmt.Sprintf("%st%.4sn%d", cards, strings.TrimPrefix(name, prefix), i),
		})
	}
	return g, parts
}

// record waits until the guest is up and has come to rest, and writes its memory
// to dir.
func (t *Templates) record(ctx context.Context, e engine.Engine, g guest.Guest, parts engine.Parts, held keeper.Held, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, bootTime)
	defer cancel()
	m, err := e.Connect(ctx, g, parts, held)
	if err != nil {
		return err
	}
	defer m.Close()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	var ready time.Time
	for ready.IsZero() || time.Since(ready) < settleTime {
		select {
		case <-ctx.Done():
			return &errs.Error{Kind: errs.Unavailable, Msg: "the guest did not come up", Err: ctx.Err()}
		case <-tick.C:
		}
		if held.State().Exit != nil {
			return &errs.Error{Kind: errs.Unavailable, Msg: "the guest ended while it booted"}
		}
		p, err := m.Probe(ctx)
		switch {
		case err != nil || !p.Ready:
			ready = time.Time{}
		case ready.IsZero():
			ready = time.Now()
		}
	}
	pauser, saver := m.(engine.Pauser), m.(engine.Saver) // fits looked
	if err := pauser.Pause(ctx); err != nil {
		return err
	}
	return saver.Save(ctx, dir)
}

// commit puts a finished template in its place.
func (t *Templates) commit(key, dir string) (*template, error) {
	if err := os.RemoveAll(filepath.Join(dir, "run")); err != nil {
		return nil, err
	}
	for _, d := range []string{"disk", "memory", "."} {
		if err := syncAll(filepath.Join(dir, d)); err != nil {
			return nil, err
		}
	}
	if err := os.Rename(dir, t.folder(key)); err != nil {
		return nil, err
	}
	if err := fsx.SyncDir(t.Dir); err != nil {
		return nil, err
	}
	return t.find(key)
}

// syncAll makes the files of a folder durable.
func syncAll(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Syncfs(int(f.Fd()))
}

// end ends what was booted, for whatever reason, and takes away its group. It
// may be called again.
func (t *Templates) end(name string) {
	ctx, cancel := context.WithTimeout(context.Background(), endTime)
	defer cancel()
	err := t.kill(ctx, name)
	if err == nil {
		err = t.Cgroups.Remove(ctx, name)
	}
	if err != nil {
		t.Log.Warn("what was booted for a template could not be ended", "program", name, "error", err)
	}
}

func (t *Templates) kill(ctx context.Context, name string) error {
	held, err := t.Keepers.Find(name)
	if errs.Is(err, errs.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if held.State().Exit == nil {
		if err := held.Signal(ctx, unix.SIGKILL); err != nil && !errs.Is(err, errs.Conflict) {
			return err
		}
		if _, err := held.Wait(ctx); err != nil {
			return err
		}
	}
	return t.Keepers.Forget(ctx, name)
}

// Sweep ends everything that was booted for templates, by this daemon or an
// earlier one.
func (t *Templates) Sweep(ctx context.Context) error {
	var failed []error
	for _, s := range t.Keepers.All() {
		if IsTemplate(s.Name) {
			failed = append(failed, t.kill(ctx, s.Name))
		}
	}
	groups, err := t.Cgroups.List()
	failed = append(failed, err)
	for _, name := range groups {
		if IsTemplate(name) {
			failed = append(failed, t.Cgroups.Remove(ctx, name))
		}
	}
	return errors.Join(failed...)
}

// IsTemplate reports whether a program or control group is that of a template
// in the making, and no guest's.
func IsTemplate(name string) bool { return strings.HasPrefix(name, prefix) }

// room says NoSpace unless a memory image of a guest fits on the disk of dir,
// with as much again left for others.
func room(dir string, memory uint64) error {
	free, err := fsx.Free(dir)
	if err == nil && free < 2*memory {
		return &errs.Error{Op: "template.make", Kind: errs.NoSpace, Msg: "too little is free on the disk of the data directory"}
	}
	return err
}

// lastWords is the end of what a guest said on its console.
func lastWords(dir string) string {
	text, err := os.ReadFile(engine.ConsoleLog(dir))
	if err != nil || len(text) == 0 {
		return "nothing"
	}
	return string(text[max(0, len(text)-500):])
}
