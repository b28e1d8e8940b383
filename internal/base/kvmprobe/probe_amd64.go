package doctor

import (
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Requests of linux/kvm.h for x86.
const (
	kvmGetAPIVersion = 0xAE00
	kvmCreateVM      = 0xAE01
	kvmGetVcpuMmap   = 0xAE04
	kvmCreateVCPU    = 0xAE41
	kvmSetTSSAddr    = 0xAE47
	kvmRun           = 0xAE80
	kvmSetMem        = 0x4020AE46
	kvmGetSregs      = 0x8138AE83
	kvmSetSregs      = 0x4138AE84
	kvmSetRegs       = 0x4090AE82

	kvmExitIO = 2
)

type kvmSegment struct {
	Base                                 uint64
	Limit                                uint32
	Sel                                  uint16
	Type, Present, DPL, DB, S, L, G, AVL uint8
	_, _                                 uint8
}

type kvmTable struct {
	Base  uint64
	Limit uint16
	_     [3]uint16
}

type kvmSregs struct {
	CS, DS, ES, FS, GS, SS, TR, LDT     kvmSegment
	GDT, IDT                            kvmTable
	CR0, CR2, CR3, CR4, CR8, EFER, APIC uint64
	_                                   [4]uint64
}

type kvmRegs struct {
	RAX, RBX, RCX, RDX, RSI, RDI, RSP, RBP, R8, R9, R10, R11, R12, R13, R14, R15, RIP, RFLAGS uint64
}

type kvmMemory struct {
	Slot, Flags uint32
	GPA, Size   uint64
	HVA         uint64
}

// ProbeKVM runs two tiny guests, one as a BIOS starts and one in 64-bit mode,
// and writes a line of JSON for each to w. A broken KVM never returns from
// the call that runs a guest, so this is for a process of its own that the
// doctor kills after a while: see Options.KVMProbe.
func ProbeKVM(w io.Writer) {
	runtime.LockOSThread() // a virtual processor belongs to the thread that made it
	out := json.NewEncoder(w)
	for _, long := range []bool{false, true} {
		step := kvmStep{Step: map[bool]string{false: "real mode", true: "long mode"}[long]}
		ns, err := fastest(func(turns int) (float64, error) { return runTinyGuest(long, turns) })
		if err != nil {
			step.Err = err.Error()
		}
		step.Ns = ns
		out.Encode(step)
		if err != nil || ns > slow {
			return
		}
	}
}

const (
	// tries is how often a loop is run at most: a host that has much to do
	// interrupts some of them.
	tries = 5
	// fewTurns and manyTurns are how often the first loop and the others turn: the
	// first shows where it is hopeless, in the others what leads to the loop
	// weighs nothing.
	fewTurns, manyTurns = 40_000, 200_000
	// hopeless is how many times slower than it may be a loop is that is not run
	// again: no other process makes that of it.
	hopeless = 40
)

// fastest returns the least of what run takes, of a few times.
func fastest(run func(turns int) (ns float64, err error)) (least float64, err error) {
	turns := fewTurns
	for n := range tries {
		ns, err := run(turns)
		if err != nil {
			return 0, err
		}
		if n == 0 || ns < least {
			least = ns
		}
		if least <= slow || least > hopeless*slow {
			break
		}
		turns = manyTurns
	}
	return least, nil
}

func kvmCall[T any](fd int, what string, request uintptr, arg *T) (int, error) {
	r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(unsafe.Pointer(arg)))
	if errno != 0 {
		return -1, fmt.Errorf("%s: %w", what, errno)
	}
	return int(r), nil
}

