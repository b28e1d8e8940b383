// Bench measures what Lodge promises about its speed and size, beside the least
// that the kernel needs for the same and beside other programs that do it, in
// one run and by turns: a busy machine slows all of them alike, so their ratios
// hold where their times don't.
//
// It runs in namespaces of its own. scripts/bench.sh builds what it needs.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"lodge/test/sandbox"
)

// options is what a run is told.
type options struct {
	bin    string   // where lodge and lodged are
	parts  string   // where the small programs, the floor and what runs inside guests are
	out    string   // where the report goes
	only   []string // of start, commands, density, uml, qemu, migrate, change, faults
	rounds int      // of what is timed by turns
	guests int      // of the density test
	ports  int      // guests on one network at once; 0: that is not tried
	tag    string   // in the name of every control group that is made
}

// bench is one run.
type bench struct {
	options
	report Report
	dir    string // everything on disk is below it
	undo   []func()
}

func main() { os.Exit(sandbox.Run(run)) }

func run() int {
	var o options
	only := flag.String("only", "start,commands,density,uml,qemu,migrate,change,faults", "which measurements to make")
	flag.StringVar(&o.bin, "bin", "bin", "where lodge and lodged are")
	flag.StringVar(&o.parts, "parts", "build/bench", "where lodge-launch, lodge-keeper, floor and inside are")
	flag.StringVar(&o.out, "out", "build/bench", "where bench.json goes")
	flag.StringVar(&o.tag, "tag", "lodge-bench", "in the name of every control group that is made")
	flag.IntVar(&o.rounds, "rounds", 30, "rounds of what is timed by turns")
	flag.IntVar(&o.guests, "guests", 1000, "guests of the density test")
	flag.IntVar(&o.ports, "ports", 1100, "guests to have on one network at once; 0: don't try")
	flag.Parse()
	o.only = strings.Split(*only, ",")
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	if err := measure(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
	return 0
}

func measure(ctx context.Context, o options) (err error) {
	dir, err := os.MkdirTemp("/var/tmp", o.tag+"-")
	if err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o711); err != nil { // guests' own users pass through it
		return err
	}
	b := &bench{options: o, dir: dir, report: Report{At: time.Now(), Machine: lookAround()}}
	b.later(func() { err = errors.Join(err, os.RemoveAll(dir)) })
	defer b.cleanUp()
	if err := b.lendIDs(); err != nil {
		return err
	}
	for _, part := range []struct {
		name string
		run  func(context.Context) error
	}{{"start", b.starts}, {"commands", b.commands}, {"density", b.density}, {"uml", b.paravirt}, {"qemu", b.machines}, {"migrate", b.moves}, {"change", b.changes}, {"faults", b.faults}} {
		if !slices.Contains(o.only, part.name) {
			continue
		}
		if e := part.run(ctx); e != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w", part.name, e))
		}
		if ctx.Err() != nil {
			break
		}
	}
	b.report.Machine.LoadAfter = load()
	b.report.print(os.Stdout) // what was measured before something failed is worth as much
	return errors.Join(err, b.report.save(o.out))
}

// lendIDs lets the peers use ranges of ids for their guests: they ask these
// files, which are replaced inside the sandbox alone.
func (b *bench) lendIDs() error {
	ranges := filepath.Join(b.dir, "ids")
	if err := os.WriteFile(ranges, []byte("root:1000000:1000000000\n"), 0o644); err != nil {
		return err
	}
	for _, file := range []string{"/etc/subuid", "/etc/subgid"} {
		if err := unix.Mount(ranges, file, "", unix.MS_BIND, ""); err != nil && err != unix.ENOENT {
			return fmt.Errorf("lending ids: %w", err)
		}
		b.later(func() { unix.Unmount(file, unix.MNT_DETACH) })
	}
	return nil
}

// later registers what cleans up; the last registered runs first.
func (b *bench) later(f func()) { b.undo = append(b.undo, f) }

func (b *bench) cleanUp() {
	for len(b.undo) > 0 {
		f := b.undo[len(b.undo)-1]
		b.undo = b.undo[:len(b.undo)-1]
		f()
	}
}

// say tells whoever waits what goes on.
func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "bench: "+format+"\n", args...)
}
