package kvmprobe

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

// Run runs two tiny guests, one as a BIOS starts and one in 64-bit mode, and
// writes a Step for each to w, as JSON. A broken KVM never returns from the call
// that runs a guest, so this is for a process of its own that somebody ends after
// a while.
func Run(w io.Writer) {
	runtime.LockOSThread() // a virtual processor belongs to the thread that made it
	out := json.NewEncoder(w)
	out.Encode(Step{Step: Begins})
	for _, long := range []bool{false, true} {
		step := Step{Step: map[bool]string{false: "real mode", true: "long mode"}[long]}
		g, err := newTinyGuest(long)
		if err == nil {
			step.Ns, err = turnTime(g.run)
		}
		g.close()
		if err != nil {
			step.Err = err.Error()
		}
		out.Encode(step)
		if err != nil || step.Ns > Slow {
			return
		}
	}
}

const (
	// tries is how often the loops are run at most: a host that has much to do
	// interrupts some of them.
	tries = 5
	// fewTurns show where it is hopeless, which many would take too long for.
	fewTurns, manyTurns = 20_000, 200_000
	// hopeless is how many nanoseconds a turn may take at most; a loop that takes
	// longer is not run again: no other process makes that of it.
	hopeless = 2000
)

// turnTime returns how many nanoseconds a turn of a loop takes: what run takes
// longer for many than for one, each at its best. What leads to the loop takes the
// same time for both, which may be far more than the loop's, above all before it
// was ever gone.
func turnTime(run func(turns int) (time.Duration, error)) (ns float64, err error) {
	if _, err := run(1); err != nil {
		return 0, err
	}
	least := map[int]time.Duration{}
	for range tries {
		for _, turns := range []int{1, 1, fewTurns, manyTurns} {
			took, err := run(turns)
			if err != nil {
				return 0, err
			}
			if was, ok := least[turns]; !ok || took < was {
				least[turns] = took
			}
			ns = max(0, each(least[turns]-least[1], turns))
			if ns > hopeless || turns == manyTurns && ns <= Slow {
				return ns, nil
			}
		}
	}
	return ns, nil
}

func each(took time.Duration, turns int) float64 { return float64(took.Nanoseconds()) / float64(turns) }

func kvmCall[T any](fd int, what string, request uintptr, arg *T) (int, error) {
	r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(unsafe.Pointer(arg)))
	if errno != 0 {
		return -1, fmt.Errorf("%s: %w", what, errno)
	}
	return int(r), nil
}

// tinyGuest is a machine with a loop in its memory.
type tinyGuest struct {
	fds   []int
	maps  [][]byte
	cpu   int
	page  []byte // what KVM shares with us about the processor
	sregs kvmSregs
}

func (g *tinyGuest) close() {
	for _, m := range g.maps {
		unix.Munmap(m)
	}
	for _, fd := range g.fds {
		unix.Close(fd)
	}
}

// open notes a descriptor to be closed.
func (g *tinyGuest) open(fd int, err error) (int, error) {
	if err == nil {
		g.fds = append(g.fds, fd)
	}
	return fd, err
}

// newTinyGuest makes a guest; what it returns is to be closed also when that
// failed.
func newTinyGuest(long bool) (*tinyGuest, error) {
	g := &tinyGuest{}
	dev, err := g.open(unix.Open("/dev/kvm", unix.O_RDWR|unix.O_CLOEXEC, 0))
	if err != nil {
		return g, err
	}
	if v, err := kvmCall[byte](dev, "version", kvmGetAPIVersion, nil); err != nil || v != 12 {
		return g, fmt.Errorf("KVM has version %d, not 12 (%v)", v, err)
	}
	vm, err := g.open(kvmCall[byte](dev, "a machine", kvmCreateVM, nil))
	if err != nil {
		return g, err
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(vm), kvmSetTSSAddr, 0xfffbd000); errno != 0 {
		return g, fmt.Errorf("task state: %w", errno)
	}
	mem, err := unix.Mmap(-1, 0, 2<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		return g, err
	}
	g.maps = append(g.maps, mem)
	region := kvmMemory{Size: uint64(len(mem)), HVA: uint64(uintptr(unsafe.Pointer(&mem[0])))}
	if _, err := kvmCall(vm, "memory", kvmSetMem, &region); err != nil {
		return g, err
	}
	if g.cpu, err = g.open(kvmCall[byte](vm, "a processor", kvmCreateVCPU, nil)); err != nil {
		return g, err
	}
	if err := g.load(mem, long); err != nil {
		return g, err
	}
	size, err := kvmCall[byte](dev, "size of the shared page", kvmGetVcpuMmap, nil)
	if err != nil {
		return g, err
	}
	if g.page, err = unix.Mmap(g.cpu, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err == nil {
		g.maps = append(g.maps, g.page)
	}
	return g, err
}

// run turns the loop, and says how long that took.
func (g *tinyGuest) run(turns int) (time.Duration, error) {
	if _, err := kvmCall(g.cpu, "segments", kvmSetSregs, &g.sregs); err != nil {
		return 0, err
	}
	r := kvmRegs{RIP: 0x1000, RFLAGS: 2, RSP: 0x8000, RCX: uint64(turns)}
	if _, err := kvmCall(g.cpu, "registers", kvmSetRegs, &r); err != nil {
		return 0, err
	}
	return runUntilPort(g.cpu, g.page)
}

// runUntilPort runs a guest until it writes to a port, and says how long that
// took.
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

// load puts a counting loop at 0x1000 that ends by writing to a port, and for
// 64-bit mode the page tables that map the memory to itself.
func (g *tinyGuest) load(mem []byte, long bool) error {
	s := &g.sregs
	if _, err := kvmCall(g.cpu, "registers", kvmGetSregs, s); err != nil {
		return err
	}
	if !long {
		// 1: dec ecx; mov [0x9000], cx; jnz 1b; out 0x10, al; hlt
		copy(mem[0x1000:], []byte{0x66, 0x49, 0x89, 0x0e, 0x00, 0x90, 0x75, 0xf8, 0xe6, 0x10, 0xf4})
		for _, seg := range []*kvmSegment{&s.CS, &s.DS, &s.SS} {
			seg.Base, seg.Sel = 0, 0
		}
		return nil
	}
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
	return nil
}
