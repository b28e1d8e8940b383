// Package plan compiles a list of system calls, decided in Go, into the bytes
// that the launch helper (../helper/launch.c) executes without a thought of its
// own. Compiling has no side effects and is deterministic: the same calls give
// the same bytes, so plans are compared with golden files.
package plan

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Arg is an argument of an operation: an Imm, a Reg or an At.
type Arg interface {
	arg() (mode uint32, value int64)
}

// Imm is a number as it stands.
type Imm int64

// Reg is a register: the result of an earlier operation. Parent and child share
// all registers.
type Reg uint8

// At is the address of a place in the plan's data.
type At uint32

func (i Imm) arg() (uint32, int64) { return 0, int64(i) }
func (r Reg) arg() (uint32, int64) { return 1, int64(r) }
func (a At) arg() (uint32, int64)  { return 2, int64(a) }

// Mark is a place among the operations that others jump to.
type Mark int

// The operations' codes, as launch.c numbers them.
const (
	opSys = iota + 1
	opMove
	opEqual
	opUnequal
	opBelow
	opLoad
	opStore32
	opStore64
	opText
	opDiff
	opSpawn
	opFail
	opCheck
	opEnd
)

// TextLen is the room that Text needs: the digits of a 64-bit number and an end.
const TextLen = 24

const (
	magic      = 0x3150474c // "LGP1"
	headerSize = 32
	opSize     = 64
	maxPlan    = 16 << 20
	numeric    = 1
)

type op struct {
	code, keep, dst uint8
	label           At
	target          uint32
	jump            Mark // when jumps: resolved to target
	jumps           bool
	args            []Arg
}

// Plan is a list of operations under construction. The zero value is empty and
// reports failures on descriptor 4 in words.
type Plan struct {
	// Numeric puts the error number before a failure's text, for readers that
	// are programs.
	Numeric bool

	ops   []op
	data  []byte
	texts map[string]At
	marks []int
	regs  int
	err   error
}

// New returns a register that nothing else uses.
func (p *Plan) New() Reg {
	p.regs++
	if p.regs > 255 {
		p.err = errors.New("a plan needs more than 255 registers")
		return 0
	}
	return Reg(p.regs)
}

// Scope does what takes registers of its own that nothing needs afterwards.
// Parent and child run at the same time: what one uses in a scope must not be
// written down before what the other uses.
func (p *Plan) Scope(do func()) {
	was := p.regs
	do()
	p.regs = was
}

// Bytes puts b into the data at an address of its own, aligned for any type.
func (p *Plan) Bytes(b []byte) At {
	p.data = append(p.data, make([]byte, -len(p.data)&7)...)
	at := At(len(p.data))
	p.data = append(p.data, b...)
	return at
}

// Space reserves n zero bytes.
func (p *Plan) Space(n int) At { return p.Bytes(make([]byte, n)) }

// Text puts s and an ending zero into the data; equal texts share a place, so
// it must not be written to.
func (p *Plan) Text(s string) At {
	if at, ok := p.texts[s]; ok {
		return at
	}
	if p.texts == nil {
		p.texts = map[string]At{}
	}
	at := At(len(p.data))
	p.data = append(append(p.data, s...), 0)
	p.texts[s] = at
	return at
}

// Vector puts the null-ended array of pointers that execve takes into the data;
// the pointers are stored when the plan runs.
func (p *Plan) Vector(texts []string) At {
	at := p.Space(8 * (len(texts) + 1))
	for i, s := range texts {
		p.Store64(at+At(8*i), p.Text(s))
	}
	return at
}

func (p *Plan) add(o op) { p.ops = append(p.ops, o) }

// Sys calls number nr and returns the register of its result. A failure ends
// the plan with what as its name.
func (p *Plan) Sys(what string, nr uintptr, args ...Arg) Reg {
	dst := p.New()
	p.add(op{code: opSys, dst: uint8(dst), label: p.Text(what), target: uint32(nr), args: args})
	return dst
}

// Do is Sys for a call whose result nobody needs.
func (p *Plan) Do(what string, nr uintptr, args ...Arg) {
	p.add(op{code: opSys, label: p.Text(what), target: uint32(nr), args: args})
}

// Try is Sys for a call that may fail: the register then holds the negative
// error number.
func (p *Plan) Try(nr uintptr, args ...Arg) Reg {
	dst := p.New()
	p.add(op{code: opSys, keep: 1, dst: uint8(dst), target: uint32(nr), args: args})
	return dst
}

// Ignore calls number nr and does not care for what becomes of it.
func (p *Plan) Ignore(nr uintptr, args ...Arg) {
	p.add(op{code: opSys, keep: 1, target: uint32(nr), args: args})
}

// Set gives r a value.
func (p *Plan) Set(r Reg, v Arg) { p.add(op{code: opMove, dst: uint8(r), args: []Arg{v}}) }

// Mark makes a place to jump to; Here says where it is.
func (p *Plan) Mark() Mark {
	p.marks = append(p.marks, -1)
	return Mark(len(p.marks) - 1)
}

