package qemu

import (
	"context"
	"fmt"
	"slices"
	"time"

	"lodge/internal/base/errs"
	"lodge/internal/engine/qemu/qmp"
	"lodge/internal/model/guest"
)

// Resize changes what a running guest may use: the limits of QEMU's control
// group, the number of processors, and the memory, by modules that are plugged
// and by a balloon. A guest that does not let go of processors keeps them, and
// shares less time among them.
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
	cpus := min(processors(spec.CPUs, m.e.o.cpus()), w.MaxCPUs)
	more, err := m.addProcessors(ctx, w, cpus)
	if err != nil {
		return m.about(err)
	}
	if w.Accel == "kvm" { // TCG ends when a processor comes back that was taken away
		if err := m.takeProcessors(ctx, w, cpus); err != nil {
			return m.about(err)
		}
	}
	plugged, err := m.addMemory(ctx, w, want)
	if err != nil {
		return m.about(err)
	}
	if more || plugged || w.Kind == "q35" && len(w.Plugged) > 0 {
		m.online(ctx, w.Kind == "q35", cpus)
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

// addProcessors plugs processors until the guest has want, and reports whether
// it has more then.
func (m *Machine) addProcessors(ctx context.Context, w hardware, want int) (more bool, err error) {
	if w.Kind != "q35" {
		return false, nil
	}
	all, err := m.link.slots(ctx)
	if err != nil {
		return false, err
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
		args := map[string]any{"driver": s.Type, "id": processorName(s.Props.Socket), "socket-id": s.Props.Socket, "core-id": 0, "thread-id": 0}
		if err := m.link.do(ctx, "device_add", args, nil); err != nil {
			return more, err
		}
		have++
		more = true
	}
	return more, nil
}

// partTime is how long a guest may take to let go of a processor.
const partTime = 10 * time.Second

// takeProcessors takes processors away until the guest has want, the last first.
// A guest that does not know how, or boots, keeps them.
func (m *Machine) takeProcessors(ctx context.Context, w hardware, want int) error {
	all, err := m.link.slots(ctx)
	if err != nil {
		return err
	}
	all = slices.DeleteFunc(all, func(s slot) bool { return s.Path == "" })
	for have := len(all); w.Kind == "q35" && have > want && all[have-1].Props.Socket >= w.CPUs; have-- {
		wait, cancel := context.WithTimeout(ctx, partTime)
		err := m.remove(wait, processorName(all[have-1].Props.Socket))
		cancel()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			m.e.o.Log.Warn("a guest keeps a processor that it is to have no more", "guest", m.g.Name, "err", err)
			return nil
		}
	}
	return nil
}

// online makes the guest use what was plugged, and, if counted, cpus processors,
// which it waits for. A guest that boots, or has no agent, finds them by itself,
// or not.
func (m *Machine) online(ctx context.Context, counted bool, cpus int) {
	a := m.link.agent
	if a == nil || !a.State().Connected {
		return
	}
	err := m.untilSeen(ctx, func() (bool, error) {
		if err := a.Online(ctx, cpus); err != nil {
			return false, err
		}
		s, err := a.Stats(ctx)
		return err == nil && (s.CPUs == cpus || !counted), err
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
	if b.Actual > want {
		switch _, ok, err := m.link.heard(ctx, time.Time{}); {
		case err != nil:
			return err
		case !ok:
			return &errs.Error{Op: "qemu.resize", Kind: errs.Unsupported, Hint: "restart it; the smaller memory counts from then on",
				Msg: "the guest cannot give memory back while it runs: it has no driver for a virtio balloon, or still boots"}
		}
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
