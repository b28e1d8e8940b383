// Package oslevel is Lodge's own container runtime: guests that share the
// host's kernel and nothing else of it.
//
// A guest is a process tree in seven namespaces of its own (user, mount, pid,
// network, uts, ipc, cgroup) on an overlay of a shared image and its own
// volume, with 65,536 user ids that no other guest has. Go decides what is
// done and in which order; the launch helper (package launch) only executes
// the plan. Nothing is ever attached to the host's mount table, so the
// thousandth guest starts as fast as the first.
//
// How the kernel reports the end of a guest's init to the keeper: a guest that
// calls reboot(2) to restart ends by SIGHUP, one that halts or powers off by
// that call ends by SIGINT; anything else is the init's own exit.
package oslevel

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"lodge/internal/base/cgroup"
	"lodge/internal/base/errs"
	"lodge/internal/engine"
	"lodge/internal/keeper"
	"lodge/internal/model/guest"
)

// Options is what the engine needs of its host.
type Options struct {
	Launch string       // path of the launch helper; root's own, not writable by others
	Agent  string       // path of the static agent that packs and unpacks files inside guests
	Tree   *cgroup.Tree // the groups that engine.Parts.Cgroup names
	Log    *slog.Logger
}

// Engine runs operating-system-level guests.
type Engine struct {
	o      Options
	filter func() (filters, error) // assembled once
	fit    atomic.Bool             // the host was found to lack nothing
}

var _ engine.Engine = (*Engine)(nil)

// New returns the engine. It does no I/O.
func New(o Options) *Engine {
	return &Engine{o: o, filter: sync.OnceValues(func() (filters, error) { return newFilters(runtime.GOARCH) })}
}

// Info says whether this host's kernel can do what guests need. A kernel that
// could once is not asked again: that takes longer than all else of a request.
func (e *Engine) Info(context.Context) (engine.Info, error) {
	i := engine.Info{Name: "oslevel", Model: guest.OS, Version: release(), Form: guest.Tree,
		Can: engine.Can{Pause: true, Resize: true, Exec: true, Files: true, Usage: true, Admit: true}}
	if !e.fit.Load() {
		i.Missing, i.Hint = missing(e.o)
		e.fit.Store(i.Missing == "")
	}
	return i, nil
}

func release() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return "Linux " + unix.ByteSliceToString(u.Release[:])
}

// missing says in words for a person what keeps guests from running here.
func missing(o Options) (what, hint string) {
	if os.Geteuid() != 0 {
		return "the daemon does not run as root", "start lodged as root"
	}
	for _, path := range []string{o.Launch, o.Agent} {
		if _, err := os.Stat(path); err != nil {
			return fmt.Sprintf("the helper program %s is missing", path), "install lodged again"
		}
	}
	for _, ns := range []string{"user", "mnt", "pid", "net", "uts", "ipc", "cgroup"} {
		if _, err := os.Stat("/proc/self/ns/" + ns); err != nil {
			return "the kernel has no " + ns + " namespaces", "use a kernel built with namespaces"
		}
	}
	if !overlayTakesDescriptors() {
		return "the kernel's overlay file system is missing or too old", "modprobe overlay; Linux 6.15 or newer is needed"
	}
	return "", ""
}

// overlayTakesDescriptors asks the kernel for what the plan of a start relies
// on: layers given as open files.
func overlayTakesDescriptors() bool {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return false
	}
	defer unix.Close(fs)
	dir, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(dir)
	return unix.FsconfigSetFd(fs, "lowerdir+", dir) == nil
}

// Connect returns the controls of a running guest.
func (e *Engine) Connect(_ context.Context, g guest.Guest, parts engine.Parts, h keeper.Held) (engine.Machine, error) {
	if h.State().Exit != nil {
		return nil, &errs.Error{Op: "oslevel.connect", Kind: errs.Conflict, Ref: "guest/" + g.Name, Msg: "the guest is not running"}
	}
	return &Machine{e: e, g: g, parts: parts, held: h}, nil
}
