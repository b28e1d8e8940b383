package qemu

import (
	"crypto/sha256"
	"fmt"
	"math"
	"slices"
	"strings"

	"lodge/internal/base/errs"
	"lodge/internal/engine"
	"lodge/internal/model/guest"
)

// hardware is the machine that a guest sees. A saved memory image keeps it,
// because only the same machine can go on from there.
type hardware struct {
	Kind     string `json:"kind"` // "q35", "microvm"
	Machine  string `json:"machine"`
	Accel    string `json:"accel"`
	CPUModel string `json:"cpu_model"`
	CPUs     int    `json:"cpus"`     // that cannot be taken away
	MaxCPUs  int    `json:"max_cpus"` // that can be plugged
	Memory   uint64 `json:"memory"`   // bytes, at power-on
	Modules  int    `json:"modules"`  // slots for memory modules
	MaxMem   uint64 `json:"max_mem"`  // with all modules

	UUID     string `json:"uuid"`
	Firmware string `json:"firmware"` // "bios", "uefi", "uefi-secure"
	TPM      bool   `json:"tpm,omitempty"`
	Kernel   bool   `json:"kernel"`        // boots a kernel that it is handed, not a disk
	Modern   bool   `json:"modern"`        // has virtio's devices, not those that any system knows
	TSC      uint64 `json:"tsc,omitempty"` // what the kernel of a microvm is told of its clock
	Agent    string `json:"agent"`         // name of the serial port that its agent listens on

	Drives  []drive  `json:"drives"`
	Cards   []card   `json:"cards"`
	Plugged []plug   `json:"plugged,omitempty"` // further processors, and memory that was added since, in order
	Ports   []string `json:"ports"`             // that a device can be plugged into

	// Private says that the memory is an image, of which the guest's changes are
	// its own: it is no file that could be copied. Image is the image's name.
	Private bool   `json:"private,omitempty"`
	Image   string `json:"image,omitempty"`
	// Bare says that the devices were saved without a word on what machine they
	// are of: QEMU writes them so where it does not write the memory.
	Bare bool `json:"bare,omitempty"`
}

// drive is a disk or an optical disc.
type drive struct {
	Name     string `json:"name"` // its serial number
	Format   string `json:"format"`
	ReadOnly bool   `json:"read_only,omitempty"`
	Shared   bool   `json:"shared,omitempty"` // others read the same file
	Optical  bool   `json:"optical,omitempty"`
	Over     bool   `json:"over,omitempty"` // what was never written to it is that of the guest's base
	Boot     int    `json:"boot,omitempty"`
	Port     string `json:"port,omitempty"` // that it can be unplugged from
}

// card is a network card.
type card struct {
	Name string `json:"name"`
	MAC  string `json:"mac"`
	MTU  int    `json:"mtu,omitempty"`
	Port string `json:"port,omitempty"`
}

// added reports whether the machine has memory beside that which it was started
// with.
func (w hardware) added() bool {
	return slices.ContainsFunc(w.Plugged, func(p plug) bool { return p.Size > 0 })
}

// plug is a processor or memory module that can be added while the guest runs.
type plug struct {
	ID     string `json:"id"`
	Driver string `json:"driver"`
	Socket int    `json:"socket,omitempty"` // of a processor
	Size   uint64 `json:"size,omitempty"`   // of a memory module, bytes
}

// The disks of a guest that boots a kernel it is handed.
const (
	baseSerial    = "base"
	modulesSerial = "modules"
	volumeSerial  = "volume"
	ownSerial     = "root"  // of a guest that boots a disk of its own
	seedSerial    = "_seed" // of what cloud-init reads in such a guest; no disk of its spec can be called so
)

// The serial ports that agents listen on: Lodge's, and the one that
// unmodified guests may bring along.
const (
	agentPort      = "lodge.agent.0"
	guestAgentPort = "org.qemu.guest_agent.0"
)