// Here puts m before the next operation.
func (p *Plan) Here(m Mark) { p.marks[m] = len(p.ops) }

// JumpIf goes on at m when a equals b.
func (p *Plan) JumpIf(a, b Arg, m Mark) {
	p.add(op{code: opEqual, args: []Arg{a, b}, jump: m, jumps: true})
}

// JumpUnless goes on at m when a is not b.
func (p *Plan) JumpUnless(a, b Arg, m Mark) {
	p.add(op{code: opUnequal, args: []Arg{a, b}, jump: m, jumps: true})
}

// JumpBelow goes on at m when a is less than b, as signed numbers.
func (p *Plan) JumpBelow(a, b Arg, m Mark) {
	p.add(op{code: opBelow, args: []Arg{a, b}, jump: m, jumps: true})
}

// Jump goes on at m.
func (p *Plan) Jump(m Mark) { p.JumpIf(Imm(0), Imm(0), m) }

// Load returns a register with the signed 32-bit number at at.
func (p *Plan) Load(at At) Reg {
	dst := p.New()
	p.LoadTo(dst, at)
	return dst
}

// LoadTo reads the signed 32-bit number at at into r.
func (p *Plan) LoadTo(r Reg, at At) {
	p.add(op{code: opLoad, dst: uint8(r), args: []Arg{Imm(at)}})
}

// Store32 writes v's low 32 bits at at.
func (p *Plan) Store32(at At, v Arg) { p.add(op{code: opStore32, args: []Arg{Imm(at), v}}) }

// Store64 writes v at at.
func (p *Plan) Store64(at At, v Arg) { p.add(op{code: opStore64, args: []Arg{Imm(at), v}}) }

// Decimal writes v in digits at at, where TextLen bytes must be free, and
// returns the register of their number.
func (p *Plan) Decimal(at At, v Arg) Reg {
	dst := p.New()
	p.add(op{code: opText, dst: uint8(dst), args: []Arg{Imm(at), v}})
	return dst
}

// Differ returns a register that is 0 when the n bytes at a and b are equal.
func (p *Plan) Differ(a, b At, n int) Reg {
	dst := p.New()
	p.add(op{code: opDiff, dst: uint8(dst), args: []Arg{Imm(a), Imm(b), Imm(n)}})
	return dst
}

// Spawn makes the plan's one child by the clone_args at args, whose stack the
// helper fills in and whose flags must hold CLONE_VM and CLONE_FILES. The child
// goes on at child, the parent behind Spawn with the child's pid.
func (p *Plan) Spawn(what string, args At, child Mark) Reg {
	dst := p.New()
	p.add(op{code: opSpawn, dst: uint8(dst), label: p.Text(what), args: []Arg{Imm(args)}, jump: child, jumps: true})
	return dst
}

// Fail ends the plan with the error number in v, which may be negative.
func (p *Plan) Fail(what string, v Arg) {
	p.add(op{code: opFail, label: p.Text(what), args: []Arg{v}})
}

// Check fails as the child failed, if it did. The parent may ask when the
// child's thread id was cleared, which is when it ran its program or ended.
func (p *Plan) Check() { p.add(op{code: opCheck}) }

// End is success.
func (p *Plan) End() { p.add(op{code: opEnd}) }

// Compile returns the bytes that the helper reads on descriptor 3.
func (p *Plan) Compile() ([]byte, error) {
	if p.err != nil {
		return nil, p.err
	}
	dataAt := headerSize + opSize*len(p.ops)
	total := dataAt + len(p.data) + 8
	if total > maxPlan {
		return nil, fmt.Errorf("a plan of %d bytes is too large", total)
	}
	le, flags := binary.LittleEndian, uint32(0)
	if p.Numeric {
		flags = numeric
	}
	out := make([]byte, 0, total)
	const status = 4
	for _, v := range []uint32{magic, uint32(total), uint32(len(p.ops)), uint32(dataAt), uint32(len(p.data) + 8), status, flags, 0} {
		out = le.AppendUint32(out, v)
	}
	for i, o := range p.ops {
		if o.jumps {
			if p.marks[o.jump] < 0 {
				return nil, fmt.Errorf("operation %d of a plan jumps to nowhere", i)
			}
			o.target = uint32(p.marks[o.jump])
		}
		modes, vals := uint32(0), [6]int64{}
		if len(o.args) > len(vals) {
			return nil, fmt.Errorf("operation %d of a plan has %d arguments", i, len(o.args))
		}
		for k, a := range o.args {
			m, v := a.arg()
			modes |= m << (2 * k)
			vals[k] = v
		}
		out = append(out, o.code, o.keep, o.dst, 0)
		for _, v := range []uint32{uint32(o.label), modes, o.target} {
			out = le.AppendUint32(out, v)
		}
		for _, v := range vals {
			out = le.AppendUint64(out, uint64(v))
		}
	}
	out = append(out, p.data...)
	return append(out, make([]byte, 8)...), nil
}
