package bridge

import (
	"log/slog"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// hairpin lets a guest reach itself through a forwarded port of the host. With
// br_netfilter the packet is turned round inside the bridge, which by default
// never sends back through the port a frame came from. Devices come and go
// with their guests, so they are watched.
type hairpin struct {
	log  *slog.Logger
	done chan struct{}
	over sync.WaitGroup

	mu      sync.Mutex
	targets map[string]bool
	set     map[int32]bool // by interface index
}

func watchHairpin(log *slog.Logger) (*hairpin, error) {
	h := &hairpin{log: log, done: make(chan struct{}), set: map[int32]bool{}}
	updates, err := h.subscribe()
	if err != nil {
		return nil, err
	}
	h.over.Add(1)
	go h.run(updates)
	return h, nil
}

func (h *hairpin) subscribe() (chan netlink.LinkUpdate, error) {
	updates := make(chan netlink.LinkUpdate, 256)
	err := netlink.LinkSubscribeWithOptions(updates, h.done, netlink.LinkSubscribeOptions{
		ErrorCallback: func(err error) { h.log.Debug("device events interrupted", "err", err) },
	})
	return updates, err
}

// run ends when done is closed. The subscription breaks when the kernel had
// more to say than its buffer holds; then everything is looked at once.
func (h *hairpin) run(updates chan netlink.LinkUpdate) {
	defer h.over.Done()
	for {
		for u := range updates {
			h.mu.Lock()
			if u.Header.Type == unix.RTM_DELLINK {
				delete(h.set, u.Index)
			} else {
				h.apply(u.Link)
			}
			h.mu.Unlock()
		}
		select {
		case <-h.done:
			return
		default:
		}
		var err error
		if updates, err = h.subscribe(); err != nil {
			h.log.Error("device events lost: guests may not reach themselves through the host's ports", "err", err)
			return
		}
		h.all()
	}
}

func (h *hairpin) all() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.targets) == 0 {
		return
	}
	list, err := listLinks()
	if err != nil {
		h.log.Warn("cannot list devices", "err", err)
		return
	}
	for _, l := range list {
		h.apply(l)
	}
}

// apply needs h.mu. Setting the mode makes an event of its own, hence the
// memory.
func (h *hairpin) apply(l netlink.Link) {
	a := l.Attrs()
	if !h.targets[a.Name] || a.MasterIndex == 0 || h.set[int32(a.Index)] {
		return
	}
	h.set[int32(a.Index)] = true
	if err := netlink.LinkSetHairpin(l, true); err != nil {
		h.log.Debug("cannot set hairpin mode", "device", a.Name, "err", err)
		delete(h.set, int32(a.Index))
	}
}

// want replaces the devices that need the mode.
func (h *hairpin) want(targets map[string]bool) {
	h.mu.Lock()
	h.targets = targets
	h.mu.Unlock()
	h.all()
}

func (h *hairpin) close() {
	close(h.done)
	h.over.Wait()
}
