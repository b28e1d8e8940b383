package qemu

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"lodge/internal/base/errs"
	"lodge/internal/engine/qemu/qmp"
)

// debugs is what Debug takes.
func debugs() []string { return []string{"reset", "nmi", "registers", "blocks", "memory"} }

// Debug does what helps with a guest that hangs.
func (m *Machine) Debug(ctx context.Context, what string, w io.Writer) error {
	switch what {
	case "reset":
		return m.reset(ctx)
	case "nmi":
		return m.about(m.link.do(ctx, "inject-nmi", nil, nil))
	case "registers":
		return m.tell(ctx, "info registers -a", w)
	case "blocks":
		return m.tell(ctx, "info block", w)
	case "memory":
		return m.tellOfMemory(ctx, w)
	}
	return errs.Bad("what", fmt.Sprintf("%q is nothing that can be done", what), "one of "+strings.Join(slices.Sorted(slices.Values(debugs())), ", "))
}

// reset starts the machine anew where it is. A machine that would end instead
// is told otherwise until it was done.
func (m *Machine) reset(ctx context.Context) error {
	return m.about(m.link.with(ctx, func(ctx context.Context, c *qmp.Client) error {
		if err := c.Do(ctx, "set-action", map[string]any{"reboot": "reset"}, nil); err != nil {
			return err
		}
		return c.Do(ctx, "system_reset", nil, nil)
	}))
}

// endsAgain makes a guest that was reset end when it reboots by itself.
func (l *link) endsAgain() {
	if w, err := l.asStarted(); err != nil || !w.Kernel {
		return
	}
	if err := l.do(l.life, "set-action", map[string]any{"reboot": "shutdown"}, nil); err != nil {
		l.e.o.Log.Warn("a guest that was reset will not end when it reboots", "guest", l.id, "err", err)
	}
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
