package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"lodge/internal/base/bus"
	"lodge/internal/base/cgroup"
	"lodge/internal/base/errs"
	"lodge/internal/base/fsx"
	"lodge/internal/cluster"
	"lodge/internal/control"
	"lodge/internal/control/forwards"
	"lodge/internal/control/guests"
	imagecontrol "lodge/internal/control/images"
	kernelcontrol "lodge/internal/control/kernels"
	"lodge/internal/control/networks"
	"lodge/internal/control/operations"
	"lodge/internal/control/placements"
	"lodge/internal/control/pools"
	"lodge/internal/control/snapshots"
	"lodge/internal/control/templates"
	"lodge/internal/fabric"
	"lodge/internal/images"
	"lodge/internal/keeper"
	"lodge/internal/kernels"
	"lodge/internal/model"
	"lodge/internal/model/guest"
	"lodge/internal/model/network"
	"lodge/internal/model/operation"
	"lodge/internal/model/pool"
	"lodge/internal/reconcile"
	"lodge/internal/storage"
	"lodge/internal/store"
	"lodge/internal/store/tables"
)

// workers is how many records are reconciled at once. Starting a guest is
// mostly waiting for the kernel's locks, so a few more than a small server's
// processors help.
const workers = 8

// daemon is everything that is open while lodged runs.
type daemon struct {
	opt         Options
	down        bool // it is there to take everything down
	log         *slog.Logger
	lock        *os.File
	node        *cluster.Node
	store       *store.Store
	tables      *tables.Tables
	keepers     *keeper.Client
	cgroups     *cgroup.Tree
	layout      *cgroup.Layout
	images      *images.Store
	kernels     *kernels.Store
	drivers     drivers
	pools       *control.Handles[storage.Pool]
	networks    *control.Handles[fabric.Fabric]
	progress    *bus.Bus[operation.Progress]
	runner      *reconcile.Runner
	guests      *guests.Reconciler
	templates   *templates.Templates
	compression compression
	making      *imagecontrol.Reconciler
	compiling   *kernelcontrol.Reconciler
	receipts    *operations.Reconciler
}

// open makes everything ready in order; what was opened before an error is
// closed by close.
func (d *daemon) open(ctx context.Context) error {
	if err := d.opt.check(); err != nil {
		return err
	}
	if err := d.openDirs(); err != nil {
		return err
	}
	if err := unpack(d.opt.programs()); err != nil {
		return err
	}
	if err := d.openStore(ctx); err != nil {
		return err
	}
	if err := d.openHost(ctx); err != nil {
		return err
	}
	var err error
	if d.drivers, err = newDrivers(d.opt, d.log, d.cgroups, d.kernels, names{d.tables}, d.compression.takes, d.guestChanged); err != nil {
		return err
	}
	d.pools = control.NewHandles[storage.Pool](pool.Kind)
	d.networks = control.NewHandles[fabric.Fabric](network.Kind)
	d.progress = bus.New[operation.Progress]()
	if err := d.openTemplates(ctx); err != nil {
		return err
	}
	return d.openReconcilers(ctx)
}

func (d *daemon) openDirs() error {
	for _, dir := range []string{d.opt.DataDir, d.opt.RunDir, d.opt.spoolDir(), d.opt.poolDir(), d.opt.guestDir()} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return fmt.Errorf("making Lodge's directories: %w", err)
		}
	}
	f, err := os.OpenFile(filepath.Join(d.opt.DataDir, "lock"), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return &errs.Error{Kind: errs.Conflict, Msg: "another lodged uses " + d.opt.DataDir, Hint: "stop it first: systemctl stop lodged, or make down", Err: err}
	}
	d.lock = f
	return d.keepName()
}

// keepName holds on to the name the host had when Lodge first ran here: guests
// are held by that name, and a host that is renamed must not lose them.
func (d *daemon) keepName() error {
	file := filepath.Join(d.opt.DataDir, "host")
	text, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return fsx.WriteFile(file, []byte(d.opt.Host+"\n"), 0o644)
	}
	if err != nil {
		return err
	}
	if name := strings.TrimSpace(string(text)); name != d.opt.Host {
		d.log.Info("the host keeps the name that its guests know it by", "name", name, "ignored", d.opt.Host)
		d.opt.Host = name
	}
	return nil
}

func (d *daemon) openStore(ctx context.Context) (err error) {
	d.node, err = cluster.Start(ctx, cluster.Options{Dir: d.opt.storeDir(), Name: d.opt.Host, Log: d.log})
	if err != nil {
		return err
	}
	openStore := d.node.Store
	if d.down {
		openStore = d.node.LastStore
	}
	if d.store, err = openStore(ctx); err != nil {
		return err
	}
	d.tables = tables.Open(d.store)
	return d.store.Err()
}

