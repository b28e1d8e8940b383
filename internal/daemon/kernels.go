package daemon

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"time"

	"lodge/internal/base/errs"
	kernelcontrol "lodge/internal/control/kernels"
	"lodge/internal/doctor"
	"lodge/internal/engine"
	"lodge/internal/kernels"
	"lodge/internal/kernels/compiled"
	kerneldebian "lodge/internal/kernels/debian"
	"lodge/internal/model/guest"
	"lodge/internal/model/image"
	"lodge/internal/model/kernel"
)

// kernelSources are where kernels come from: a source is its folder and one
// line here.
func kernelSources(o Options) []kernels.Source {
	return []kernels.Source{
		kerneldebian.New(filepath.Join(o.kernelDir(), "cache", "packages")),
		compiled.New(filepath.Join(o.kernelDir(), "cache", "source"), filepath.Join(o.programs(), agentProgram)),
	}
}

func openKernels(o Options, log *slog.Logger) (*kernels.Store, error) {
	return kernels.OpenStore(o.kernelDir(), filepath.Join(o.programs(), agentProgram), log)
}

func (d *daemon) newKernelMaking() *kernelcontrol.Reconciler {
	return kernelcontrol.New(kernelcontrol.Options{
		Tables: d.tables, Store: d.kernels, Sources: d.drivers.kernels, Now: time.Now, Log: d.log, Tell: d.progress.Publish,
		Wake: func(id string) { d.runner.Wake("kernels", id) },
	})
}

// checkKernel says whether the kernel called name can be built here.
func (d *daemon) checkKernel(name string) error {
	source, err := kernelcontrol.Source(d.drivers.kernels, name)
	if err != nil {
		return err
	}
	return source.Check(name)
}

// bootable gives guests their kernels.
type bootable struct{ *daemon }

// For finds the kernel in the store, as it is to be handed to an engine.
func (b bootable) For(ctx context.Context, kind string, im image.Info, wanted string) (engine.Kernel, error) {
	k, err := b.kernels.For(ctx, kind, im, wanted)
	if err != nil {
		return engine.Kernel{}, b.compiling.OnItsWay(err)
	}
	return forEngine(k), nil
}

func forEngine(k kernels.Boot) engine.Kernel {
	return engine.Kernel{Name: k.Name, Version: k.Version, Path: k.Path, Initrd: k.Initrd, Support: k.Support, Modules: k.Modules}
}

// bootsUsually is the kernel of a sort that guests boot which want none by
// name.
func bootsUsually(ctx context.Context, store *kernels.Store, sort kernel.Sort) (engine.Kernel, error) {
	k, err := store.For(ctx, string(sort), image.Info{}, "")
	if err != nil {
		return engine.Kernel{}, err
	}
	return forEngine(k), nil
}

// kernelsThere tells the doctor what guests have to boot.
func (d *daemon) kernelsThere(ctx context.Context) (all []doctor.Kernels) {
	for _, m := range []guest.Model{guest.VM, guest.Paravirt} {
		_, info, err := d.drivers.engines.Pick(ctx, m, "")
		if err != nil || info.Kernel == "" {
			continue
		}
		k := doctor.Kernels{Model: string(m)}
		for _, r := range d.tables.Kernels.List() {
			if kernel.SortOf(r.Name) == kernel.Sort(info.Kernel) && r.Status.Digest != "" {
				k.There = append(k.There, r.Name+" "+r.Status.Info.Version)
			}
		}
		if err := d.checkKernel(kernel.Suits(kernel.Sort(info.Kernel), "", "")); err != nil {
			k.Lack = err.Error()
			if e, ok := errors.AsType[*errs.Error](err); ok {
				k.Lack, k.Fix = e.Words(), e.Hint
			}
		}
		all = append(all, k)
	}
	return all
}
