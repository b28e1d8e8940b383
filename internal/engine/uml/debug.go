package uml

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"lodge/internal/base/errs"
)

// debugs are the things that a guest's kernel does for a person without the
// help of any program in the guest: the magic keys that end nothing
// (Documentation/admin-guide/sysrq.rst), the stack of its first process, its
// version.
func debugs() []string {
	return []string{"sysrq-l", "sysrq-m", "sysrq-p", "sysrq-s", "sysrq-t", "sysrq-w", "stack", "version"}
}

// Debug asks the guest's kernel.
func (m *Machine) Debug(ctx context.Context, what string, w io.Writer) error {
	if !slices.Contains(debugs(), what) {
		return errs.Bad("what", fmt.Sprintf("%q is nothing that this guest can be asked for", what), strings.Join(debugs(), ", "))
	}
	if err := m.runs(); err != nil {
		return err
	}
	command := what
	if key, ok := strings.CutPrefix(what, "sysrq-"); ok {
		command = "sysrq " + key
	} else if what == "stack" {
		command = "stack 1"
	}
	text, err := m.manage(ctx, command)
	if err != nil {
		return err
	}
	_, err = io.WriteString(w, text)
	return err
}
