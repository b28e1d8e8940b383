package qemu

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"lodge/internal/agent/initrd"
	"lodge/internal/base/errs"
	"lodge/internal/engine"
	"lodge/internal/keeper"
	"lodge/internal/launch"
	"lodge/internal/model/guest"
)

// logMax is how much of a guest's console is kept, in bytes, twice.
const logMax = 1 << 20

// Where the kernel's file is in QEMU's root.
const kernelInside = "/kernel"

// Files of a saved memory image.
const (
	savedMachine = "machine.json" // hardware, as JSON
	savedDevices = "device"
	savedMemory  = "ram"      // not there if the memory is among the devices
	savedShared  = "template" // there if many guests go on from it: none may change it
)

// Program says how the launch helper makes g.
func (e *Engine) Program(g guest.Guest, parts engine.Parts) (keeper.Program, error) {
	j, err := e.jail(g, parts)
	if err != nil {
		return keeper.Program{}, err
	}
	return j.Program()
}

// jail is QEMU with everything that the guest is made of.
func (e *Engine) jail(g guest.Guest, parts engine.Parts) (launch.Jail, error) {
	l, err := e.see(context.Background())
	if err != nil {
		return launch.Jail{}, &errs.Error{Op: "qemu.program", Kind: errs.Unsupported, Ref: g.Key().String(), Msg: err.Error(), Hint: packages}
	}
	w, err := design(g, parts, l.host)
	if err != nil {
		return launch.Jail{}, err
	}
	b := builder{g: g, parts: parts, w: w, at: map[string]int{}}
	b.Jail = launch.Jail{
		Launch: e.o.Launch, Join: e.o.Tree.Join(parts.Cgroup), UID: parts.IDBase, CPUs: parts.CPUSet,
		Env: []string{"PATH=/usr/bin", "LC_ALL=C.UTF-8"}, Binds: append([]launch.Bind{}, l.binds...), Proc: true, Devices: []string{"null"},
		Console: true, Log: engine.ConsoleLog(parts.Dir), LogMax: logMax,
	}
	if w.Accel == "kvm" {
		b.Devices = append(b.Devices, "kvm")
	}
	if err := b.furnish(l); err != nil {
		return launch.Jail{}, err
	}
	b.Argv = append([]string{l.program}, b.w.arguments(b.places)...)
	return b.Jail, nil
}

// builder is a jail in the making.
type builder struct {
	launch.Jail
	places
	g     guest.Guest
	parts engine.Parts
	w     hardware
	at    map[string]int // of what was opened, by name
}

func (b *builder) open(name string, f launch.File) {
	b.at[name] = len(b.Files)
	b.Files = append(b.Files, f)
}

// The lines to the monitor and the agent come right after the memory, so that
// a later daemon finds them where this one put them.
const (
	monitorAt = 1
	agentAt   = 2
)

func lineOf(i int) int {
	j := launch.Jail{Files: []launch.File{launch.Memory{}, launch.Pair{}, launch.Pair{}}}
	return j.Descriptor(i) + 1 // the host's end comes second
}

func (b *builder) furnish(l *look) error {
	b.places = places{name: b.g.Name, id: b.g.ID, fd: func(name string) int { return b.Descriptor(b.at[name]) }}
	memory := launch.Memory{Name: "ram", Size: b.w.Memory}
	if b.parts.Memory != "" {
		if err := b.resume(&memory); err != nil {
			return err
		}
	}
	b.open(fdMemory, memory)
	b.open(fdQMP, launch.Pair{})
	b.open(fdAgent, launch.Pair{})
	if b.parts.Memory != "" {
		b.open(fdState, launch.Open{Path: filepath.Join(b.parts.Memory, savedDevices), Flags: unix.O_RDONLY})
	}
	if b.w.Kernel {
		if err := b.kernelFiles(); err != nil {
			return err
		}
	}
	if err := b.driveFiles(); err != nil {
		return err
	}
	for i, n := range b.parts.NICs {
		// QEMU itself says later what the guest's end takes unfinished.
		b.open(fdCard(b.w.Cards[i].Name), launch.Tap{Device: n.Device, Master: n.Master, MTU: n.MTU, Header: true})
	}
	return nil
}

// kernelFiles gives QEMU the kernel, and the initrd with what makes the guest
// this guest at its end.
func (b *builder) kernelFiles() error {
	k := b.parts.Kernel
	if k.Path == "" || k.Initrd == "" {
		return &errs.Error{Op: "qemu.program", Kind: errs.Internal, Ref: b.g.Key().String(), Msg: "no kernel was given to the guest"}
	}
	archive, err := initrd.ConfigArchive(b.config())
	if err != nil {
		return err
	}
	b.kernel = kernelInside
	b.Binds = append(b.Binds, launch.Bind{Host: k.Path, Inside: kernelInside})
	b.open(fdInitrd, launch.Memory{Name: "initrd", Parts: []launch.Part{{Path: k.Initrd}, {Bytes: archive}}})
	return nil
}

func (b *builder) driveFiles() error {
	paths := map[string]string{baseSerial: b.parts.Root.Base, volumeSerial: b.parts.Root.Volume}
	if own := b.parts.Root.Own; own != nil {
		paths = map[string]string{ownSerial: own.Path}
	}
	for _, d := range b.parts.Disks {
		if _, taken := paths[d.Name]; taken {
			return errs.Bad("disks", "the name "+d.Name+" is the engine's own", "choose another name")
		}
		paths[d.Name] = d.Path
	}
	for _, d := range b.w.Drives {
		path, ok := paths[d.Name]
		if !ok {
			return &errs.Error{Op: "qemu.program", Kind: errs.Conflict, Ref: b.g.Key().String(), Msg: "its saved memory knows a disk " + d.Name + " that it does not have any more", Hint: "attach it again, or start without the memory"}
		}
		flags := unix.O_RDWR
		if d.ReadOnly {
			flags = unix.O_RDONLY
		}
		b.open(fdDrive(d.Name), launch.Open{Path: path, Flags: flags})
	}
	return nil
}

// resume takes the machine from a saved image, and the memory.
func (b *builder) resume(memory *launch.Memory) error {
	text, err := os.ReadFile(filepath.Join(b.parts.Memory, savedMachine))
	if err != nil {
		return &errs.Error{Op: "qemu.program", Kind: errs.Internal, Ref: b.g.Key().String(), Msg: "its saved memory cannot be read", Err: err}
	}
	was := b.w
	b.w = hardware{}
	if err := json.Unmarshal(text, &b.w); err != nil {
		return &errs.Error{Op: "qemu.program", Kind: errs.Internal, Ref: b.g.Key().String(), Msg: "its saved memory cannot be read", Err: err}
	}
	switch {
	case b.w.Accel != was.Accel:
		return &errs.Error{Kind: errs.Conflict, Ref: b.g.Key().String(), Msg: "its memory was saved with " + b.w.Accel + " and this host has " + was.Accel, Hint: "start without the memory"}
	case len(b.w.Cards) != len(b.parts.NICs):
		return &errs.Error{Kind: errs.Conflict, Ref: b.g.Key().String(), Msg: "its network cards are not those of its saved memory", Hint: "start without the memory"}
	}
	b.moving = true
	memory.Size = b.w.Memory
	ram := filepath.Join(b.parts.Memory, savedMemory)
	if _, err := os.Stat(ram); err == nil {
		b.ignoreRAM = true
		memory.Parts = []launch.Part{{Path: ram}}
	}
	return nil
}
