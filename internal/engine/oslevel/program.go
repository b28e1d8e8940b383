package oslevel

import (
	"maps"
	"path/filepath"
	"slices"

	"lodge/internal/base/errs"
	"lodge/internal/engine"
	"lodge/internal/keeper"
	"lodge/internal/model/guest"
)

// idCount is how many user and group ids a guest has.
const idCount = 65536

// logMax is how much of a guest's console is kept, in bytes, twice.
const logMax = 1 << 20

// Program says how the launch helper makes g.
func (e *Engine) Program(g guest.Guest, parts engine.Parts) (keeper.Program, error) {
	if parts.IDBase == 0 {
		return keeper.Program{}, &errs.Error{Op: "oslevel.program", Kind: errs.Internal, Ref: "guest/" + g.Name, Msg: "no user ids were given to the guest"}
	}
	input, err := e.compileStart(g, parts, e.o.Tree.Join(parts.Cgroup))
	if err != nil {
		return keeper.Program{}, err
	}
	p := keeper.Program{
		Argv: []string{e.o.Launch}, Dir: "/", Input: input, Launcher: true, Console: true,
		Log: filepath.Join(parts.Dir, "console.log"), LogMax: logMax,
	}
	if parts.Root.Limit != "" {
		p.Quota = &keeper.Quota{Used: parts.Root.Used, Limit: parts.Root.Limit, Owner: parts.IDBase}
	}
	return p, nil
}

// environment tells an init besides what it runs in
// (systemd.io/CONTAINER_INTERFACE).
func environment(g guest.Guest) map[string]string {
	env := map[string]string{"container": "lodge"}
	maps.Copy(env, engine.Environment(g))
	return env
}

func environ(env map[string]string) []string {
	out := make([]string, 0, len(env))
	for _, k := range slices.Sorted(maps.Keys(env)) {
		out = append(out, k+"="+env[k])
	}
	return out
}
