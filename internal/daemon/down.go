package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
	"lodge/internal/base/zram"
	"lodge/internal/keeper"
	"lodge/internal/storage"
)

// Down ends a running lodged, stops all guests cleanly without changing what is
// wanted of them, and takes away everything but data: the keeper, networks,
// mounts, swap space, control groups. It tells its progress on out. It may be called again
// after it failed.
func Down(ctx context.Context, o Options, out io.Writer) error {
	if _, err := os.Stat(o.storeDir()); errors.Is(err, os.ErrNotExist) {
		fmt.Fprintln(out, "nothing is up")
		return nil
	}
	if err := endDaemon(ctx, o, out); err != nil {
		return err
	}
	d := &daemon{opt: o, log: o.Log, down: true}
	if err := d.open(ctx); err != nil {
		return errors.Join(err, d.close())
	}
	err := d.stopGuests(ctx, out)
	if err == nil {
		err = d.takeDown(ctx, out)
	}
	return errors.Join(err, d.close())
}

// endDaemon asks the lodged that holds the data directory to end, and waits
// until it has.
func endDaemon(ctx context.Context, o Options, out io.Writer) error {
	text, err := os.ReadFile(o.pidFile())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || !isLodged(pid) {
		return nil // left by one that was killed
	}
	fmt.Fprintln(out, "ending lodged")
	if err := unix.Kill(pid, unix.SIGTERM); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	for isLodged(pid) {
		select {
		case <-ctx.Done():
			return &errs.Error{Kind: errs.Unavailable, Msg: fmt.Sprintf("lodged (pid %d) does not end", pid), Hint: fmt.Sprintf("kill -9 %d", pid), Err: ctx.Err()}
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}

// isLodged reports whether pid is a lodged, and not some other program that got
// its number.
func isLodged(pid int) bool {
	comm, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "comm"))
	return err == nil && strings.TrimSpace(string(comm)) == "lodged"
}

// stopGuests runs the reconcilers until no guest is up.
func (d *daemon) stopGuests(ctx context.Context, out io.Writer) error {
	up := running(d.keepers.All())
	if len(up) == 0 {
		return nil
	}
	fmt.Fprintf(out, "stopping %s\n", count(len(up), "guest"))
	d.guests.GoDown()
	ctx, cancel := context.WithCancel(ctx)
	go d.watchExits(ctx)
	ended := make(chan error, 1)
	go func() { ended <- d.runner.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-ended:
			ended <- err
			return err
		case <-tick.C:
		}
		groups, err := d.cgroups.List()
		if err != nil {
			return err
		}
		if len(running(d.keepers.All())) == 0 && len(groups) == 0 {
			return nil
		}
	}
}

func running(all []keeper.State) (names []string) {
	for _, s := range all {
		if s.Exit == nil {
			names = append(names, s.Name)
		}
	}
	return names
}

// takeDown removes what is left of Lodge on the host when no guest is up.
func (d *daemon) takeDown(ctx context.Context, out io.Writer) error {
	fmt.Fprintln(out, "taking away networks, mounts, swap space and control groups")
	var all []error
	for _, n := range d.tables.Networks.List() {
		if driver, ok := d.drivers.fabrics[n.Spec.Driver]; ok {
			all = append(all, driver.Remove(ctx, n.Name))
		}
	}
	for _, rec := range d.tables.Pools.List() {
		all = append(all, d.unmount(ctx, rec.Name, rec.ID))
	}
	all = append(all, d.images.UnmountAll(ctx), d.keepers.Shutdown(ctx), d.cgroups.Destroy(ctx))
	for _, path := range []string{d.opt.Socket(), d.opt.pidFile()} {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			all = append(all, err)
		}
	}
	all = append(all, zram.Remove(), os.RemoveAll(d.opt.programs()))
	return errors.Join(all...)
}

func (d *daemon) unmount(ctx context.Context, name, id string) error {
	rec, err := d.tables.Pools.ByID(id)
	if err != nil {
		return err
	}
	p, open := d.pools.Take(name)
	if !open {
		driver, ok := d.drivers.pools[rec.Spec.Driver]
		if !ok {
			return nil
		}
		if p, err = driver.Open(ctx, name, rec.Spec, filepath.Join(d.opt.poolDir(), id)); err != nil {
			return err
		}
	}
	if u, ok := p.(storage.Unmounter); ok {
		return errors.Join(p.Close(), u.Unmount(ctx))
	}
	return p.Close()
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return strconv.Itoa(n) + " " + noun + "s"
}
