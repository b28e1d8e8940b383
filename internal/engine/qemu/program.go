package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"

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

// How QEMU is given memory images; see image/image.c.
const (
	imagePrefix  = "/image/"
	imageLibrary = "/usr/lib/lodge-image.so"
)

// Files of a saved memory image.
const (
	savedMachine = "machine.json" // hardware, as JSON
	savedDevices = "device"
	savedMemory  = "ram" // not there if the memory is among the devices
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
	} else {
		b.Env = append(b.Env, hugeHeap)
	}
	if err := b.furnish(e, l); err != nil {
		return launch.Jail{}, err
	}
	about, err := json.Marshal(b.w)
	if err != nil {
		return launch.Jail{}, err
	}
	b.Env = append(b.Env, machineEnv+string(about))
	b.Argv = append([]string{l.program}, b.w.arguments(b.places)...)
	if b.w.TPM {
		b.Argv = l.tpm.besides(b.fd(fdTPM)+1, b.Argv)
	}
	return b.Jail, nil
}

// hugeHeap has the C library (glibc, from 2.35) ask for huge pages for what QEMU
// allocates. Where it translates, some fifth of its time it looks up translations
// in tables of many MiB.
const hugeHeap = "GLIBC_TUNABLES=glibc.malloc.hugetlb=1"

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

// What a later daemon needs comes first, so that it finds it where this one
// put it.
const (
	memoryAt = iota
	monitorAt
	agentAt
	stateAt
)

func descriptorOf(i int) int {
	return launch.Jail{Files: []launch.File{launch.Memory{}, launch.Pair{}, launch.Pair{}}}.Descriptor(i)
}

// hostEnd is the host's end of a line, which comes second.
func hostEnd(i int) int { return descriptorOf(i) + 1 }

