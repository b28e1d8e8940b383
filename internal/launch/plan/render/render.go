// Package render writes compiled plans as text, for golden files and for who
// wants to read what a start does.
package render

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/elastic/go-seccomp-bpf/arch"
)

// Offsets and sizes of a compiled plan, as launch.c has them.
const (
	opsAt  = 32
	opSize = 64
)

// Plan returns a plan that was compiled for this kind of machine, one operation
// a line.
func Plan(b []byte) (string, error) {
	machine, err := arch.GetInfo("")
	if err != nil {
		return "", err
	}
	r := renderer{b: b, data: b[binary.LittleEndian.Uint32(b[12:]):], calls: machine.SyscallNumbers}
	for i := range binary.LittleEndian.Uint32(b[8:]) {
		fmt.Fprintf(&r.out, "%4d ", i)
		r.op(b[opsAt+opSize*i:])
	}
	return r.out.String(), nil
}

type renderer struct {
	b, data []byte
	calls   map[int]string
	out     strings.Builder
}

// text is the text that begins at an address of the data.
func (r *renderer) text(at uint32) string {
	s, _, _ := strings.Cut(string(r.data[at:]), "\x00")
	return s
}

func (r *renderer) op(o []byte) {
	le := binary.LittleEndian
	code, keep, dst, modes, target := o[0], o[1], o[2], le.Uint32(o[8:]), le.Uint32(o[12:])
	name := []string{"", "sys", "set", "jeq", "jne", "jlt", "load", "store32", "store64", "text", "diff", "spawn", "fail", "check", "end"}[code]
	switch name {
	case "sys":
		name = r.calls[int(target)]
		if keep == 1 {
			name += "?"
		}
	case "jeq", "jne", "jlt", "spawn":
		name += fmt.Sprintf(" ->%d", target)
	}
	if dst != 0 {
		fmt.Fprintf(&r.out, "r%d = ", dst)
	}
	r.out.WriteString(name)
	last := 5
	for ; last >= 0 && le.Uint64(o[16+8*last:]) == 0 && modes>>(2*last)&3 == 0; last-- {
	}
	for k := range last + 1 {
		r.argument(modes>>(2*k)&3, int64(le.Uint64(o[16+8*k:])))
	}
	if at := le.Uint32(o[4:]); at != 0 && r.text(at) != "" {
		fmt.Fprintf(&r.out, "  ; %s", r.text(at))
	}
	r.out.WriteByte('\n')
}

// plain are the characters that a text which is shown is made of.
const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+ \n:=%#"

func (r *renderer) argument(mode uint32, v int64) {
	switch mode {
	case 0:
		fmt.Fprintf(&r.out, " %d", v)
	case 1:
		fmt.Fprintf(&r.out, " r%d", v)
	default:
		if s := r.text(uint32(v)); s != "" && strings.Trim(s, plain) == "" {
			fmt.Fprintf(&r.out, " %q", s)
			return
		}
		fmt.Fprintf(&r.out, " @%d", v)
	}
}