const (
	defaultMemory = 512 << 20
	memoryModules = 8
	// sparePorts are for devices that come while the guest runs. Each is five
	// devices to a guest's udev, of some 13 ms where it is translated.
	sparePorts           = 8
	translatedSparePorts = 4
	// hotMemory is the least memory of an unmodified guest that can be given
	// more while it runs: Linux reserves 64 MiB when it sees that it can.
	hotMemory = 1 << 30
	mostCPUs  = 64
)

// host is what the machine below offers.
type host struct {
	Version  string // of QEMU: "7.2.22"
	Machine  string // the newest machine of kind q35: "pc-q35-7.2"
	KVM      bool
	CPUs     int
	Firmware firmware
	Slow     []string // features that QEMU knows and that make translated guests slow
	TSC      uint64   // thousands a second that the processors' time stamp counter counts; 0: not known
}

func (h host) accel() string {
	if h.KVM {
		return "kvm"
	}
	return "tcg"
}

// cpuModel is the processor of guests that ask for none: all that there is.
func (h host) cpuModel() string {
	if h.KVM {
		return "host"
	}
	return "max"
}

// design makes the machine for a guest.
func design(g guest.Guest, parts engine.Parts, h host) (hardware, error) {
	w := hardware{
		Kind: "q35", Machine: h.Machine, Accel: h.accel(), CPUModel: h.cpuModel(), UUID: uuid(g.ID), Firmware: "bios",
		Memory: g.Spec.Memory, TPM: g.Spec.Hardware.TPM, Kernel: parts.Root.Own == nil, Modern: true, Agent: agentPort,
	}
	if w.Memory == 0 {
		w.Memory = defaultMemory
	}
	if m := g.Spec.Hardware.CPUModel; m != "" {
		w.CPUModel = processor(m)
	}
	if !h.KVM {
		w.CPUModel = translated(w.CPUModel, h.Slow)
	}
	w.CPUs = min(processors(g.Spec.CPUs, h.CPUs), mostCPUs)
	w.MaxCPUs = max(w.CPUs, min(h.CPUs, mostCPUs))
	if f := g.Spec.Hardware.Firmware; f != "" {
		w.Firmware = f
	}
	if err := w.choose(g, h); err != nil {
		return w, err
	}
	w.splitProcessors()
	if w.Kind == "q35" && (w.Kernel || w.Memory >= hotMemory) {
		w.Modules, w.MaxMem = memoryModules, 16*w.Memory
	}
	if !w.Kernel {
		w.Agent, w.Modern = guestAgentPort, knowsVirtio(parts.Image.OS)
	}
	w.furnish(parts, g.Spec.UserData != "")
	return w, nil
}

// processors is how many a guest sees that may use so many processors' worth
// of time.
func processors(share float64, all int) int {
	if share == 0 {
		return all
	}
	return max(1, int(math.Ceil(share)))
}

// splitProcessors makes all processors but the first ones that can be taken away
// while the guest runs: QEMU cannot part with those that it powers on itself.
func (w *hardware) splitProcessors() {
	if w.Kind != "q35" {
		return
	}
	model, _, _ := strings.Cut(w.CPUModel, ",")
	for socket := 1; socket < w.CPUs; socket++ {
		w.Plugged = append(w.Plugged, plug{ID: processorName(socket), Driver: model + "-x86_64-cpu", Socket: socket})
	}
	w.CPUs = 1
}

// choose judges what the guest's record asks for against what is there.
func (w *hardware) choose(g guest.Guest, h host) error {
	switch kind := g.Spec.Hardware.Machine; {
	case kind == "" || kind == "q35":
	case kind != "microvm":
		return errs.Bad("machine", fmt.Sprintf("there is no machine %q", kind), "q35 or microvm")
	case !w.Kernel:
		return errs.Bad("machine", "microvm has no firmware that boots disks", "leave --machine out")
	default:
		w.Kind, w.Machine = kind, kind
		w.MaxCPUs = w.CPUs
		if !h.KVM {
			w.TSC = h.TSC
		}
	}
	switch {
	case !cpuModel.MatchString(w.CPUModel):
		return errs.Bad("cpu_model", fmt.Sprintf("%q is no name of a processor", w.CPUModel), "qemu-system-x86_64 -cpu help")
	case w.Kernel && w.Firmware != "bios":
		return errs.Bad("firmware", "guests of root-tree images boot their kernel without firmware", "leave --firmware out")
	case !slices.Contains([]string{"bios", "uefi", "uefi-secure"}, w.Firmware):
		return errs.Bad("firmware", fmt.Sprintf("there is no firmware %q", w.Firmware), "bios, uefi or uefi-secure")
	}
	if _, _, ok := h.Firmware.files(w.Firmware); !ok {
		return &errs.Error{Kind: errs.Unsupported, Field: "firmware", Msg: "this host has no firmware " + w.Firmware, Hint: "apt-get install ovmf"}
	}
	return nil
}

