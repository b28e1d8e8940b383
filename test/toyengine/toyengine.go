// Package toyengine is the smallest engine there can be: its guests are plain
// processes in the image's tree. It keeps nobody in and is no use to anybody;
// it shows what an engine has to do, and proves that nothing else in Lodge
// needs to know of one.
package toyengine

import (
	"context"
	"maps"
	"slices"
	"syscall"

	"lodge/internal/base/errs"
	"lodge/internal/engine"
	"lodge/internal/keeper"
	"lodge/internal/model/guest"
)

// Engine runs guests of the toy.
type Engine struct{}

var (
	_ engine.Engine = Engine{}
	_ engine.Ender  = Engine{}
)

// Info says that it runs anywhere and can do nothing special.
func (Engine) Info(context.Context) (engine.Info, error) {
	return engine.Info{Name: "toy", Model: guest.OS, Version: "1", Form: guest.Tree}, nil
}

// initScript is what guests without a command run.
const initScript = `trap 'exit 0' TERM; echo booted; while :; do sleep 0.1; done`

// Program has the guest's first process run in the image's tree.
func (Engine) Program(g guest.Guest, parts engine.Parts) (keeper.Program, error) {
	argv := g.Spec.Command
	if len(argv) == 0 {
		argv = []string{"/bin/sh", "-c", initScript}
	}
	p := keeper.Program{
		Argv: append([]string{"/usr/sbin/chroot", parts.Root.Lower}, argv...), Env: []string{"PATH=/bin:/sbin:/usr/bin:/usr/sbin"},
		Console: true, Log: engine.ConsoleLog(parts.Dir),
	}
	for _, name := range slices.Sorted(maps.Keys(g.Spec.Env)) {
		p.Env = append(p.Env, name+"="+g.Spec.Env[name])
	}
	return p, nil
}

// Connect returns the controls of a guest that runs.
func (Engine) Connect(_ context.Context, g guest.Guest, _ engine.Parts, h keeper.Held) (engine.Machine, error) {
	if h.State().Exit != nil {
		return nil, &errs.Error{Kind: errs.NotFound, Ref: g.Key().String(), Msg: "has ended"}
	}
	return machine{h}, nil
}

// Ended tells a shell that was asked to stop from a command that ended.
func (Engine) Ended(g guest.Guest, _ engine.Parts, e keeper.Exit) (is keeper.Exit, last string) {
	const notFound = 127 // chroot's
	switch {
	case len(g.Spec.Command) == 0 && e.Signal == 0 && e.Code == 0:
		e.Signal = syscall.SIGINT // as one that powered off
	case e.Code == notFound && len(g.Spec.Command) > 0:
		last = g.Spec.Command[0] + ": not found"
	}
	return e, last
}

type machine struct{ held keeper.Held }

func (m machine) Probe(context.Context) (engine.Probe, error) { return engine.Probe{Ready: true}, nil }

func (m machine) Shutdown(ctx context.Context) error { return m.held.Signal(ctx, syscall.SIGTERM) }

func (m machine) Kill(ctx context.Context) error {
	if m.held.State().Exit != nil {
		return nil
	}
	return m.held.Signal(ctx, syscall.SIGKILL)
}

func (m machine) Close() error { return nil }
