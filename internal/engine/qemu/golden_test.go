package qemu

import (
	"flag"
	"os"
	"strings"
	"testing"

	"lodge/internal/base/errs"
	"lodge/internal/engine"
	"lodge/internal/model"
	"lodge/internal/model/guest"
	"lodge/internal/model/image"
)

var update = flag.Bool("update", false, "write the golden files anew")

// some is a host with everything.
var some = host{Version: "7.2.22", Machine: "pc-q35-7.2", CPUs: 4, Slow: []string{"erms", "fsrm"}, TSC: 2_100_000, Firmware: firmware{
	"bios": {}, "uefi": {"/ovmf/code", "/ovmf/vars"}, "uefi-secure": {"/ovmf/code.secboot", "/ovmf/vars.ms"}}}

func web1() (guest.Guest, engine.Parts) {
	g := guest.Guest{Meta: model.Meta{ID: "abcdefghijkmnpqr", Name: "web1"}, Spec: guest.Spec{CPUs: 1.5, Memory: 256 << 20}}
	p := engine.Parts{Root: engine.Root{Base: "/images/base.erofs", Volume: "/pool/root.ext4"},
		Kernel: engine.Kernel{Path: "/kernels/vmlinuz", Initrd: "/kernels/initrd", Modules: "/kernels/modules.erofs"},
		NICs:   []engine.NIC{{Name: "eth0", MAC: "02:00:00:00:00:01", Device: "lg1n0", Master: "lodge0", MTU: 1450}},
		Disks:  []engine.Disk{{Name: "data", Path: "/pool/data", Format: "raw"}}}
	return g, p
}

// command is the command line of a guest, one option a line, with the places
// of descriptors numbered as they are asked for.
func command(t *testing.T, g guest.Guest, p engine.Parts, h host, at places) string {
	t.Helper()
	w, err := design(g, p, h)
	if err != nil {
		t.Fatal(err)
	}
	return lineFor(w, g, at)
}

func lineFor(w hardware, g guest.Guest, at places) string {
	at.name, at.id, at.kernel, at.code = g.Name, g.ID, kernelInside, "/code"
	known := map[string]int{}
	at.fd = func(name string) int {
		if known[name] == 0 {
			known[name] = 3 + len(known)
		}
		return known[name]
	}
	return strings.ReplaceAll(strings.Join(w.arguments(at), " "), " -", "\n-") + "\n"
}

// TestCommandLine shows what QEMU is started with, so that a change is seen by
// whoever reviews it.
func TestCommandLine(t *testing.T) {
	own := func(os string, d engine.Disk) func(*guest.Guest, *engine.Parts, *host) {
		return func(_ *guest.Guest, p *engine.Parts, _ *host) {
			p.Image, p.Root, p.Kernel = image.Info{Disk: d.Format, OS: os}, engine.Root{Own: &d}, engine.Kernel{}
		}
	}
	for name, change := range map[string]func(*guest.Guest, *engine.Parts, *host){
		"root-tree": func(*guest.Guest, *engine.Parts, *host) {},
		"microvm":   func(g *guest.Guest, _ *engine.Parts, _ *host) { g.Spec.Hardware.Machine = "microvm" },
		"kvm":       func(_ *guest.Guest, _ *engine.Parts, h *host) { h.KVM = true },
		"disk":      own("debian", engine.Disk{Path: "/pool/disk", Format: "qcow2"}),
		"unknown-os": func(g *guest.Guest, p *engine.Parts, h *host) {
			own("", engine.Disk{Path: "/pool/disk", Format: "raw"})(g, p, h)
			p.Disks = append(p.Disks, engine.Disk{Name: "installer", Path: "/iso/a,b.iso", Format: "raw", Optical: true, Boot: 1})
		},
		"overlay": func(g *guest.Guest, p *engine.Parts, h *host) {
			own("", engine.Disk{Path: "/pool/disk", Format: "qcow2"})(g, p, h)
			p.Root.Base = "/images/base.qcow2"
		},
		"seed": func(g *guest.Guest, p *engine.Parts, h *host) {
			own("", engine.Disk{Path: "/pool/disk", Format: "qcow2"})(g, p, h)
			g.Spec.UserData = "#cloud-config"
		},
		"uefi-secure": func(g *guest.Guest, p *engine.Parts, h *host) {
			own("debian", engine.Disk{Path: "/pool/disk", Format: "qcow2"})(g, p, h)
			g.Spec.Hardware.Firmware, g.Spec.Memory = "uefi-secure", 2<<30
		},
	} {
		t.Run(name, func(t *testing.T) {
			g, p := web1()
			h := some
			change(&g, &p, &h)
			golden(t, name, command(t, g, p, h, places{}))
		})
	}
	t.Run("resumed", func(t *testing.T) {
		g, p := web1()
		w, err := design(g, p, some)
		if err != nil {
			t.Fatal(err)
		}
		w.Plugged = []plug{{ID: "cpu2", Driver: "max-x86_64-cpu", Socket: 2}, {ID: "dimm1", Size: 128 << 20}}
		w.Private, w.Bare = true, true
		golden(t, "resumed", lineFor(w, g, places{moving: true}))
	})
}

