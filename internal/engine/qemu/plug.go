package qemu

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
	"lodge/internal/engine"
	"lodge/internal/engine/qemu/qmp"
	"lodge/internal/launch"
)

func (m *Machine) refuse(kind errs.Kind, msg, hint string) error {
	return &errs.Error{Op: "qemu.plug", Kind: kind, Ref: m.g.Key().String(), Msg: msg, Hint: hint}
}

// roomFor returns the machine as it is, and a port that is free.
func (m *Machine) roomFor(ctx context.Context) (w hardware, port string, err error) {
	if w, err = m.link.machine(ctx); err != nil {
		return w, "", m.about(err)
	}
	if !w.Modern || len(w.Ports) == 0 {
		return w, "", m.refuse(errs.Unsupported, "its machine has no ports that devices are plugged into while it runs", "restart it")
	}
	if port = w.freePort(); port == "" {
		return w, "", m.refuse(errs.Unsupported, "all its ports are taken", "take a device away, or restart it")
	}
	return w, port, nil
}

// PlugDisk gives the guest another disk. It is Exists if it has one of the name.
func (m *Machine) PlugDisk(ctx context.Context, d engine.Disk) error {
	m.link.device.Lock()
	defer m.link.device.Unlock()
	w, port, err := m.roomFor(ctx)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(w.Drives, func(o drive) bool { return o.Name == d.Name }) {
		return m.refuse(errs.Exists, "the guest has a disk "+d.Name+" already", "")
	}
	flags := os.O_RDWR
	n := drive{Name: d.Name, Format: d.Format, ReadOnly: d.ReadOnly || d.Optical, Port: port}
	if n.Shared = n.ReadOnly; n.ReadOnly {
		flags = os.O_RDONLY
	}
	f, err := os.OpenFile(d.Path, flags, 0)
	if err != nil {
		return fmt.Errorf("disk %s of %s: %w", d.Name, m.g.Name, err)
	}
	defer f.Close()
	if err := m.dropNode(ctx, d.Name); err != nil { // left by an attempt that was cut off
		return m.about(err)
	}
	err = m.link.with(ctx, func(ctx context.Context, c *qmp.Client) error {
		set, err := c.AddFile(ctx, fdDrive(d.Name), f)
		if err != nil {
			return err
		}
		if err := c.Do(ctx, "blockdev-add", driveNode(n, fileNode(set, n.ReadOnly, n.Shared), nil), nil); err != nil {
			return err
		}
		driver, props := w.driveDevice(n, "")
		return c.Do(ctx, "device_add", deviceArguments(driver, props), nil)
	})
	if err != nil {
		return m.about(errors.Join(err, m.dropNode(ctx, d.Name)))
	}
	return nil
}

// deviceArguments is a device as device_add takes it.
func deviceArguments(driver string, props []string) map[string]any {
	args := map[string]any{"driver": driver}
	for i := 0; i+1 < len(props); i += 2 {
		key, value := props[i], props[i+1]
		if value == "" {
			continue
		}
		args[key] = value
		if n, err := strconv.Atoi(value); err == nil && numbers[key] {
			args[key] = n
		}
	}
	return args
}

// numbers are the properties of devices that are not text.
var numbers = map[string]bool{"bootindex": true, "host_mtu": true, "socket-id": true, "core-id": true, "thread-id": true}

// UnplugDisk takes a disk away, once the guest has let go of it.
func (m *Machine) UnplugDisk(ctx context.Context, name string) error {
	m.link.device.Lock()
	defer m.link.device.Unlock()
	w, err := m.link.machine(ctx)
	if err != nil {
		return m.about(err)
	}
	i := slices.IndexFunc(w.Drives, func(d drive) bool { return d.Name == name })
	switch {
	case i < 0:
		return cmp.Or(m.about(m.dropNode(ctx, name)), m.refuse(errs.NotFound, fmt.Sprintf("the guest has no disk %q", name), ""))
	case w.Drives[i].Port == "":
		return m.refuse(errs.Unsupported, "its disk "+name+" cannot be taken away while it runs", "stop it first")
	}
	return m.afterwards(ctx, diskPrefix+name, func() error { return m.dropNode(ctx, name) })
}

// afterwards takes a device away and then what was behind it.
func (m *Machine) afterwards(ctx context.Context, id string, drop func() error) error {
	if err := m.remove(ctx, id); err != nil {
		return err
	}
	return m.about(drop())
}

// dropNode takes back the content of a disk that no device has, if it is there.
func (m *Machine) dropNode(ctx context.Context, name string) error {
	all, err := m.link.nodes(ctx)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(all, func(n node) bool { return n.Name == nodeName(name) }) {
		if err := m.link.do(ctx, "blockdev-del", map[string]any{"node-name": nodeName(name)}, nil); err != nil {
			return err
		}
	}
	var sets []struct {
		Set   int `json:"fdset-id"`
		Files []struct {
			What string `json:"opaque"`
		} `json:"fds"`
	}
	if err := m.link.do(ctx, "query-fdsets", nil, &sets); err != nil {
		return err
	}
	for _, s := range sets {
		if len(s.Files) > 0 && s.Files[0].What == fdDrive(name) {
			if err := m.link.do(ctx, "remove-fd", map[string]any{"fdset-id": s.Set}, nil); err != nil {
				return err
			}
		}
	}
	return nil
}

