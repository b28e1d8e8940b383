package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"strconv"
	"time"

	sdnotify "github.com/coreos/go-systemd/v22/daemon"

	"lodge/internal/base/fsx"
	"lodge/internal/doctor"
	"lodge/internal/model/guest"
)

// memoryGoal is what the daemon's own heap is collected down to, in bytes, when
// it grows: well above what a thousand guests need.
const memoryGoal = 96 << 20

// Run serves until ctx ends. Guests run on.
func Run(ctx context.Context, o Options) (err error) {
	debug.SetGCPercent(50)
	debug.SetMemoryLimit(memoryGoal)
	d := &daemon{opt: o, log: o.Log}
	defer func() { err = errors.Join(err, d.close()) }()
	if o.Limits {
		if err := doctor.EnsureLimits(ctx, o.DataDir, o.Log); err != nil {
			d.log.Warn("not all of the host's limits could be raised", "error", err)
		}
	}
	if err := d.open(ctx); err != nil {
		return err
	}
	if err := d.ensureDefaults(ctx); err != nil {
		return err
	}
	if err := d.planAutostart(ctx); err != nil {
		return err
	}
	if err := d.sweep(ctx); err != nil {
		d.log.Warn("what an earlier daemon left could not be removed", "error", err)
	}
	return d.serve(ctx)
}

// sweep removes content and uploads that no image needs: a daemon died before it
// could.
func (d *daemon) sweep(ctx context.Context) error {
	wanted := map[string]bool{}
	for _, im := range d.tables.Images.List() {
		wanted[im.Spec.Upload] = true
	}
	return errors.Join(
		d.making.SweepAll(ctx),
		d.drivers.spool.Sweep(func(id string) bool { return wanted[id] }),
	)
}

// serve runs the reconcilers and the server until ctx or one of them ends.
func (d *daemon) serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	listeners, err := d.listen()
	if err != nil {
		return err
	}
	srv, err := d.newServer(ctx)
	if err != nil {
		return err
	}
	if err := fsx.WriteFile(d.opt.pidFile(), []byte(strconv.Itoa(os.Getpid())+"\n"), 0o644); err != nil {
		return err
	}
	defer os.Remove(d.opt.pidFile())
	d.receipts.Ended = srv.Ended
	ended := make(chan error, 2)
	go func() { ended <- d.runner.Run(ctx) }()
	go d.watchExits(ctx)
	made := make(chan struct{})
	go func() { defer close(made); d.templates.Run(ctx) }()
	readied := make(chan struct{})
	go func() { defer close(readied); d.guests.RunStandbys(ctx, d.log) }()
	defer func() { cancel(); <-made; <-readied }()
	d.awaitParts(ctx)
	go func() { ended <- srv.Serve(ctx, listeners...) }()
	d.log.Info("lodged is up", "host", d.opt.Host, "socket", d.opt.Socket(), "https", d.opt.HTTPS, "cgroups", d.layout.Describe())
	sdnotify.SdNotify(false, sdnotify.SdNotifyReady)
	err = <-ended
	stopping := ctx.Err() != nil
	sdnotify.SdNotify(false, sdnotify.SdNotifyStopping)
	cancel()
	if err2 := <-ended; err == nil {
		err = err2
	}
	if stopping && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// awaitParts waits until pools and networks are open, so that the first request
// after a start does not meet a guest whose parts are not there yet. Those who
// ask meanwhile wait with it. It gives up soon: what has a problem says so.
func (d *daemon) awaitParts(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, partsPatience)
	defer cancel()
	for !d.partsOpen() {
		select {
		case <-ctx.Done():
			return
		case <-time.After(5 * time.Millisecond):
		}
	}
}

const partsPatience = 2 * time.Second

func (d *daemon) partsOpen() bool {
	for _, p := range d.tables.Pools.List() {
		if _, err := d.pools.Get(p.Name); err != nil && p.Status.Problem == nil && p.Deleting == nil {
			return false
		}
	}
	for _, n := range d.tables.Networks.List() {
		if _, err := d.networks.Get(n.Name); err != nil && n.Status.Problem == nil && n.Deleting == nil {
			return false
		}
	}
	return true
}

// planAutostart gives the guests that went down with the host their turn to
// come back.
func (d *daemon) planAutostart(ctx context.Context) error {
	var lost []guest.Guest
	for _, rec := range d.tables.Guests.List() {
		g := guest.Guest{Meta: rec.Meta, Spec: rec.Spec, Status: rec.Status}
		if d.guests.WentDownWithHost(g) {
			lost = append(lost, g)
		}
	}
	now := time.Now()
	for id, after := range guest.AutostartPlan(lost) {
		at := now.Add(after)
		if _, err := d.tables.Guests.SetStatus(ctx, id, func(s *guest.Status) error { s.NotBefore = &at; return nil }); err != nil {
			return fmt.Errorf("planning which guests come back with the host: %w", err)
		}
	}
	return nil
}