func (b *builder) furnish(e *Engine, l *look) error {
	b.places = places{name: b.g.Name, id: b.g.ID, fd: func(name string) int { return b.Descriptor(b.at[name]) }}
	memory, err := b.memory(e)
	if err != nil {
		return err
	}
	b.open(fdMemory, memory)
	b.open(fdQMP, launch.Pair{})
	b.open(fdAgent, launch.Pair{})
	if b.parts.Memory != "" {
		b.open(fdState, launch.Open{Path: filepath.Join(b.parts.Memory, savedDevices), Flags: unix.O_RDONLY})
	}
	if b.w.Kernel && !b.moving {
		if err := b.kernelFiles(); err != nil {
			return err
		}
	}
	if err := b.driveFiles(); err != nil {
		return err
	}
	if err := b.firmwareFiles(l); err != nil {
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

// codeInside is where UEFI's code is in QEMU's root.
const codeInside = "/uefi"

// firmwareFiles gives QEMU what firmware is made of that is not its own. Its
// variables lie with the guest's disk.
func (b *builder) firmwareFiles(l *look) error {
	if strings.HasPrefix(b.w.Firmware, "uefi") {
		code, vars, ok := l.Firmware.files(b.w.Firmware)
		if !ok {
			return &errs.Error{Op: "qemu.program", Kind: errs.Unsupported, Ref: b.g.Key().String(), Msg: "this host has no firmware " + b.w.Firmware, Hint: "apt-get install ovmf"}
		}
		b.code = codeInside
		b.Binds = append(b.Binds, launch.Bind{Host: code, Inside: codeInside})
		b.open(fdVars, launch.Kept{Path: filepath.Join(b.parts.Root.Writable, b.w.Firmware+".vars"), From: vars})
	}
	if b.w.TPM {
		if l.tpm == nil {
			return &errs.Error{Op: "qemu.program", Kind: errs.Unsupported, Ref: b.g.Key().String(), Field: "tpm", Msg: "this host has no security modules for guests", Hint: "apt-get install swtpm busybox-static"}
		}
		b.addTPM(l.tpm)
	}
	return nil
}

func (b *builder) driveFiles() error {
	paths := map[string]string{baseSerial: b.parts.Root.Base, volumeSerial: b.parts.Root.Volume, modulesSerial: b.parts.Kernel.Modules}
	if own := b.parts.Root.Own; own != nil {
		paths = map[string]string{ownSerial: own.Path, seedSerial: ""}
	}
	for _, d := range b.parts.Disks {
		if _, taken := paths[d.Name]; taken {
			return errs.Bad("disks", "the name "+d.Name+" is the engine's own", "choose another name")
		}
		paths[d.Name] = d.Path
	}
	for _, d := range b.w.Drives {
		if d.Name == seedSerial && !b.w.Kernel {
			if err := b.seed(); err != nil {
				return err
			}
			continue
		}
		path, ok := paths[d.Name]
		if !ok {
			return &errs.Error{Op: "qemu.program", Kind: errs.Conflict, Ref: b.g.Key().String(), Msg: "its saved memory knows a disk " + d.Name + " that it does not have any more", Hint: "attach it again, or start without the memory"}
		}
		flags := unix.O_RDWR
		if d.ReadOnly {
			flags = unix.O_RDONLY
		}
		b.open(fdDrive(d.Name), launch.Open{Path: path, Flags: flags})
		if d.Over {
			b.open(fdBase, launch.Open{Path: b.parts.Root.Base, Flags: unix.O_RDONLY})
		}
	}
	return nil
}

// memory is the guest's memory: empty, or what was saved.
func (b *builder) memory(e *Engine) (launch.File, error) {
	if a := b.parts.Arriving; a != nil {
		err := b.comes(*a)
		return b.emptyMemory(), err
	}
	dir := b.parts.Memory
	if dir == "" {
		return b.emptyMemory(), nil
	}
	if err := b.resume(filepath.Join(dir, savedMachine)); err != nil {
		return nil, err
	}
	b.moving = true
	ram := filepath.Join(dir, savedMemory)
	if _, err := os.Stat(ram); errors.Is(err, os.ErrNotExist) {
		b.w.Private = false
		return b.emptyMemory(), nil
	}
	// Nobody writes to images: many guests can go on from one, with one copy of
	// what none of them changes.
	path, err := e.images.find(b.w.Image, ram)
	if err != nil {
		return nil, err
	}
	b.w.Private = true
	b.Binds = append(b.Binds, launch.Bind{Host: e.o.Image, Inside: imageLibrary})
	b.Env = append(b.Env, "LD_PRELOAD="+imageLibrary)
	return launch.Open{Path: path, Flags: unix.O_RDONLY}, nil
}

// ramName is the name of the file that is a guest's memory.
const ramName = "ram"

// emptyMemory is that of a guest that starts anew. QEMU advises the kernel to use
// huge pages for it, as for all memory of guests: an address that the processor
// does not know is looked up in fewer steps.
func (b *builder) emptyMemory() launch.Memory {
	return launch.Memory{Name: ramName, Size: b.w.Memory, Huge: launch.HugeFiles()}
}

// resume takes the machine from a saved image.
func (b *builder) resume(path string) error {
	text, err := os.ReadFile(path)
	was := b.w
	b.w = hardware{}
	if err == nil {
		err = json.Unmarshal(text, &b.w)
	}
	if err != nil {
		return &errs.Error{Op: "qemu.program", Kind: errs.Internal, Ref: b.g.Key().String(), Msg: "its saved memory cannot be read", Err: err}
	}
	return b.same(was)
}

// same judges whether the guest can go on here in the machine that it knows; was
// is the one that it would get if it started anew.
func (b *builder) same(was hardware) error {
	conflict := func(msg string) error {
		return &errs.Error{Op: "qemu.program", Kind: errs.Conflict, Ref: b.g.Key().String(), Msg: msg, Hint: "start it without its memory"}
	}
	switch {
	case b.w.Accel != was.Accel:
		return conflict("its memory is of a machine with " + b.w.Accel + ", and this host has " + was.Accel)
	case len(b.w.Cards) != len(b.parts.NICs):
		return conflict("its network cards are not those that its memory knows")
	}
	// A copy's cards and identity are not those of the guest it was copied from.
	b.w.UUID = was.UUID
	for i, n := range b.parts.NICs {
		b.w.Cards[i].MAC = n.MAC
	}
	return nil
}