func golden(t *testing.T, name, is string) {
	t.Helper()
	path := "testdata/" + name + ".golden"
	if *update {
		if err := os.WriteFile(path, []byte(is), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if is != string(want) {
		t.Errorf("%s is not what it was; if that is meant: go test -run TestCommandLine -update\n%s", path, is)
	}
}

func TestWishesThatCannotBe(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*guest.Guest, *engine.Parts, *host)
		field  string
	}{
		"a machine of another world": {func(g *guest.Guest, _ *engine.Parts, _ *host) { g.Spec.Hardware.Machine = "vax" }, "machine"},
		"a disk in a microvm": {func(g *guest.Guest, p *engine.Parts, _ *host) {
			g.Spec.Hardware.Machine, p.Root = "microvm", engine.Root{Own: &engine.Disk{Format: "raw"}}
		}, "machine"},
		"firmware for a kernel": {func(g *guest.Guest, _ *engine.Parts, _ *host) { g.Spec.Hardware.Firmware = "uefi" }, "firmware"},
		"firmware that is not here": {func(g *guest.Guest, p *engine.Parts, h *host) {
			g.Spec.Hardware.Firmware, p.Root, h.Firmware = "uefi", engine.Root{Own: &engine.Disk{Format: "raw"}}, firmware{"bios": {}}
		}, "firmware"},
		"an option in disguise": {func(g *guest.Guest, _ *engine.Parts, _ *host) { g.Spec.Hardware.CPUModel = "max,migratable=off" }, "cpu_model"},
	} {
		t.Run(name, func(t *testing.T) {
			g, p := web1()
			h := some
			c.change(&g, &p, &h)
			_, err := design(g, p, h)
			known, ok := err.(*errs.Error)
			if !ok || known.Field != c.field || known.Hint == "" {
				t.Errorf("%+v", err)
			}
		})
	}
}

func TestWhatQEMUSays(t *testing.T) {
	for text, want := range map[string]string{
		"QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright": "7.2.22 pc-q35-7.2",
		"QEMU emulator version 10.0.2\n":                                         "10.0.2 pc-q35-10.0",
		"QEMU emulator version 5.2.0 (Debian)":                                   "5.2.0 ",
		"bash: no such thing":                                                    " ",
	} {
		v, m, err := parseVersion([]byte(text))
		if v+" "+m != want || (m == "") != (err != nil) {
			t.Errorf("%q: %q %q %v", text, v, m, err)
		}
	}
	libs := parseLibraries([]byte("\tlinux-vdso.so.1 (0x00007f)\n\tlibz.so.1 => /lib/libz.so.1 (0x00)\n\tlibgone.so => not found\n\t/lib64/ld.so.2 (0x0)\n"))
	if strings.Join(libs, " ") != "/lib/libz.so.1 /lib64/ld.so.2" {
		t.Errorf("%q", libs)
	}
	old := parseModels([]byte("Available CPUs:\nx86 486      (alias)\nx86 Denverton-v1 Intel\nx86 max   Enables all\n\nRecognized CPUID flags:\n  3dnow\n"))
	now := parseModels([]byte("Available CPUs:\n  486\n  Denverton-v1\n  max    Enables all\n\nRecognized CPUID flags:\n  3dnow\n"))
	if strings.Join(old, " ") != "486 max" || strings.Join(now, " ") != "486 max" {
		t.Errorf("%q %q", old, now)
	}
}

func TestHowFastTheHostCounts(t *testing.T) {
	for text, want := range map[string]uint64{
		"processor\t: 0\ncpu MHz\t\t: 2100.004\nflags\t\t: fpu constant_tsc hypervisor\n\nprocessor\t: 1\ncpu MHz\t\t: 800.000\n": 2_100_004,
		"cpu MHz\t\t: 2100.000\nflags\t\t: fpu constant_tsc\n":                                                                    0, // it changes with the load
		"cpu MHz\t\t: 2100.000\nflags\t\t: fpu hypervisor\n":                                                                      0,
		"cpu MHz\t\t: x\nflags\t\t: constant_tsc hypervisor\n":                                                                    0,
		"": 0,
	} {
		if got := tscShown(text); got != want {
			t.Errorf("%q: %d", text, got)
		}
	}
	if tscWords(0) != "" {
		t.Error("a kernel is told what nobody knows")
	}
}
