package daemon

import (
	"context"
	"log/slog"
	"path/filepath"

	"lodge/internal/admission"
	"lodge/internal/base/cgroup"
	"lodge/internal/engine"
	"lodge/internal/engine/oslevel"
	"lodge/internal/engine/qemu"
	"lodge/internal/engine/uml"
	"lodge/internal/fabric"
	"lodge/internal/fabric/bridge"
	"lodge/internal/images"
	"lodge/internal/images/busybox"
	"lodge/internal/images/debian"
	"lodge/internal/images/disk"
	"lodge/internal/images/tarball"
	"lodge/internal/kernels"
	"lodge/internal/model/guest"
	"lodge/internal/model/kernel"
	"lodge/internal/storage"
	"lodge/internal/storage/btrfs"
	"lodge/internal/storage/dir"
)

// bridgeDriver is what the default network is made with.
const bridgeDriver = "bridge"

// drivers is everything Lodge can be extended by. A new driver is its folder
// and one line here.
type drivers struct {
	engines engine.Set
	pools   map[string]storage.Driver
	fabrics map[string]fabric.Driver
	sources map[string]images.Source
	kernels []kernels.Source

	// What is imported is kept in the spool, by the source that it is for.
	spool *images.Spool
	trees *tarball.Source
	disks *disk.Source
}

// newDrivers makes them all. compresses tells engines whether memory that is
// swapped out is compressed; changed is called by engines that learn something
// of a guest that its reconciler should see.
func newDrivers(o Options, log *slog.Logger, tree *cgroup.Tree, store *kernels.Store, names fabric.Names, compresses func() bool, changed func(guestID string)) (drivers, error) {
	spool, err := images.OpenSpool(o.spoolDir())
	if err != nil {
		return drivers{}, err
	}
	d := drivers{
		engines: engine.Set{
			oslevel.New(oslevel.Options{
				Launch: filepath.Join(o.programs(), launchProgram), Agent: filepath.Join(o.programs(), agentProgram), Tree: tree, Log: log,
			}),
			uml.New(uml.Options{
				Launch: filepath.Join(o.programs(), launchProgram), Door: filepath.Join(o.programs(), doorLibrary), Tree: tree, Changed: changed, Log: log,
				Kernel: func(ctx context.Context) (engine.Kernel, error) { return bootsUsually(ctx, store, kernel.Program) },
			}),
			qemu.New(qemu.Options{
				Launch: filepath.Join(o.programs(), launchProgram), Image: filepath.Join(o.programs(), imageLibrary), Tree: tree, KVM: o.tryKVM, Compresses: compresses, Changed: changed, Log: log,
			}),
		},
		pools:   map[string]storage.Driver{},
		fabrics: map[string]fabric.Driver{},
		sources: map[string]images.Source{},
		kernels: kernelSources(o),
		spool:   spool,
		trees:   tarball.New(spool),
		disks:   disk.New(spool),
	}
	d.engines = append(d.engines, o.Engines...)
	for _, p := range []storage.Driver{dir.New(log), btrfs.New(log)} {
		d.pools[p.Info().Name] = p
	}
	for _, f := range []fabric.Driver{bridge.New(bridge.Options{Prefix: o.Prefix, Names: names, Log: log})} {
		d.fabrics[f.Name()] = f
	}
	for _, s := range []images.Source{debian.New(o.imageDir()), busybox.New(), disk.Empty{}, d.trees, d.disks} {
		d.sources[s.Name()] = s
	}
	return d, nil
}

// preferredPool chooses the driver of the default pool, and says why.
func (d drivers) preferredPool(dataDir string) (driver, why string) {
	return preferred(lookAt(dataDir, d.pools["btrfs"].Info()))
}

// engineFacts is what the door needs to know of the engine that runs guests of
// a model.
func (d drivers) engineFacts(m guest.Model, name string) (admission.Engine, error) {
	_, i, err := d.engines.Pick(context.Background(), m, name)
	if err != nil {
		return admission.Engine{}, err
	}
	e := admission.Engine{
		Name: i.Name, Model: i.Model, Form: i.Form, Kernel: i.Kernel, CPUModels: i.CPUModels, Features: i.CPUFeatures,
		Pause: i.Can.Pause, Plug: i.Can.Plug, Disk: i.Can.Disk, Save: i.Can.Save, Renew: i.Can.Renew,
	}
	for _, k := range i.Machines {
		e.Machines = append(e.Machines, admission.Machine(k))
	}
	return e, nil
}

func (d drivers) poolDrivers() (facts []admission.Driver) {
	for name, p := range d.pools {
		info := p.Info()
		facts = append(facts, admission.Driver{Name: name, Missing: info.Missing, Hint: info.Hint})
	}
	return facts
}

func (d drivers) networkDrivers() (facts []admission.Driver) {
	for name := range d.fabrics {
		facts = append(facts, admission.Driver{Name: name})
	}
	return facts
}
