package qemu

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// cpuModel is what the name of a processor model may be made of, with features
// added and taken away: "qemu64,+svm,-avx".
var cpuModel = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*(,[+-][a-z0-9._-]+)*$`)

// Names of the descriptors that QEMU starts with.
const (
	fdMemory = "memory"
	fdInitrd = "initrd"
	fdQMP    = "monitor"
	fdAgent  = "agent"
	fdState  = "state" // devices of a saved guest
	fdVars   = "vars"  // UEFI's variables
	fdTPM    = "tpm"
	fdBase   = "base" // the disk that the guest's own lies on
)

func fdDrive(name string) string { return "drive " + name }
func fdCard(name string) string  { return "card " + name }

// places says where a start finds what it needs.
type places struct {
	fd     func(name string) int // of what was opened for QEMU
	kernel string                // path in QEMU's root
	code   string                // of UEFI, likewise
	name   string                // of the guest
	id     string
	moving bool // goes on from a saved image
}

// line is QEMU's command line in the making.
type line struct{ args []string }

func (l *line) add(args ...string) { l.args = append(l.args, args...) }

// device adds one with properties, as key, value, key, value.
func (l *line) device(driver string, props ...string) { l.add("-device", list(driver, props...)) }

// list writes QEMU's key=value lists, in which a comma is written twice.
func list(first string, props ...string) string {
	var b strings.Builder
	b.WriteString(first)
	for i := 0; i+1 < len(props); i += 2 {
		if props[i+1] == "" {
			continue
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(props[i] + "=" + strings.ReplaceAll(props[i+1], ",", ",,"))
	}
	return b.String()
}

// arguments is QEMU's command line for w, without the program's own name.
func (w hardware) arguments(p places) []string {
	l := &line{}
	l.add("-name", list("", "guest", p.name, "debug-threads", "on"))
	l.add("-nodefaults", "-no-user-config", "-msg", "timestamp=off")
	l.add("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
	w.board(l, p)
	w.processorsAndMemory(l, p)
	w.identity(l, p)
	w.ends(l)
	w.lines(l, p)
	w.drives(l, p)
	w.cards(l, p)
	w.extras(l, p)
	if p.moving {
		l.add("-incoming", "defer") // until it is told that the memory is there already
		if w.Bare {
			l.add("-global", "migration.send-configuration=off")
		}
	}
	return l.args
}

func (w hardware) board(l *line, p places) {
	machine := []string{"memory-backend", "ram"}
	if w.Kind == "microvm" {
		// Without pit and pic the kernel cannot calibrate its clock where
		// there is no kvmclock; with virtio-mmio instead of pcie the agent's
		// port was never found.
		machine = append(machine, "pcie", "on", "acpi", "on", "rtc", "on", "pit", "on", "pic", "on", "isa-serial", "on")
	} else {
		machine = append(machine, "vmport", "off")
		if !w.Kernel {
			// There is a screen; but so the BIOS, and boot loaders that speak
			// through it, are seen on the console too.
			machine = append(machine, "graphics", "off")
		}
	}
	if strings.HasPrefix(w.Firmware, "uefi") {
		l.blockdev(map[string]any{"node-name": "code", "driver": "file", "filename": p.code, "read-only": true})
		l.blockdev(map[string]any{"node-name": "vars", "driver": "raw", "file": l.file(p, fdVars, 0, false, false)})
		machine = append(machine, "pflash0", "code", "pflash1", "vars")
	}
	if w.Firmware == "uefi-secure" {
		machine = append(machine, "smm", "on")
		l.add("-global", "driver=cfi.pflash01,property=secure,value=on", "-global", "ICH9-LPC.disable_s3=1")
	}
	if p.moving && w.Bare {
		// What it reads ends without a description of itself, of which QEMU
		// complains on the guest's console.
		machine = append(machine, "suppress-vmdesc", "on")
	}
	l.add("-machine", list(w.Machine, machine...))
	if w.Accel == "kvm" {
		l.add("-accel", "kvm")
	} else {
		l.add("-accel", fmt.Sprintf("tcg,tb-size=%d", codeCache>>20))
		// A translated processor's write to a device is QEMU's own work
		// already: handing it to another thread only costs the way there.
		for _, device := range []string{"virtio-blk-pci", "virtio-net-pci", "virtio-serial-pci"} {
			l.add("-global", "driver="+device+",property=ioeventfd,value=off")
		}
	}
}

// codeCache is how much memory translated code may take: when it is full, all of
// it is thrown away. A boot of Debian 12 makes some 340 MB, and takes a tenth
// longer with 128 MiB. It is used as it fills: idle copies of a template have 30 to
// 50 MB.
const codeCache = 384 << 20

// hugePage is the size of a huge page of x86-64.
const hugePage = 2 << 20

func (w hardware) processorsAndMemory(l *line, p places) {
	l.add("-cpu", w.CPUModel) // its commas are the list's own
	l.add("-smp", fmt.Sprintf("cpus=%d,maxcpus=%d,sockets=%d,cores=1,threads=1", w.CPUs, w.MaxCPUs, w.MaxCPUs))
	size := strconv.FormatUint(w.Memory, 10)
	memory := list("", "size", size+"B")
	if w.Modules > 0 {
		memory = list("", "size", size+"B", "slots", strconv.Itoa(w.Modules), "maxmem", strconv.FormatUint(w.MaxMem, 10)+"B")
	}
	l.add("-m", memory)
	align := ""
	if !w.Private {
		align = strconv.Itoa(hugePage) // else no huge page would fit in
	}
	l.add("-object", list("memory-backend-file", "id", "ram", "size", size, "mem-path", w.memoryPath(p), "align", align, "share", onOff(!w.Private)))
	socket := 0
	for _, m := range w.Plugged {
		if m.Size == 0 {
			socket++
			l.device(m.Driver, "id", m.ID, "socket-id", strconv.Itoa(m.Socket), "core-id", "0", "thread-id", "0")
			continue
		}
		l.add("-object", list("memory-backend-ram", "id", "ram-"+m.ID, "size", strconv.FormatUint(m.Size, 10)))
		l.device("pc-dimm", "id", m.ID, "memdev", "ram-"+m.ID)
	}
}

// memoryPath is where QEMU finds the guest's memory. Images are opened by the
// library that QEMU is given for it.
func (w hardware) memoryPath(p places) string {
	if w.Private {
		return imagePrefix + strconv.Itoa(p.fd(fdMemory))
	}
	return descriptor(p, fdMemory)
}

func descriptor(p places, name string) string { return "/proc/self/fd/" + strconv.Itoa(p.fd(name)) }

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}

func (w hardware) identity(l *line, p places) {
	l.add("-uuid", w.UUID, "-smbios", list("type=1", "manufacturer", "Lodge", "product", "Lodge guest", "version", w.Kind, "serial", p.id, "uuid", w.UUID))
	l.add("-rtc", "base=utc")
	if w.Kernel && !p.moving { // which has its kernel in its memory, and ends when it reboots
		l.add("-kernel", p.kernel, "-initrd", descriptor(p, fdInitrd), "-append", w.kernelLine())
	}
}

// ends says what becomes of the guest's own ends. A guest that was handed its
// kernel ends when it reboots, because the next boot may be of another one. When
// its watchdog bites it stands still: as an end of its own that would look like
// a power-off (see link.bitten).
func (w hardware) ends(l *line) {
	reboot, watchdog := "reset", "reset"
	if w.Kernel {
		reboot, watchdog = "shutdown", "pause"
	}
	l.add("-action", "reboot="+reboot+",shutdown=poweroff,panic=exit-failure,watchdog="+watchdog)
}

// lines adds the console, which is the program's own terminal, the monitor,
// and the agent's port.
func (w hardware) lines(l *line, p places) {
	l.add("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console")
	l.add("-chardev", fmt.Sprintf("socket,id=monitor,fd=%d", p.fd(fdQMP)), "-mon", "chardev=monitor,mode=control")
	l.add("-chardev", fmt.Sprintf("socket,id=agent,fd=%d", p.fd(fdAgent)))
	// A port of it may have two queues, and each queue is a descriptor that
	// QEMU's loop looks at whenever it wakes: it has as many as are used.
	l.device("virtio-serial-pci", "id", "ports", "max_ports", "2")
	l.device("virtserialport", "bus", "ports.0", "nr", "1", "id", "agent", "chardev", "agent", "name", w.Agent)
}

// blockdev adds a node of QEMU's block layer.
func (l *line) blockdev(node map[string]any) {
	b, err := json.Marshal(node)
	if err != nil {
		panic(err) // only strings, numbers and truth values are put in
	}
	l.add("-blockdev", string(b))
}

// file makes set out of an open descriptor, and returns the node of the file
// that it stands for.
func (l *line) file(p places, name string, set int, readOnly, shared bool) map[string]any {
	l.add("-add-fd", list("", "fd", strconv.Itoa(p.fd(name)), "set", strconv.Itoa(set), "opaque", name))
	return fileNode(set, readOnly, shared)
}

// fileNode is a file that was opened before: its set stands for it. Others
// may hold locks on what is only read.
func fileNode(set int, readOnly, shared bool) map[string]any {
	n := map[string]any{"driver": "file", "filename": fmt.Sprintf("/dev/fdset/%d", set), "read-only": readOnly, "discard": "unmap"}
	if shared {
		n["locking"] = "off"
	}
	return n
}

// node names of drives.
func nodeName(name string) string { return "node-" + name }

// driveNode is a drive's content on top of its file. A qcow2 file lies on base
// (nil: on none), whatever it names itself.
func driveNode(d drive, file, base map[string]any) map[string]any {
	n := map[string]any{"node-name": nodeName(d.Name), "driver": d.Format, "file": file, "read-only": d.ReadOnly, "discard": "unmap"}
	if d.Format == "qcow2" {
		n["backing"] = base
	}
	return n
}

// driveSets is the number of the first drive's set, and baseSet that of the disk
// below the guest's own: no machine has as many drives.
const (
	driveSets = 1
	baseSet   = 1000
)

// baseNode is the disk that the guest's own lies on.
func (l *line) baseNode(p places) map[string]any {
	return map[string]any{"driver": "qcow2", "file": l.file(p, fdBase, baseSet, true, true), "read-only": true, "backing": nil}
}

func (w hardware) drives(l *line, p places) {
	for i, port := range w.Ports {
		l.device("pcie-root-port", "id", port, "bus", "pcie.0", "chassis", strconv.Itoa(i+1), "slot", strconv.Itoa(i+1))
	}
	sata := 0
	for i, d := range w.Drives {
		var base map[string]any
		if d.Over {
			base = l.baseNode(p)
		}
		file := map[string]any{"driver": "file", "filename": descriptor(p, fdDrive(d.Name)), "read-only": true, "locking": "off"}
		if d.Name != seedSerial || w.Kernel { // which is in memory, and no set takes what could be written to
			file = l.file(p, fdDrive(d.Name), driveSets+i, d.ReadOnly, d.Shared)
		}
		l.blockdev(driveNode(d, file, base))
		bus := fmt.Sprintf("ide.%d", sata)
		if d.Optical || !w.Modern {
			sata++
		}
		driver, props := w.driveDevice(d, bus)
		l.device(driver, props...)
	}
}

// serialMax is how long a disk's serial number may be.
const serialMax = 20

func (w hardware) driveDevice(d drive, sata string) (driver string, props []string) {
	boot := ""
	if d.Boot > 0 {
		boot = strconv.Itoa(d.Boot)
	}
	props = []string{"id", diskPrefix + d.Name, "drive", nodeName(d.Name), "serial", d.Name[:min(len(d.Name), serialMax)], "bootindex", boot}
	switch {
	case d.Optical:
		return "ide-cd", append(props, "bus", sata)
	case !w.Modern:
		return "ide-hd", append(props, "bus", sata)
	}
	// A full disk of the host stops the guest instead of failing its writes.
	return "virtio-blk-pci", append(props, "bus", d.Port, "werror", "enospc", "rerror", "report")
}

func (w hardware) cards(l *line, p places) {
	for _, c := range w.Cards {
		l.add("-netdev", list("tap", "id", netPrefix+c.Name, "fd", strconv.Itoa(p.fd(fdCard(c.Name)))))
		driver, props := w.cardDevice(c)
		// Firmware would load a program for network boot, which takes seconds.
		l.add("-device", list(driver, props...)+",romfile=")
	}
}

func (w hardware) cardDevice(c card) (driver string, props []string) {
	props = []string{"id", nicPrefix + c.Name, "netdev", netPrefix + c.Name, "mac", c.MAC, "bus", c.Port}
	if !w.Modern {
		return "e1000", props
	}
	mtu := ""
	if c.MTU > 0 {
		mtu = strconv.Itoa(c.MTU)
	}
	return "virtio-net-pci", append(props, "host_mtu", mtu)
}

func (w hardware) extras(l *line, p places) {
	l.device("virtio-rng-pci", "id", "rng")
	l.device("virtio-balloon-pci", "id", "balloon", "deflate-on-oom", "on")
	if w.Kind == "microvm" {
		l.add("-display", "none")
		return
	}
	l.device("VGA", "id", "screen", "vgamem_mb", "16")
	l.add("-vnc", "none") // a screen that connections are handed to, with no listener
	l.device("i6300esb", "id", "watchdog")
	l.device("pvpanic-pci", "id", "panic")
	if !w.Modern || !w.Kernel {
		l.device("qemu-xhci", "id", "usb")
		l.device("usb-tablet", "id", "pointer", "bus", "usb.0")
	}
	if w.TPM {
		l.add("-chardev", fmt.Sprintf("socket,id=tpm,fd=%d", p.fd(fdTPM)), "-tpmdev", "emulator,id=tpm,chardev=tpm")
		l.device("tpm-crb", "tpmdev", "tpm")
	}
}
