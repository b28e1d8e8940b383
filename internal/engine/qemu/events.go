package qemu

import (
	"encoding/json"
	"strings"
	"time"

	"lodge/internal/base/errs"
	"lodge/internal/engine/qemu/qmp"
)

// event takes in what QEMU tells by itself. It must not ask anything: the
// answer would come behind it.
func (l *link) event(e qmp.Event) {
	moving := l.toldMove(e)
	switch e.Name {
	case "STOP":
		l.note(func() {
			if l.status == "running" && !moving { // then it stands still but for a moment
				l.status = "paused"
			}
		})
	case "RESUME":
		l.note(func() {
			l.status = "running"
			if !l.retrying { // it may stand still again at once
				l.trouble = ""
			}
		})
		l.theirAgent((*guestAgent).ask)
	case "RESET":
		l.note(func() { l.trouble, l.noBoot = "", nil })
		l.theirAgent((*guestAgent).reset)
		if l.boot != nil {
			l.boot.reset()
		}
		go l.endsAgain()
	case "VSERPORT_CHANGE":
		l.theirAgent((*guestAgent).ask)
	case "GUEST_PANICKED", "GUEST_CRASHLOADED":
		l.note(func() { l.trouble = "kernel panic: the guest's kernel says that it cannot go on" })
	case "WATCHDOG":
		l.note(func() { l.trouble = "its watchdog was not fed" })
		l.bitten(e.Data)
	case "BLOCK_IO_ERROR":
		l.ioError(e.Data)
	case "DEVICE_DELETED", "DEVICE_UNPLUG_GUEST_ERROR", "MEM_UNPLUG_ERROR":
		l.unplugged(e)
	}
}

// theirAgent tells what concerns the agent of an unmodified guest.
func (l *link) theirAgent(of func(*guestAgent)) {
	if l.theirs != nil {
		of(l.theirs)
	}
}

// bitten ends a guest that stands still because its watchdog was not fed, as a
// crash does: whether it comes back is its restart policy's affair.
func (l *link) bitten(data json.RawMessage) {
	var d struct {
		Action string `json:"action"`
	}
	if json.Unmarshal(data, &d) != nil || d.Action != "pause" {
		return
	}
	l.endHung()
}

func (l *link) endHung() {
	l.e.o.Log.Warn("a guest is ended that did not feed its watchdog", "guest", l.id)
	if err := kill(l.held); err != nil {
		l.e.o.Log.Error("a guest that hangs cannot be ended", "guest", l.id, "err", err)
	}
}

// ioError is a disk that failed. When it was full, the guest stands still until
// there is space again.
func (l *link) ioError(data json.RawMessage) {
	var d struct {
		Node    string `json:"node-name"`
		Action  string `json:"action"`
		NoSpace bool   `json:"nospace"`
		Reason  string `json:"reason"`
	}
	if json.Unmarshal(data, &d) != nil || d.Action == "ignore" {
		return
	}
	name := strings.TrimPrefix(d.Node, nodeName(""))
	if name == volumeSerial {
		name = ownSerial // as people know it
	}
	if !d.NoSpace || d.Action != "stop" {
		l.note(func() { l.trouble = "its disk " + name + " fails: " + d.Reason })
		return
	}
	l.note(func() {
		l.status, l.trouble = "io-error", "it stands still because there is no space left for its disk "+name
	})
	l.retryLater()
}

// retryLater lets a guest try again to write what there was no space for, now and
// then, until it can: by one retry, however many writes failed. A QEMU that is
// told to go on after it said that one failed, and before it stopped, neither
// stops nor tries that one again.
func (l *link) retryLater() {
	l.mu.Lock()
	waits := l.retrying
	l.retrying = true
	l.mu.Unlock()
	if !waits {
		go l.retry()
	}
}

func (l *link) retry() {
	for over := false; !over && l.life.Err() == nil; {
		l.sleep(retryAfter)
		if l.state() == "io-error" {
			if err := l.do(l.life, "cont", nil, nil); err != nil {
				l.e.o.Log.Warn("a guest whose disk was full cannot go on", "guest", l.id, "err", err)
			}
			l.sleep(settleAfter)
		}
		l.note(func() {
			if over = l.status != "io-error"; over {
				l.retrying, l.trouble = false, ""
			}
		})
	}
}

// unplugged ends the wait of whoever took a device away.
func (l *link) unplugged(e qmp.Event) {
	var d struct {
		Device string `json:"device"`
		Path   string `json:"path"`
	}
	if json.Unmarshal(e.Data, &d) != nil {
		return
	}
	var err error
	if e.Name != "DEVICE_DELETED" {
		err = &errs.Error{Op: "qemu.unplug", Kind: errs.Conflict, Msg: "the guest does not let go of it", Hint: "it may be in use; end that first"}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if wait := l.deleted[d.Device]; wait != nil && d.Device != "" {
		select {
		case wait <- err:
		default:
		}
	}
}

// unplugTime is how long a guest may take to let go of a device.
const unplugTime = 30 * time.Second