// remove asks the guest to let go of a device and waits until it is gone. One
// that was asked before is asked again.
func (m *Machine) remove(ctx context.Context, id string) error {
	l, done := m.link, make(chan error, 1)
	l.mu.Lock()
	l.deleted[id] = done
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.deleted, id)
	}()
	err := l.do(ctx, "device_del", map[string]any{"id": id}, nil)
	refused, ok := errors.AsType[*qmp.Error](err)
	switch {
	case ok && refused.Class == "DeviceNotFound":
		return nil
	case err != nil && !ok: // a refusal means that it is under way
		return m.about(err)
	}
	timeout := time.NewTimer(unplugTime)
	defer timeout.Stop()
	select {
	case err := <-done:
		return m.about(err)
	case <-timeout.C:
		return m.refuse(errs.Busy, "the guest has not let go of "+id+" yet", "it may still boot, or not know how: stop it first")
	case <-ctx.Done():
		return ctx.Err()
	case <-l.life.Done():
		return notRunning(m.g)
	}
}

// PlugNIC gives the guest another network card. It is Exists if it has one of the
// name, which the agent then knows.
func (m *Machine) PlugNIC(ctx context.Context, n engine.NIC) error {
	m.link.device.Lock()
	defer m.link.device.Unlock()
	w, port, err := m.roomFor(ctx)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(w.Cards, func(o card) bool { return o.Name == n.Name }) {
		return cmp.Or(m.tellCards(ctx, n), m.refuse(errs.Exists, "the guest has a network card "+n.Name+" already", ""))
	}
	if err := m.dropNet(ctx, n.Name); err != nil { // left by an attempt that was cut off
		return err
	}
	tap, err := openTap(n)
	if err != nil {
		return fmt.Errorf("network card %s of %s: %w", n.Name, m.g.Name, err)
	}
	defer tap.Close()
	err = m.link.with(ctx, func(ctx context.Context, c *qmp.Client) error {
		if err := c.PassFile(ctx, fdCard(n.Name), tap); err != nil {
			return err
		}
		if err := c.Do(ctx, "netdev_add", map[string]any{"type": "tap", "id": netPrefix + n.Name, "fd": fdCard(n.Name)}, nil); err != nil {
			return err
		}
		driver, props := w.cardDevice(card{Name: n.Name, MAC: n.MAC, MTU: n.MTU, Port: port})
		args := deviceArguments(driver, props)
		args["romfile"] = ""
		return c.Do(ctx, "device_add", args, nil)
	})
	if err != nil {
		return m.about(errors.Join(err, m.dropNet(ctx, n.Name)))
	}
	return m.tellCards(ctx, n)
}

// tellCards lets the agent name and address a card that was plugged. It waits
// until the guest's kernel has found it.
func (m *Machine) tellCards(ctx context.Context, n engine.NIC) error {
	if m.link.agent == nil {
		return nil
	}
	parts := m.parts
	parts.NICs = append(slices.DeleteFunc(slices.Clone(parts.NICs), func(o engine.NIC) bool { return o.Name == n.Name }), n)
	return m.about(m.link.agent.Renew(ctx, config(m.g, parts)))
}

// UnplugNIC takes a network card away, once the guest has let go of it.
func (m *Machine) UnplugNIC(ctx context.Context, name string) error {
	m.link.device.Lock()
	defer m.link.device.Unlock()
	w, err := m.link.machine(ctx)
	if err != nil {
		return m.about(err)
	}
	i := slices.IndexFunc(w.Cards, func(c card) bool { return c.Name == name })
	switch {
	case i < 0:
		return cmp.Or(m.dropNet(ctx, name), m.refuse(errs.NotFound, fmt.Sprintf("the guest has no network card %q", name), ""))
	case w.Cards[i].Port == "":
		return m.refuse(errs.Unsupported, "its network card "+name+" cannot be taken away while it runs", "stop it first")
	}
	return m.afterwards(ctx, nicPrefix+name, func() error { return m.dropNet(ctx, name) })
}

// dropNet takes back the host's end of a card that is not there, if it is.
func (m *Machine) dropNet(ctx context.Context, name string) error {
	err := m.link.do(ctx, "netdev_del", map[string]any{"id": netPrefix + name}, nil)
	if _, refused := errors.AsType[*qmp.Error](err); refused {
		return nil // there is none
	}
	return m.about(err)
}

// openTap makes a card's host end.
func openTap(n engine.NIC) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if err := launch.Plug(fd, n.Device, n.Master, unix.IFF_VNET_HDR, n.MTU); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), n.Device), nil
}