// runTinyGuest returns the nanoseconds for a turn of the guest's loop.
func runTinyGuest(long bool, turns int) (float64, error) {
	dev, err := unix.Open("/dev/kvm", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(dev)
	if v, err := kvmCall[byte](dev, "version", kvmGetAPIVersion, nil); err != nil || v != 12 {
		return 0, fmt.Errorf("KVM has version %d, not 12 (%v)", v, err)
	}
	vm, err := kvmCall[byte](dev, "a machine", kvmCreateVM, nil)
	if err != nil {
		return 0, err
	}
	defer unix.Close(vm)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(vm), kvmSetTSSAddr, 0xfffbd000); errno != 0 {
		return 0, fmt.Errorf("task state: %w", errno)
	}
	mem, err := unix.Mmap(-1, 0, 2<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		return 0, err
	}
	defer unix.Munmap(mem)
	region := kvmMemory{Size: uint64(len(mem)), HVA: uint64(uintptr(unsafe.Pointer(&mem[0])))}
	if _, err := kvmCall(vm, "memory", kvmSetMem, &region); err != nil {
		return 0, err
	}
	cpu, err := kvmCall[byte](vm, "a processor", kvmCreateVCPU, nil)
	if err != nil {
		return 0, err
	}
	defer unix.Close(cpu)
	if err := setUpTinyGuest(cpu, mem, long, turns); err != nil {
		return 0, err
	}
	size, err := kvmCall[byte](dev, "size of the shared page", kvmGetVcpuMmap, nil)
	if err != nil {
		return 0, err
	}
	page, err := unix.Mmap(cpu, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return 0, err
	}
	defer unix.Munmap(page)
	took, err := runUntilPort(cpu, page)
	return float64(took.Nanoseconds()) / float64(turns), err
}

// runUntilPort runs the guest until it writes to a port, and says how long
// that took. page is what KVM shares with us about the processor.
func runUntilPort(cpu int, page []byte) (time.Duration, error) {
	start := time.Now()
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(cpu), kvmRun, 0)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return 0, fmt.Errorf("running: %w", errno)
		}
		break
	}
	if reason := *(*uint32)(unsafe.Pointer(&page[8])); reason != kvmExitIO {
		return 0, fmt.Errorf("the guest stopped for reason %d instead of writing to its port", reason)
	}
	return time.Since(start), nil
}

// setUpTinyGuest puts a counting loop at 0x1000 that ends by writing to a
// port, and for 64-bit mode the page tables that map the memory to itself.
func setUpTinyGuest(cpu int, mem []byte, long bool, turns int) error {
	var s kvmSregs
	if _, err := kvmCall(cpu, "registers", kvmGetSregs, &s); err != nil {
		return err
	}
	r := kvmRegs{RIP: 0x1000, RFLAGS: 2, RSP: 0x8000, RCX: uint64(turns)}
	if long {
		// 1: dec rcx; mov [0x9000], rcx; jnz 1b; out 0x10, al; hlt
		copy(mem[0x1000:], []byte{0x48, 0xff, 0xc9, 0x48, 0x89, 0x0c, 0x25, 0x00, 0x90, 0, 0, 0x75, 0xf3, 0xe6, 0x10, 0xf4})
		for at, v := range map[int]uint64{0x2000: 0x3003, 0x3000: 0x4003, 0x4000: 0x83} {
			*(*uint64)(unsafe.Pointer(&mem[at])) = v
		}
		s.CR3, s.CR4, s.CR0, s.EFER = 0x2000, 0x20, 0x80000033, 0x500
		code := kvmSegment{Limit: 0xffffffff, Sel: 8, Type: 11, Present: 1, S: 1, L: 1, G: 1}
		data := code
		data.Sel, data.Type, data.L, data.DB = 16, 3, 0, 1
		s.CS, s.DS, s.ES, s.FS, s.GS, s.SS = code, data, data, data, data, data
	} else {
		// 1: dec ecx; mov [0x9000], cx; jnz 1b; out 0x10, al; hlt
		copy(mem[0x1000:], []byte{0x66, 0x49, 0x89, 0x0e, 0x00, 0x90, 0x75, 0xf8, 0xe6, 0x10, 0xf4})
		for _, seg := range []*kvmSegment{&s.CS, &s.DS, &s.SS} {
			seg.Base, seg.Sel = 0, 0
		}
	}
	if _, err := kvmCall(cpu, "segments", kvmSetSregs, &s); err != nil {
		return err
	}
	_, err := kvmCall(cpu, "registers", kvmSetRegs, &r)
	return err
}
