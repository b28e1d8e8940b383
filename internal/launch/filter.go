package launch

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"

	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/sys/unix"
)

// Rule says which system calls a jailed program is refused.
type Rule struct {
	Calls []string   // by name; those that this machine does not have count for nothing
	Errno unix.Errno // that they fail with
	// When, if set, limits it to calls with such an argument.
	When *Argument
}

// Argument is a condition on the low 32 bits of an argument of a call.
type Argument struct {
	Index int // from 0
	Is    Comparison
	Value uint32
}

// Comparison is how an argument is compared.
type Comparison int

// The comparisons.
const (
	Equal   Comparison = iota // with Value
	Unequal                   //
	AnyOf                     // any bit of Value is set
)

// The parts of classic BPF that the filter needs, of linux/filter.h and
// linux/seccomp.h.
const (
	bpfLoad   = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
	bpfEqual  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	bpfSet    = unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K
	bpfReturn = unix.BPF_RET | unix.BPF_K
	numberAt  = 0 // offsets in struct seccomp_data
	archAt    = 4
	argsAt    = 16
	x32Bit    = 0x40000000
)

type instruction struct {
	code   uint16
	jt, jf uint8
	k      uint32
}

func refuse(e unix.Errno) instruction {
	return instruction{code: bpfReturn, k: unix.SECCOMP_RET_ERRNO | uint32(e)}
}

// Filter assembles a seccomp program of rules for a machine (as GOARCH names
// it); what none of them is about is allowed. Calls of another machine end the
// program. Of several rules about a call the first counts that applies.
func Filter(goarch string, rules []Rule) ([]byte, error) {
	native, err := arch.GetInfo(goarch)
	if err != nil {
		return nil, err
	}
	prog := []instruction{
		{code: bpfLoad, k: archAt},
		{code: bpfEqual, jt: 1, k: uint32(native.ID)},
		{code: bpfReturn, k: unix.SECCOMP_RET_KILL_PROCESS},
		{code: bpfLoad, k: numberAt},
	}
	if goarch == "amd64" {
		prog = append(prog, instruction{code: bpfSet, jf: 1, k: x32Bit}, refuse(unix.ENOSYS))
	}
	for _, r := range rules {
		for _, nr := range numbers(native, r.Calls) {
			prog = append(prog, r.about(nr)...)
		}
	}
	prog = append(prog, instruction{code: bpfReturn, k: unix.SECCOMP_RET_ALLOW})
	if len(prog) > math.MaxUint16/16 { // of BPF_MAXINSNS
		return nil, fmt.Errorf("a filter of %d instructions is too long", len(prog))
	}
	var out []byte
	for _, i := range prog {
		out = binary.LittleEndian.AppendUint16(out, i.code)
		out = append(out, i.jt, i.jf)
		out = binary.LittleEndian.AppendUint32(out, i.k)
	}
	return out, nil
}

func numbers(a *arch.Info, names []string) []uint32 {
	var out []uint32
	for _, n := range names {
		if nr, ok := a.SyscallNames[n]; ok {
			out = append(out, uint32(nr))
		}
	}
	slices.Sort(out)
	return out
}

// about is the part of the program about call nr, whose number is loaded before
// and behind it.
func (r Rule) about(nr uint32) []instruction {
	if r.When == nil {
		return []instruction{{code: bpfEqual, jf: 1, k: nr}, refuse(r.Errno)}
	}
	test := instruction{code: bpfEqual, jf: 1, k: r.When.Value}
	switch r.When.Is {
	case Unequal:
		test.jt, test.jf = 1, 0
	case AnyOf:
		test.code = bpfSet
	}
	return []instruction{
		{code: bpfEqual, jf: 4, k: nr},
		{code: bpfLoad, k: uint32(argsAt + 8*r.When.Index)},
		test,
		refuse(r.Errno),
		{code: bpfLoad, k: numberAt},
	}
}
