package qemu

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"lodge/internal/base/errs"
	"lodge/internal/engine/qemu/qmp"
	"lodge/internal/model/guest"
)

// Resize changes what a running guest may use: the limits of QEMU's control
// group, the number of processors (up; fewer come with the next start), and
// the memory, by modules that are plugged and by a balloon.
func (m *Machine) Resize(ctx context.Context, spec guest.Spec) error {
	l := m.link
	l.device.Lock()
	defer l.device.Unlock()
	limits := overhead().Limits(spec, m.parts.Root.Disk)
	set := func() error {
		if err := m.e.o.Tree.Set(m.parts.Cgroup, limits); err != nil {
			return fmt.Errorf("limits of %s: %w", m.g.Name, err)
		}
		return nil
	}
	w, err := l.machine(ctx)
	if err != nil {
		return m.about(err)
	}
	want := spec.Memory
	if want == 0 {
		want = defaultMemory
	}
	if want >= w.total() { // first the room, then what fills it
		if err := set(); err != nil {
			return err
		}
	}
	more, err := m.addProcessors(ctx, w, min(processors(spec.CPUs, m.e.o.cpus()), w.MaxCPUs))
	if err != nil {
		return m.about(err)
	}
	plugged, err := m.addMemory(ctx, w, want)
	if err != nil {
		return m.about(err)
	}
	if more > 0 || plugged {
		m.online(ctx, more)
	}
	if err := m.inflate(ctx, w, want); err != nil {
		return m.about(err)
	}
	return set()
}

// total is the memory with all modules.
func (w hardware) total() uint64 {
	sum := w.Memory
	for _, p := range w.Plugged {
		sum += p.Size
	}
	return sum
}

// addProcessors plugs processors until the guest has want, and returns how many
// it has then; 0 if it had them.
func (m *Machine) addProcessors(ctx context.Context, w hardware, want int) (now int, err error) {
	if w.Kind != "q35" {
		return 0, nil
	}
	all, err := m.link.slots(ctx)
	if err != nil {
		return 0, err
	}
	have := 0
	for _, s := range all {
		if s.Path != "" {
			have++
		}
	}
	for _, s := range all {
		if have >= want {
			break
		}
		if s.Path != "" {
			continue
		}
		args := map[string]any{"driver": s.Type, "id": cpuPrefix + strconv.Itoa(s.Props.Socket), "socket-id": s.Props.Socket, "core-id": 0, "thread-id": 0}
		if err := m.link.do(ctx, "device_add", args, nil); err != nil {
			return 0, err
		}
		have++
		now = have
	}
	return now, nil
}

// online makes the guest use what was plugged, and waits until it has cpus
// processors. A guest that boots, or has no agent, finds them by itself, or not.
func (m *Machine) online(ctx context.Context, cpus int) {
	a := m.link.agent
	if a == nil || !a.State().Connected {
		return
	}
	err := m.untilSeen(ctx, func() (bool, error) {
		if err := a.Online(ctx); err != nil {
			return false, err
		}
		s, err := a.Stats(ctx)
		return err == nil && s.CPUs >= cpus, err
	})
	if err != nil {
		m.e.o.Log.Warn("a guest does not use what was plugged", "guest", m.g.Name, "err", err)
	}
}

// memoryBlock is what Linux takes memory into use by, on PCs.
const memoryBlock = 128 << 20

// addMemory plugs a module, if the guest is to have more than it ever had.
func (m *Machine) addMemory(ctx context.Context, w hardware, want uint64) (added bool, err error) {
	if want <= w.total() {
		return false, nil
	}
	if w.Modules == 0 {
		return false, &errs.Error{Op: "qemu.resize", Kind: errs.Unsupported, Msg: "its machine takes no more memory while it runs", Hint: "restart it"}
	}
	size := (want - w.total() + memoryBlock - 1) / memoryBlock * memoryBlock
	sizes, err := m.link.modules(ctx)
	if err != nil {
		return false, err
	}
	for n := range w.Modules {
		if _, taken := sizes[moduleName(n)]; taken {
			continue
		}
		if w.total()+size > w.MaxMem {
			break
		}
		return true, m.link.with(ctx, func(ctx context.Context, c *qmp.Client) error {
			// One that an attempt left that was cut off may have another size.
			_ = c.Do(ctx, "object-del", map[string]any{"id": "ram-" + moduleName(n)}, nil)
			err := c.Do(ctx, "object-add", map[string]any{"qom-type": "memory-backend-ram", "id": "ram-" + moduleName(n), "size": size}, nil)
			if err != nil {
				return err
			}
			return c.Do(ctx, "device_add", map[string]any{"driver": "pc-dimm", "id": moduleName(n), "memdev": "ram-" + moduleName(n)}, nil)
		})
	}
	return false, &errs.Error{Op: "qemu.resize", Kind: errs.Unsupported, Msg: "its machine takes no more memory while it runs", Hint: "restart it"}
}

const (
	// giveTime is how long a guest may take to give memory back.
	giveTime = 20 * time.Second
	givePace = 50 * time.Millisecond
)

// inflate asks the guest for memory back, or gives it back what it was asked
// for, and waits for the former.
func (m *Machine) inflate(ctx context.Context, w hardware, want uint64) error {
	var b struct {
		Actual uint64 `json:"actual"`
	}
	if err := m.link.do(ctx, "query-balloon", nil, &b); err != nil {
		return err
	}
	if b.Actual == want || want > w.total() && b.Actual >= want {
		return nil
	}
	if err := m.link.do(ctx, "balloon", map[string]any{"value": want}, nil); err != nil {
		return err
	}
	for until := time.Now().Add(giveTime); b.Actual > want; {
		if time.Now().After(until) || m.link.life.Err() != nil {
			return &errs.Error{Op: "qemu.resize", Kind: errs.Busy, Msg: fmt.Sprintf("the guest has %d MiB and has not yet given back what is over %d MiB", b.Actual>>20, want>>20), Hint: "it may need what it has, or still boot"}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(givePace):
		}
		if err := m.link.do(ctx, "query-balloon", nil, &b); err != nil {
			return err
		}
	}
	return nil
}

// seeTime is how long a guest may take to find a device that was plugged.
const (
	seeTime = 15 * time.Second
	seePace = 100 * time.Millisecond
)

// untilSeen asks again and again until the guest has found what was plugged, or
// seeTime has passed.
func (m *Machine) untilSeen(ctx context.Context, ask func() (seen bool, err error)) error {
	for until := time.Now().Add(seeTime); ; {
		seen, err := ask()
		if seen || time.Now().After(until) {
			return err
		}
		select {
		case <-time.After(seePace):
		case <-ctx.Done():
			return ctx.Err()
		case <-m.link.life.Done():
			return notRunning(m.g)
		}
	}
}
