// Package uml runs paravirtual guests: User-Mode Linux, a kernel that was ported
// to be a program of the host, so that it needs no processor's help.
//
// Each guest is one jail (package launch) that holds the kernel's process and,
// as its children, one process for each address space of the guest. Its root is
// the image's file and the volume as two disks, which the agent, as the first
// program of the initrd, puts together. The agent is spoken to over a serial
// line that is a socket pair; bulk passes through a disk in memory (the
// mailbox), because a serial line carries a byte at a time.
package uml

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"lodge/internal/agent/dial"
	"lodge/internal/base/cgroup"
	"lodge/internal/base/errs"
	"lodge/internal/engine"
	"lodge/internal/keeper"
	"lodge/internal/launch"
	"lodge/internal/model/guest"
)

// Options is what the engine needs of its host.
type Options struct {
	Launch string       // path of the launch helper; root's own, not writable by others
	Door   string       // path of the library that hands network cards to kernels, built of door/door.c; likewise
	Tree   *cgroup.Tree // the groups that engine.Parts.Cgroup names
	// Kernel returns the kernel that a guest which wants none by name would
	// boot, or errs.NotFound with a hint.
	Kernel  func(ctx context.Context) (engine.Kernel, error)
	Changed func(guestID string) // called when something of a guest changed; may be nil
	Log     *slog.Logger
}

// Engine runs paravirtual guests.
type Engine struct {
	o     Options
	facts facts
	lines lines

	filter func() ([]byte, error) // assembled once

	asking sync.Mutex
	found  engine.Kernel // what Options.Kernel returned last
	asked  time.Time     // when
}

var (
	_ engine.Engine = (*Engine)(nil)
	_ engine.Ender  = (*Engine)(nil)
)

// New returns the engine. It does no I/O.
func New(o Options) *Engine {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Engine{o: o, facts: facts{known: map[string]*sync.Once{}, of: map[string]fact{}}, lines: lines{of: map[string]*line{}},
		filter: sync.OnceValues(func() ([]byte, error) { return launch.Filter(runtime.GOARCH, rules()) })}
}

// overhead is what the kernel's process and those of the guest's programs take
// beside the guest's memory: page tables and stacks of the host's, the image of
// the kernel, the mailbox.
func overhead() engine.Overhead { return engine.Overhead{Memory: 96 << 20} }

// Info says what the engine can do here, with the kernel that guests boot when
// they ask for none.
func (e *Engine) Info(ctx context.Context) (engine.Info, error) {
	i := engine.Info{
		Name: "uml", Model: guest.Paravirt, Form: guest.Volume, Kernel: "um", Overhead: overhead(), Pin: true, Debugs: debugs(),
		Version: "User-Mode Linux",
		Can:     engine.Can{Pause: true, Resize: true, Exec: true, Files: true, Usage: true, Plug: true, Debug: true, Quiesce: true, Admit: true, Trim: true, Clock: true},
	}
	if i.Missing, i.Hint = e.missing(); i.Missing != "" {
		return i, nil
	}
	k, err := e.kernel(ctx)
	if errs.Is(err, errs.NotFound) || errs.Is(err, errs.Busy) {
		// That is no fault of the host: it is built before the first guest is
		// made.
		i.Facts = []engine.Fact{{Name: "kernel", Value: "none yet"}}
		return i, nil
	}
	if err != nil {
		return i, err
	}
	f := e.facts.about(ctx, e, k)
	i.Version, i.Missing, i.Hint, i.Facts, i.Single = "Linux "+f.version, f.missing, f.hint, f.list(k), !f.smp
	return i, nil
}

// kernelAge is how long it is not asked again which kernel guests boot: that
// takes longer than all else of Info, which is asked all the time.
const kernelAge = 5 * time.Second

func (e *Engine) kernel(ctx context.Context) (engine.Kernel, error) {
	e.asking.Lock()
	defer e.asking.Unlock()
	if !e.asked.IsZero() && time.Since(e.asked) < kernelAge {
		return e.found, nil
	}
	k, err := e.o.Kernel(ctx)
	if err == nil {
		e.found, e.asked = k, time.Now()
	}
	return k, err
}

func (e *Engine) missing() (what, hint string) {
	if os.Geteuid() != 0 {
		return "the daemon does not run as root", "start lodged as root"
	}
	if _, err := os.Stat(e.o.Launch); err != nil {
		return "the helper program " + e.o.Launch + " is missing", "install lodged again"
	}
	if _, err := os.Stat(e.o.Door); err != nil {
		return "the helper library " + e.o.Door + " is missing", "install lodged again"
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		return "the kernel has no tap devices (/dev/net/tun)", "modprobe tun"
	}
	return "", ""
}

// Connect returns the controls of a running guest.
func (e *Engine) Connect(_ context.Context, g guest.Guest, parts engine.Parts, h keeper.Held) (engine.Machine, error) {
	if h.State().Exit != nil {
		return nil, notRunning(g)
	}
	l, err := e.lines.get(e, g, parts, h)
	if err != nil {
		if h.State().Exit != nil || errors.Is(err, unix.ESRCH) { // the keeper tells in a moment
			return nil, notRunning(g)
		}
		return nil, err
	}
	m := &Machine{e: e, g: g, parts: parts, held: h, line: l}
	m.Care = dial.Care{Agent: func() (dial.Carer, error) { return l.Link, m.runs() }, Ref: g.Key().String()}
	return m, nil
}

func notRunning(g guest.Guest) error {
	return &errs.Error{Op: "uml.connect", Kind: errs.Conflict, Ref: g.Key().String(), Msg: "the guest is not running"}
}
