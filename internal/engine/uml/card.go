package uml

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
	"lodge/internal/base/proc"
	"lodge/internal/engine"
	"lodge/internal/launch"
)

// cards are those that the guest has, as far as this daemon knows: what another
// one plugged is in the parts by now.
func (m *Machine) cards() []engine.NIC {
	m.line.mu.Lock()
	defer m.line.mu.Unlock()
	out := slices.Clone(m.parts.NICs)
	for _, n := range m.line.cards {
		if !slices.ContainsFunc(out, func(o engine.NIC) bool { return o.Name == n.Name }) {
			out = append(out, n)
		}
	}
	return out
}

// spareCard is the number that the guest's kernel counts cards on spare doors
// from; those it booted with have lower ones.
const spareCard = 64

// doors are the descriptors of the spare doors in the guest's kernel.
func doors() [spares]int {
	j := launch.Jail{Files: fixedFiles()}
	first := j.Descriptor(len(j.Files))
	var out [spares]int
	for i := range out {
		out[i] = first + i
	}
	return out
}

// PlugNIC puts a tap device behind a door that the guest's kernel has open, and
// tells the kernel and then the agent.
func (m *Machine) PlugNIC(ctx context.Context, n engine.NIC) error {
	if err := m.runs(); err != nil {
		return err
	}
	if i := m.behind(n.Device); i >= 0 && slices.ContainsFunc(m.cards(), func(o engine.NIC) bool { return o.Name == n.Name }) {
		// A daemon that died may have told the kernel, and the agent, or not:
		// the one refuses what it knows, the other takes it.
		_ = m.configure(ctx, i, n)
		return cmp.Or(m.tell(ctx, m.cards()), m.refuse(errs.Exists, "plug", "the guest has a network card "+n.Name+" already", ""))
	}
	i := m.behind("")
	if i < 0 {
		return m.refuse(errs.Conflict, "plug", fmt.Sprintf("a paravirtual guest can have %d network cards that came while it ran", spares), "take one away, or restart it")
	}
	if err := m.open(i, n); err != nil {
		return fmt.Errorf("network card %s: %w", n.Name, err)
	}
	if err := m.configure(ctx, i, n); err != nil {
		return errors.Join(err, launch.Drop(n.Device))
	}
	m.line.mu.Lock()
	m.line.cards[n.Name] = n
	m.line.mu.Unlock()
	return m.tell(ctx, m.cards())
}

// configure tells the guest's kernel of the card behind the ith door.
func (m *Machine) configure(ctx context.Context, i int, n engine.NIC) error {
	_, err := m.manage(ctx, fmt.Sprintf("config vec%d:%s", spareCard+i, cardOptions(doors()[i], n.MAC)))
	return err
}

// UnplugNIC takes a card away that came while the guest ran, or one that it
// booted with.
func (m *Machine) UnplugNIC(ctx context.Context, name string) error {
	if err := m.runs(); err != nil {
		return err
	}
	all := m.cards()
	i := slices.IndexFunc(all, func(n engine.NIC) bool { return n.Name == name })
	if i < 0 {
		return m.refuse(errs.NotFound, "unplug", "the guest has no network card "+strconv.Quote(name), "")
	}
	card := spareCard + m.behind(all[i].Device)
	if card < spareCard {
		card = m.booted(all[i].MAC)
	}
	// The kernel takes away no card that is switched on.
	if err := m.tell(ctx, slices.Delete(slices.Clone(all), i, i+1)); err != nil {
		return err
	}
	if card < 0 { // it was to come, and whoever plugged it in was cut off before it did
		return m.refuse(errs.NotFound, "unplug", "the guest has no network card "+strconv.Quote(name)+" yet", "")
	}
	if _, err := m.manage(ctx, fmt.Sprintf("remove vec%d", card)); err != nil {
		return err
	}
	m.line.mu.Lock()
	delete(m.line.cards, name)
	m.line.mu.Unlock()
	return launch.Drop(all[i].Device)
}

// booted returns the number of the card of this address that the guest's kernel
// was started with, or -1: its command line says it.
func (m *Machine) booted(mac string) int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", m.held.State().Pid))
	if err != nil {
		return -1
	}
	for word := range strings.SplitSeq(string(text), "\x00") {
		card, options, ok := strings.Cut(word, ":")
		if n, err := strconv.Atoi(strings.TrimPrefix(card, "vec")); ok && err == nil && n < spareCard && strings.HasSuffix(options, ",mac="+strings.ToLower(mac)) {
			return n
		}
	}
	return -1
}

// behind returns the number of the spare door with this device behind it, or
// -1; "" is a door with none, not yet or not any more.
func (m *Machine) behind(device string) int {
	for i, fd := range doors() {
		f, err := launch.Take(m.held, fd)
		if err != nil {
			continue // the kernel closed it, for whatever reason
		}
		name := ""
		err = proc.Control(f, func(fd int) (err error) {
			name, err = tapName(fd)
			return err
		})
		f.Close()
		if err == nil && name == device {
			return i
		}
	}
	return -1
}

// tapName is the device behind an open door, "" if there is none.
func tapName(fd int) (string, error) {
	r, err := unix.NewIfreq("")
	if err != nil {
		return "", err
	}
	switch err := unix.IoctlIfreq(fd, unix.TUNGETIFF, r); {
	case errors.Is(err, unix.EBADFD):
		return "", nil
	case err != nil:
		return "", err
	}
	return r.Name(), nil
}

// open makes the tap device of n behind the ith door.
func (m *Machine) open(i int, n engine.NIC) error {
	f, err := launch.Take(m.held, doors()[i])
	if err != nil {
		return err
	}
	defer f.Close()
	return proc.Control(f, func(fd int) error {
		if err := launch.Plug(fd, n.Device, n.Master, unix.IFF_VNET_HDR, n.MTU); err != nil {
			return err
		}
		return unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, 0)
	})
}

// tell lets the agent name, address and switch on these cards, and switch off
// all others.
func (m *Machine) tell(ctx context.Context, cards []engine.NIC) error {
	parts := m.parts
	parts.NICs = cards
	return m.line.Renew(ctx, config(m.g, parts))
}
