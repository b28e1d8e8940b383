package qemu

import (
	"context"
	"fmt"
	"os/exec"
	"slices"

	"lodge/internal/engine"
	"lodge/internal/launch"
)

// tpm is what a security module of a guest is made of: swtpm runs beside QEMU,
// in its jail, and ends with it.
type tpm struct {
	program string
	shell   string // a static one, which starts both
	binds   []launch.Bind
}

// findTPM returns nil when something is missing that guests need for one.
func findTPM(ctx context.Context) *tpm {
	var t tpm
	var err error
	if t.program, err = exec.LookPath("swtpm"); err != nil {
		return nil
	}
	if t.shell, err = exec.LookPath("busybox"); err != nil {
		return nil
	}
	if t.binds, err = programBinds(ctx, t.program); err != nil {
		return nil
	}
	return &t
}

// Where the shell and the module's state are in the jail.
const (
	shellInside = "/busybox" // by which name it is a shell or anything else
	tpmInside   = "/tpm"
)

// addTPM gives the guest its security module, whose state lies with its disk.
func (b *builder) addTPM(t *tpm) {
	b.open(fdTPM, launch.Pair{})
	for _, bind := range t.binds {
		if !slices.ContainsFunc(b.Binds, func(o launch.Bind) bool { return o.Inside == bind.Inside }) {
			b.Binds = append(b.Binds, bind)
		}
	}
	b.Binds = append(b.Binds, launch.Bind{Host: t.shell, Inside: shellInside},
		launch.Bind{Host: engine.TPMState(b.parts.Root.Writable), Inside: tpmInside, Writable: true, Make: true, Files: tpmFiles()})
}

// tpmFiles are what swtpm keeps there.
func tpmFiles() []string { return []string{"tpm2-00.permall", "tpm2-00.volatilestate", ".lock"} }

// besides makes a command line one that starts the security module first. line
// is its end of the line between both.
func (t *tpm) besides(line int, argv []string) []string {
	const start = `%s socket --tpm2 --tpmstate dir=%s --ctrl type=unixio,clientfd=%d --flags startup-clear & exec "$@"`
	return append([]string{shellInside, "sh", "-c", fmt.Sprintf(start, t.program, tpmInside, line), "sh"}, argv...)
}
