package oslevel

import (
	"crypto/sha256"
	"encoding/hex"
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

// firstProgram is the guest's process 1 and whether it is an operating system's
// init rather than a program that somebody wants to run.
func firstProgram(g guest.Guest, parts engine.Parts) (argv []string, init bool) {
	switch {
	case len(g.Spec.Command) > 0:
		return g.Spec.Command, false
	case len(parts.Image.Init) > 0:
		return parts.Image.Init, true
	}
	return []string{"/sbin/init"}, true
}

// searchPath is where guests' programs are looked for when nobody says where.
const searchPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// environment is what every program of a guest that Lodge starts begins with,
// and the guest's own settings on top. container tells an init what it runs in
// (systemd.io/CONTAINER_INTERFACE).
func environment(g guest.Guest) map[string]string {
	env := map[string]string{
		"PATH": searchPath, "HOME": "/root", "TERM": "xterm-256color", "LANG": "C.UTF-8", "container": "lodge",
	}
	maps.Copy(env, g.Spec.Env)
	return env
}

func environ(env map[string]string) []string {
	out := make([]string, 0, len(env))
	for _, k := range slices.Sorted(maps.Keys(env)) {
		out = append(out, k+"="+env[k])
	}
	return out
}

// machineID is the guest's identity as systemd wants it, the same for all of
// the guest's life and no other's.
func machineID(g guest.Guest) string {
	sum := sha256.Sum256([]byte("lodge guest " + g.ID))
	return hex.EncodeToString(sum[:16])
}
