package qemu

import (
	"context"
	"errors"
	"time"

	"lodge/internal/launch"
)

// shutdownRequest asks the QEMU guest agent that an unmodified guest may have
// brought along to power off. The byte before it ends what its parser may hold
// of an earlier request; there is no reply to wait for.
const shutdownRequest = "\xff" + `{"execute":"guest-shutdown","arguments":{"mode":"powerdown"}}` + "\n"

// askGuestAgent tells such an agent, if one listens, that the guest is to stop.
// What nobody reads is not written: an agent that starts later would take it
// for a wish of that moment.
func (l *link) askGuestAgent(ctx context.Context) (told bool, err error) {
	var all []struct {
		Label string `json:"label"`
		Open  bool   `json:"frontend-open"`
	}
	if err := l.do(ctx, "query-chardev", nil, &all); err != nil {
		return false, err
	}
	for _, c := range all {
		if c.Label != "agent" || !c.Open {
			continue
		}
		f, err := launch.Take(l.held, hostEnd(agentAt))
		if err != nil {
			return false, err
		}
		_ = f.SetWriteDeadline(time.Now().Add(toldWithin))
		_, err = f.WriteString(shutdownRequest)
		return err == nil, errors.Join(err, f.Close())
	}
	return false, nil
}
