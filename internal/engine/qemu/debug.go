package qemu

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"lodge/internal/base/errs"
)

// debugs is what Debug takes.
func debugs() []string { return []string{"reset", "nmi", "registers", "blocks"} }

// Debug does what helps with a guest that hangs.
func (m *Machine) Debug(ctx context.Context, what string, w io.Writer) error {
	switch what {
	case "reset":
		return m.about(m.link.do(ctx, "system_reset", nil, nil))
	case "nmi":
		return m.about(m.link.do(ctx, "inject-nmi", nil, nil))
	case "registers":
		return m.tell(ctx, "info registers -a", w)
	case "blocks":
		return m.tell(ctx, "info block", w)
	}
	return errs.Bad("what", fmt.Sprintf("%q is nothing that can be done", what), "one of "+strings.Join(slices.Sorted(slices.Values(debugs())), ", "))
}

// tell writes what QEMU's monitor for people says.
func (m *Machine) tell(ctx context.Context, command string, w io.Writer) error {
	var text string
	if err := m.link.do(ctx, "human-monitor-command", map[string]any{"command-line": command}, &text); err != nil {
		return m.about(err)
	}
	_, err := io.WriteString(w, strings.ReplaceAll(text, "\r", ""))
	return err
}
