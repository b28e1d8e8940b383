package uml

import (
	"encoding/binary"
	"errors"
	"flag"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/elastic/go-seccomp-bpf/arch"

	"lodge/internal/base/cgroup"
	"lodge/internal/base/errs"
	"lodge/internal/engine"
	"lodge/internal/launch/plan/render"
	"lodge/internal/model"
	"lodge/internal/model/guest"
)

var update = flag.Bool("update", false, "write the golden files anew")

func example() (guest.Guest, engine.Parts) {
	g := guest.Guest{Meta: model.Meta{ID: "abcdefghijkmnpqr", Name: "web1"}}
	g.Spec = guest.Spec{Memory: 512 << 20, CPUs: 2, Env: map[string]string{"B": "2", "A": "1"}, UserData: "#cloud-config\n"}
	return g, engine.Parts{Dir: "/d", Cgroup: "web1", IDBase: 1_000_065_536, Domain: "lodge.internal", Root: engine.Root{Base: "/image", Volume: "/pool/web1/root.ext4"},
		DNS:    []netip.Addr{netip.MustParseAddr("10.67.0.1")},
		Kernel: engine.Kernel{Name: "um/x", Path: "/k/kernel", Initrd: "/k/initrd", Modules: "/k/modules", Support: []string{"/k/s/ld-linux-x86-64.so.2", "/k/s/libc.so.6"}},
		Disks:  []engine.Disk{{Name: "data", Path: "/pool/web1/data", Format: "raw"}, {Name: "cd", Path: "/iso", Optical: true}},
		NICs: []engine.NIC{{Name: "eth0", MAC: "02:00:00:00:00:0A", Device: "lg1n0", Master: "lodge0", MTU: 1500, IPv4: netip.MustParsePrefix("10.67.0.5/16"),
			Gateway4: netip.MustParseAddr("10.67.0.1")}}}
}

// TestGolden shows everything of a start, so that a change of it is seen by
// whoever reviews it.
func TestGolden(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("the golden file is of amd64")
	}
	g, parts := example()
	e := New(Options{Launch: "/launch", Door: "/door", Tree: &cgroup.Tree{}})
	j, err := e.jail(g, parts)
	must(t, err)
	p, err := j.Program()
	must(t, err)
	text, err := render.Plan(p.Input)
	must(t, err)
	is := strings.Join(j.Argv, "\n") + "\n\n" + text
	const path = "testdata/start.golden"
	if *update {
		must(t, os.WriteFile(path, []byte(is), 0o644))
	}
	want, err := os.ReadFile(path)
	must(t, err)
	if is != string(want) {
		t.Errorf("%s is not what it was; if that is meant: go test -run TestGolden -update\n%s", path, is)
	}
}

func TestRefused(t *testing.T) {
	e := New(Options{Launch: "/launch", Door: "/door", Tree: &cgroup.Tree{}})
	for want, change := range map[string]func(p *engine.Parts){
		"cannot boot a disk of its own": func(p *engine.Parts) { p.Root.Own = &engine.Disk{} },
		"no user ids":                   func(p *engine.Parts) { p.IDBase = 0 },
		"has no disks":                  func(p *engine.Parts) { p.Root.Volume = "" },
		"there is no kernel":            func(p *engine.Parts) { p.Kernel = engine.Kernel{} },
		"no memory image":               func(p *engine.Parts) { p.Memory = "/m" },
		"13 further disks are too many": func(p *engine.Parts) { p.Disks = make([]engine.Disk, 13) },
		"disk a is of format qcow2":     func(p *engine.Parts) { p.Disks = []engine.Disk{{Name: "a", Path: "/a", Format: "qcow2"}} },
		`"../a" cannot be the name`:     func(p *engine.Parts) { p.Disks = []engine.Disk{{Name: "../a", Path: "/a"}} },
		`"a,b" cannot be the name`:      func(p *engine.Parts) { p.Disks = []engine.Disk{{Name: "a,b", Path: "/a"}} },
	} {
		g, parts := example()
		change(&parts)
		if _, err := e.Program(g, parts); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// TestRulesExist checks that no name is misspelt, which would refuse nothing.
func TestRulesExist(t *testing.T) {
	for _, r := range rules() {
		for _, n := range r.Calls {
			_, known := arch.X86_64.SyscallNames[n]
			_, old := arch.I386.SyscallNames[n]
			if !known && !old {
				t.Errorf("no machine has a call named %s", n)
			}
		}
	}
	if f, err := New(Options{}).filter(); err != nil || len(f) == 0 {
		t.Errorf("%d bytes of filter, %v", len(f), err)
	}
}

func TestRead(t *testing.T) {
	const boot = "Checking that seccomp filters can be installed...OK\nLinux version 7.2.7 (x@y) (gcc)\nKernel panic - not syncing: VFS: Unable to mount root fs"
	for _, c := range []struct {
		settings, said string
		want           fact
	}{
		{"# CONFIG_SMP is not set\n", boot, fact{version: "7.2.7", seccomp: true}},
		{"CONFIG_X=y\nCONFIG_SMP=y\n", strings.ReplaceAll(boot, "...OK", "...failed"), fact{version: "7.2.7", smp: true}},
		{"", "", fact{}},
	} {
		if is := read(c.settings, c.said); is != c.want {
			t.Errorf("%+v, want %+v", is, c.want)
		}
	}
}

// part is a part of an answer as the kernel's console gives it.
func part(failed, more uint32, text string) []byte {
	b := binary.LittleEndian.AppendUint32(nil, failed)
	b = binary.LittleEndian.AppendUint32(b, more)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(text)))
	return append(b, text...)
}