// knowsVirtio reports whether an operating system, named as os-release does,
// surely has drivers for virtio's devices. Any other gets what PCs had.
func knowsVirtio(os string) bool {
	return slices.Contains([]string{"debian", "ubuntu", "fedora", "centos", "rhel", "rocky", "almalinux", "alpine", "arch", "opensuse", "opensuse-leap", "sles", "lodge"}, os)
}

// furnish adds drives and cards. What may have to be unplugged gets a port of
// its own, and some ports stay free.
func (w *hardware) furnish(parts engine.Parts, seed bool) {
	if w.Kernel {
		w.Drives = append(w.Drives, drive{Name: baseSerial, Format: "raw", ReadOnly: true, Shared: true}, drive{Name: volumeSerial, Format: "raw"})
		if parts.Kernel.Modules != "" {
			w.Drives = append(w.Drives, drive{Name: modulesSerial, Format: "raw", ReadOnly: true, Shared: true})
		}
	} else {
		own := ownDrive(*parts.Root.Own)
		own.Over = parts.Root.Base != ""
		w.Drives = append(w.Drives, own)
		if seed {
			w.Drives = append(w.Drives, drive{Name: seedSerial, Format: "raw", ReadOnly: true, Optical: !w.Modern}) // no old disk is read-only
		}
	}
	for _, d := range parts.Disks {
		readOnly := d.ReadOnly || d.Optical
		optical := d.Optical && !w.Kernel // which is a disk to a kernel that has no drivers for drives of the kind
		w.Drives = append(w.Drives, drive{Name: d.Name, Format: d.Format, ReadOnly: readOnly, Shared: readOnly, Optical: optical, Boot: d.Boot, Port: w.pluggable(!optical)})
	}
	for _, n := range parts.NICs {
		w.Cards = append(w.Cards, card{Name: n.Name, MAC: n.MAC, MTU: n.MTU, Port: w.pluggable(true)})
	}
	spare := sparePorts
	switch {
	case w.Kind != "q35":
		spare = 0
	case w.Accel == "tcg":
		spare = translatedSparePorts
	}
	for range spare {
		w.newPort()
	}
}

// lastBoot comes after every order that somebody may choose.
const lastBoot = 1000

func ownDrive(d engine.Disk) drive {
	boot := d.Boot
	if boot == 0 {
		boot = lastBoot
	}
	return drive{Name: ownSerial, Format: d.Format, Boot: boot}
}

func (w *hardware) pluggable(yes bool) string {
	if !yes || w.Kind != "q35" || !w.Modern {
		return ""
	}
	return w.newPort()
}

func (w *hardware) newPort() string {
	p := fmt.Sprintf("port%d", len(w.Ports)+1)
	w.Ports = append(w.Ports, p)
	return p
}

// freePort returns a port without a device, or "".
func (w *hardware) freePort() string {
	for _, p := range w.Ports {
		taken := slices.ContainsFunc(w.Drives, func(d drive) bool { return d.Port == p }) ||
			slices.ContainsFunc(w.Cards, func(c card) bool { return c.Port == p })
		if !taken {
			return p
		}
	}
	return ""
}

// uuid is a guest's identity as firmware shows it.
func uuid(id string) string {
	b := sha256.Sum256([]byte("lodge guest " + id))
	b[6], b[8] = b[6]&0x0f|0x80, b[8]&0x3f|0x80 // RFC 9562: version 8, of our own making
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:16])
}
