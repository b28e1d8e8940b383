package oslevel

import (
	"bytes"
	"encoding/binary"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/elastic/go-seccomp-bpf/arch"

	"lodge/internal/base/cgroup"
	"lodge/internal/engine"
	"lodge/internal/model"
	"lodge/internal/model/guest"
)

var update = flag.Bool("update", false, "write the golden files anew")

// render writes a compiled plan as text, one operation a line.
func render(t *testing.T, b []byte) string {
	t.Helper()
	le := binary.LittleEndian
	nops, dataAt := le.Uint32(b[8:]), le.Uint32(b[12:])
	data := b[dataAt:]
	text := func(at uint32) string {
		s, _, _ := strings.Cut(string(data[at:]), "\x00")
		return s
	}
	names := []string{"", "sys", "set", "jeq", "jne", "jlt", "load", "store32", "store64", "text", "diff", "spawn", "fail", "check", "end"}
	var out strings.Builder
	for i := range nops {
		o := b[32+64*i:]
		code, keep, dst, modes, target := o[0], o[1], o[2], le.Uint32(o[8:]), le.Uint32(o[12:])
		fmt.Fprintf(&out, "%4d ", i)
		name := names[code]
		switch name {
		case "sys":
			name = arch.X86_64.SyscallNumbers[int(target)]
			if keep == 1 {
				name += "?"
			}
		case "jeq", "jne", "jlt", "spawn":
			name += fmt.Sprintf(" ->%d", target)
		}
		if dst != 0 {
			fmt.Fprintf(&out, "r%d = ", dst)
		}
		out.WriteString(name)
		last := 5
		for ; last >= 0 && le.Uint64(o[16+8*last:]) == 0 && modes>>(2*last)&3 == 0; last-- {
		}
		for k := range last + 1 {
			v := int64(le.Uint64(o[16+8*k:]))
			switch modes >> (2 * k) & 3 {
			case 0:
				fmt.Fprintf(&out, " %d", v)
			case 1:
				fmt.Fprintf(&out, " r%d", v)
			default:
				if s := text(uint32(v)); s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+ \n:=%#") == "" {
					fmt.Fprintf(&out, " %q", s)
				} else {
					fmt.Fprintf(&out, " @%d", v)
				}
			}
		}
		if what := text(le.Uint32(o[4:])); le.Uint32(o[4:]) != 0 {
			fmt.Fprintf(&out, "  ; %s", what)
		}
		out.WriteByte('\n')
	}
	return out.String()
}

// TestGolden shows every system call of a start and of an exec, so that a
// change of one is seen by whoever reviews it.
func TestGolden(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("the golden files are of amd64")
	}
	g := guest.Guest{Meta: model.Meta{ID: "abcdefghijkmnpqr", Name: "web1"}}
	g.Spec = guest.Spec{Memory: 512 << 20, Env: map[string]string{"B": "2", "A": "1"}, UserData: "#cloud-config\n"}
	p := engine.Parts{Dir: "/d", Root: engine.Root{Lower: "/l", Writable: "/w", Used: []string{"/used"}, Limit: "/limit"}, Cgroup: "web1", IDBase: 1_000_065_536, Domain: "lodge.internal",
		DNS: []netip.Addr{netip.MustParseAddr("10.67.0.1")},
		NICs: []engine.NIC{{Name: "eth0", MAC: "02:00:00:00:00:01", Device: "lg1n0", Master: "lodge0", MTU: 1500, IPv4: netip.MustParsePrefix("10.67.0.5/16"),
			IPv6: netip.MustParsePrefix("fd67::5/64"), Gateway4: netip.MustParseAddr("10.67.0.1"), Gateway6: netip.MustParseAddr("fd67::1")}}}
	e := New(Options{Launch: "/launch"})
	join := cgroup.JoinPaths{Dir: "/v2/web1", Tasks: []string{"/v1/memory/web1/tasks"}, Delegate: []string{"/v2/web1"}}
	start, err := e.compileStart(g, p, join)
	if err != nil {
		t.Fatal(err)
	}
	bpf, err := e.filter()
	if err != nil {
		t.Fatal(err)
	}
	x := entry{argv: []string{"ls", "-l"}, env: environment(g), dir: "/home/ann", who: account{uid: 1000, gid: 1000, groups: []uint32{1000, 29}}, tty: true, rows: 24, cols: 80, ask: true}
	enter, err := x.compile(join, bpf)
	if err != nil {
		t.Fatal(err)
	}
	for name, plan := range map[string][]byte{"start": start, "exec": enter} {
		path, is := "testdata/"+name+".golden", []byte(render(t, plan))
		if *update {
			if err := os.WriteFile(path, is, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(is, want) {
			t.Errorf("%s is not what it was; if that is meant: go test -run TestGolden -update\n%s", path, is)
		}
	}
}