// answer plays parts to hear.
func answer(parts ...[]byte) func(b []byte) (int, error) {
	return func(b []byte) (int, error) {
		if len(parts) == 0 {
			return 0, errors.New("nothing more")
		}
		n := copy(b, parts[0])
		parts = parts[1:]
		return n, nil
	}
}

func TestHear(t *testing.T) {
	soon := time.Now().Add(time.Hour)
	if text, err := hear(answer(part(0, 1, "one "), part(0, 0, "two\x00")), soon); err != nil || text != "one two" {
		t.Errorf("%q, %v", text, err)
	}
	if _, err := hear(answer(part(1, 0, "Device is currently open")), soon); !errs.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "currently open") {
		t.Errorf("a refusal: %v", err)
	}
	if _, err := hear(answer([]byte("short")), soon); err == nil {
		t.Error("half a head was taken")
	}
	endless := func(b []byte) (int, error) { return copy(b, part(0, 1, strings.Repeat("x", 400))), nil }
	if text, err := hear(endless, soon); err == nil || len(text) > replyMost+consoleMost {
		t.Errorf("a kernel that never ends was heard for %d bytes, %v", len(text), err)
	}
	if _, err := hear(endless, time.Now()); err == nil {
		t.Error("a kernel that never ends was heard for ever")
	}
}

// FuzzConsolePart holds the reader of a kernel's answers to its bounds, whatever
// a guest sends.
func FuzzConsolePart(f *testing.F) {
	f.Add(part(0, 1, "text"))
	f.Add(part(1, 0, ""))
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 'x'})
	f.Fuzz(func(t *testing.T, b []byte) {
		text, _, _, err := consolePart(b)
		if err == nil && len(text) > len(b)-consoleHead {
			t.Fatalf("%d bytes of text in %d", len(text), len(b))
		}
	})
}

func TestRequest(t *testing.T) {
	b := consoleRequest("version")
	if len(b) != 524 || string(b[12:19]) != "version" || !slices.Equal(b[:12], []byte{0xbe, 0xba, 0xfe, 0xca, 2, 0, 0, 0, 7, 0, 0, 0}) {
		t.Errorf("% x", b[:24])
	}
}

func TestTraffic(t *testing.T) {
	const text = "Inter-|   Receive |  Transmit\n face |bytes packets\n lg1n0: 100 2 0 0 0 0 0 0 700 8 0 0 0 0 0 0\n lg1n01: 9 9 0 0 0 0 0 0 9 9\n broken: x\n"
	var u guest.Usage
	addTraffic(&u, text, "lg1n0")
	if u.TxBytes != 100 || u.TxPackets != 2 || u.RxBytes != 700 || u.RxPackets != 8 {
		t.Errorf("%+v", u)
	}
}

func TestDescriptors(t *testing.T) {
	g, parts := example()
	e := New(Options{Launch: "/launch", Door: "/door", Tree: &cgroup.Tree{}})
	j, err := e.jail(g, parts)
	must(t, err)
	for i, fd := range doors() {
		if is := j.Descriptor(spareFile + i); is != fd {
			t.Errorf("door %d is descriptor %d, not %d", i, is, fd)
		}
	}
}

// TestYield ends a squeeze when nothing was gained for a while, not before, and
// counts what the guest takes back meanwhile as no gain.
func TestYield(t *testing.T) {
	y := yield{least: 1000}
	size := int64(1000)
	for range 3 {
		for range slimVain - 1 {
			if !y.goesOn(size + 8) {
				t.Fatalf("it ends at %+v", y)
			}
		}
		if size -= 8; !y.goesOn(size) {
			t.Fatalf("it ends though something was gained: %+v", y)
		}
	}
	for range slimVain - 1 {
		y.goesOn(size)
	}
	if y.goesOn(size) {
		t.Errorf("it goes on: %+v", y)
	}
}
