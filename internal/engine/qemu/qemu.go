// Package qemu runs guests with a machine of their own: processors, memory,
// disks and cards that QEMU imitates, on KVM where that was seen to work.
//
// Each guest is one QEMU in a jail (package launch). Everything it needs is
// opened before it is shut in, and nothing listens: the monitor and the agent
// are spoken to over socket pairs of which QEMU holds both ends, so that a
// daemon that just started takes up the host's end as the one before did.
//
// A guest of a root-tree image is handed its kernel and an initrd with the
// agent, its image and its volume as two disks, and ends when it reboots. A
// guest of a disk image has firmware, boots by itself, and reboots by itself.
package qemu

import (
	"cmp"
	"context"
	"log/slog"
	"os"
	"runtime"
	"slices"

	"lodge/internal/agent/dial"
	"lodge/internal/base/cgroup"
	"lodge/internal/base/errs"
	"lodge/internal/engine"
	"lodge/internal/keeper"
	"lodge/internal/model/guest"
)

// Options is what the engine needs of its host.
type Options struct {
	Launch string       // path of the launch helper; root's own, not writable by others
	Image  string       // path of the library that maps memory images, built of image/image.c; likewise
	Tree   *cgroup.Tree // the groups that engine.Parts.Cgroup names
	// KVM says whether this host's KVM runs guests at the processor's own
	// speed, and how that was found out. Nil: it is not used.
	KVM func(ctx context.Context) (usable bool, why string)
	// Compresses says whether memory that is swapped out now is compressed, not
	// written to a disk. Nil: idle guests keep theirs.
	Compresses func() bool
	Changed    func(guestID string) // called when something of a guest changed; may be nil
	Log        *slog.Logger         // may be nil

	Program  string // of QEMU; "" is the one in PATH
	Firmware string // folder with OVMF's files; "" is where Debian has them
}

func (o Options) program() string {
	if o.Program == "" {
		return program
	}
	return o.Program
}

func (o Options) firmwareDir() string {
	if o.Firmware == "" {
		return "/usr/share/OVMF"
	}
	return o.Firmware
}

// cpus is how many processors the host has.
func (Options) cpus() int { return runtime.NumCPU() }

// Engine runs virtual machines.
type Engine struct {
	o      Options
	found  found
	links  links
	images images
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
	if o.Changed == nil {
		o.Changed = func(string) {}
	}
	return &Engine{o: o, links: links{of: map[linkKey]*link{}}, images: images{of: map[string]*ramImage{}}}
}

// overhead is what QEMU takes beside the guest's memory, which is itself, the
// cache of translated code and what belongs to it, the screen; and beside the
// guest's processors, which is the thread that plays the devices.
func overhead() engine.Overhead {
	return engine.Overhead{Memory: codeCache + 256<<20, CPUs: 1, Swap: true}
}

// Info says what the engine can do here.
func (e *Engine) Info(ctx context.Context) (engine.Info, error) {
	i := engine.Info{
		Name: "qemu", Model: guest.VM, Form: guest.Volume, Kernel: "linux", Overhead: overhead(), Version: "QEMU",
		Debugs: debugs(),
		Can: engine.Can{Pause: true, Resize: true, Exec: true, Files: true, Usage: true, Plug: true, Save: true, Screen: true, Debug: true,
			Quiesce: true, Renew: true, Move: true, Disk: true, Admit: true, Trim: true, Clock: true},
	}
	if i.Missing, i.Hint = e.missing(); i.Missing != "" {
		return i, nil
	}
	l, err := e.see(ctx)
	if err != nil {
		i.Missing, i.Hint = err.Error(), packages
		return i, nil
	}
	i.Version = "QEMU " + l.Version
	own := l.host.cpuModel()
	i.CPUModels = slices.Concat([]string{own}, l.judged.baselines, slices.DeleteFunc(slices.Clone(l.models), func(m string) bool { return m == own }))
	i.CPUFeatures = l.changes
	i.Machines = []engine.MachineKind{{Name: "q35", Firmware: l.Firmware.names(), TPM: l.tpm != nil}, {Name: "microvm"}}
	i.Facts = l.facts()
	return i, nil
}

func (l *look) facts() []engine.Fact {
	accel := "tcg: guests' programs are translated, some ten times slower than the processor; KVM: " + l.kvmWhy
	if l.KVM {
		accel = "kvm: " + l.kvmWhy
	}
	tpm := "none: swtpm and busybox-static are needed"
	if l.tpm != nil {
		tpm = l.tpm.program
	}
	all := []engine.Fact{{Name: "acceleration", Value: accel}, {Name: "program", Value: l.program}, {Name: "machine", Value: l.Machine}, {Name: "tpm", Value: tpm}}
	if lacking := l.judged.fact(l.models); lacking != "" {
		all = append(all, engine.Fact{Name: "processors in part", Value: lacking})
	}
	return all
}

func (e *Engine) missing() (what, hint string) {
	if os.Geteuid() != 0 {
		return "the daemon does not run as root", "start lodged as root"
	}
	if runtime.GOARCH != "amd64" {
		return "virtual machines are made for x86-64 hosts only", "use another model"
	}
	if _, err := os.Stat(e.o.Launch); err != nil {
		return "the helper program " + e.o.Launch + " is missing", "install lodged again"
	}
	if _, err := os.Stat(e.o.Image); err != nil {
		return "the helper library " + e.o.Image + " is missing", "install lodged again"
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		return "the kernel has no tap devices (/dev/net/tun)", "modprobe tun"
	}
	return "", ""
}

// Connect returns the controls of a running guest.
func (e *Engine) Connect(ctx context.Context, g guest.Guest, parts engine.Parts, h keeper.Held) (engine.Machine, error) {
	if h.State().Exit != nil {
		return nil, notRunning(g)
	}
	l := e.link(ctx, g, parts, h)
	m := &Machine{e: e, g: g, parts: parts, held: h, link: l}
	m.Care = dial.Care{Agent: m.carer, Ref: g.Key().String()}
	return m, nil
}

func notRunning(g guest.Guest) error {
	return &errs.Error{Op: "qemu.connect", Kind: errs.Conflict, Ref: g.Key().String(), Msg: "the guest is not running"}
}

// Ended tells how a guest ended. A guest with a kernel of Lodge's choice says
// so on its console; what other guests mean only the monitor could tell, and
// they reboot without ending.
func (e *Engine) Ended(g guest.Guest, parts engine.Parts, x keeper.Exit) (keeper.Exit, string) {
	if x.Signal != 0 || x.Unknown {
		return x, ""
	}
	is, last, known := engine.LastWords(parts, x)
	switch {
	case x.Code != 0: // QEMU failed, or the guest told it of a panic
		return x, cmp.Or(last, engine.LastLines(parts)) // the guest may have ended well before
	case known:
		return is, last
	case parts.Kernel.Path != "" || g.Status.Kernel != "": // which says how it ends, if it ends well
		x.Code = brokenOff
		return x, cmp.Or(last, engine.SaidNothing)
	}
	x.Signal = poweredOff
	return x, ""
}