func (d *daemon) openHost(ctx context.Context) (err error) {
	if d.layout, err = cgroup.Detect(); err != nil {
		return err
	}
	if d.cgroups, err = d.layout.Open(d.opt.Group); err != nil {
		return err
	}
	if d.images, err = images.OpenStore(d.opt.imageDir(), d.opt.RunDir, d.log); err != nil {
		return err
	}
	if d.kernels, err = openKernels(d.opt, d.log); err != nil {
		return err
	}
	if err := d.openCompression(); err != nil {
		return err
	}
	binary := filepath.Join(d.opt.programs(), keeperProgram)
	if d.keepers, err = keeper.Open(ctx, keeper.Options{Dir: d.opt.keeperDir(), Binary: binary, Log: d.log}); err != nil {
		return err
	}
	// A keeper that an older lodged started becomes this one's in place. It
	// goes on as it is when it cannot: its protocol only grows.
	if err := d.keepers.Upgrade(ctx, binary); err != nil {
		d.log.Warn("the keeper could not be brought up to date", "error", err)
	}
	return nil
}

func (d *daemon) openReconcilers(ctx context.Context) (err error) {
	d.runner = reconcile.New(d.log, workers)
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	standby, err := orShare(d.opt.Standby, warmShare)
	if err != nil {
		return err
	}
	placing := placements.New(d.store, d.tables, d.opt.Host)
	d.guests, err = guests.New(guests.Options{
		Tables: d.tables, Host: d.opt.Host, HostBoot: strings.TrimSpace(string(boot)), Dir: d.opt.guestDir(),
		Keepers: d.keepers, Engines: d.drivers.engines, Pools: d.pools, Networks: d.networks,
		Cgroups: d.cgroups, Images: d.images, Layers: layers{}, Templates: d.templates, Kernels: bootable{d}, CPUs: processors(), Cards: fabric.Cards(d.opt.Prefix), Now: time.Now,
		Slots: placing, StandbyMemory: standby, Tell: d.tellStep, Copied: d.tellCopied,
	})
	if err != nil {
		return err
	}
	if err := d.guests.FindStandbys(ctx); err != nil {
		d.log.Warn("what stood ready under an earlier daemon could not be ended", "error", err)
	}
	d.making = imagecontrol.New(imagecontrol.Options{
		Tables: d.tables, Store: d.images, Sources: d.drivers.sources, Now: time.Now, Log: d.log, Tell: d.progress.Publish,
		Wake:    func(id string) { d.runner.Wake("images", id) },
		Spooled: d.drivers.spool.Discard,
	})
	d.compiling = d.newKernelMaking()
	d.receipts = operations.New(d.tables, time.Now)
	for _, rec := range []reconcile.Reconciler{
		&pools.Reconciler{Tables: d.tables, Drivers: d.drivers.pools, Open: d.pools, Dir: d.opt.poolDir(), Now: time.Now},
		&networks.Reconciler{Tables: d.tables, Drivers: d.drivers.fabrics, Open: d.networks, Now: time.Now},
		placing,
		d.making,
		d.compiling,
		d.guests,
		&snapshots.Reconciler{Tables: d.tables, Host: d.opt.Host, Pools: d.pools, Guests: d.guests, Now: time.Now},
		&forwards.Reconciler{Tables: d.tables, Open: d.networks, Now: time.Now},
		d.receipts,
	} {
		if err := d.runner.Add(rec); err != nil {
			return err
		}
	}
	d.runner.Feed(d.store)
	return nil
}

// tellStep tells the event stream which step a guest takes now.
func (d *daemon) tellStep(id string, s guest.Step) {
	if g, err := d.tables.Guests.ByID(id); err == nil {
		d.progress.Publish(operation.Progress{Subject: model.Key{Kind: guest.Kind, Name: g.Name}, Step: s.Word()})
	}
}

// tellCopied tells the event stream how far a change of model has come.
func (d *daemon) tellCopied(id string, done, total uint64) {
	if g, err := d.tables.Guests.ByID(id); err == nil {
		d.progress.Publish(operation.Progress{
			Subject: model.Key{Kind: guest.Kind, Name: g.Name}, Step: "copying the private layer", Done: done, Total: total, Unit: "bytes",
		})
	}
}

// guestChanged wakes the reconciler of a guest of which an engine learnt
// something.
func (d *daemon) guestChanged(id string) { d.runner.Wake("guests", id) }

// watchExits wakes the reconciler of each guest whose first process ended.
func (d *daemon) watchExits(ctx context.Context) {
	for s := range d.keepers.Exits(ctx) {
		d.runner.Wake("guests", s.Name)
	}
}

// close lets go of everything in reverse order. Guests run on.
func (d *daemon) close() error {
	var all []error
	if d.making != nil {
		d.making.Close()
	}
	if d.compiling != nil {
		d.compiling.Close()
	}
	if d.networks != nil {
		d.networks.All(func(_ string, f fabric.Fabric) { all = append(all, f.Close()) })
	}
	if d.pools != nil {
		d.pools.All(func(_ string, p storage.Pool) { all = append(all, p.Close()) })
	}
	if d.keepers != nil {
		all = append(all, d.keepers.Close())
	}
	all = append(all, d.compression.close())
	if d.store != nil {
		all = append(all, d.store.Close())
	}
	if d.node != nil {
		all = append(all, d.node.Close())
	}
	if d.lock != nil {
		all = append(all, d.lock.Close())
	}
	return errors.Join(all...)
}
