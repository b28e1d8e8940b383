package qemu

import (
	"bytes"
	"fmt"
	"image/png"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lodge/internal/base/errs"
	"lodge/internal/base/session"
	"lodge/internal/engine"
	"lodge/internal/engine/enginetest"
	"lodge/internal/keeper"
	"lodge/internal/model/guest"
	"lodge/internal/model/image"
	"lodge/test/sandbox"
)

// bootSector is an operating system of 512 bytes: it says a word on the screen,
// which the firmware shows on the serial port too, and halts.
func bootSector(word string) []byte {
	code := []byte{
		0x31, 0xc0, // xor ax, ax
		0x8e, 0xd8, // mov ds, ax
		0xbe, 0x15, 0x7c, // mov si, word
		0xac,       // next: lodsb
		0x84, 0xc0, // test al, al
		0x74, 0x06, // jz halt
		0xb4, 0x0e, // mov ah, 14
		0xcd, 0x10, // int 0x10
		0xeb, 0xf5, // jmp next
		0xf4,       // halt: hlt
		0xeb, 0xfd, // jmp halt
	}
	sector := make([]byte, 1<<20)
	copy(sector, append(code, word...))
	sector[510], sector[511] = 0x55, 0xaa
	return sector
}

// kept is a guest that a keeper runs.
type kept struct {
	t     testing.TB
	g     guest.Guest
	parts engine.Parts
	held  keeper.Held
	m     *Machine
}

// start starts a guest, which ends with the test at the latest.
func (r *rig) start(t testing.TB, k keeper.Keepers, g guest.Guest, p engine.Parts) *kept {
	t.Helper()
	program, err := r.engine.Program(g, p)
	if err != nil {
		t.Fatal(err)
	}
	held, err := k.Start(t.Context(), g.ID, program)
	if err != nil {
		t.Fatal(err)
	}
	x := &kept{t: t, g: g, parts: p, held: held}
	t.Cleanup(x.end)
	t.Cleanup(func() { k.Forget(t.Context(), g.ID) })
	m, err := r.engine.Connect(t.Context(), g, p, held)
	if err != nil {
		t.Fatal(err)
	}
	x.m = m.(*Machine)
	return x
}

func (x *kept) end() {
	if x.m == nil {
		return
	}
	if err := x.m.Kill(x.t.Context()); err != nil {
		x.t.Error(err)
	}
	select {
	case <-x.m.link.life.Done():
	case <-time.After(time.Minute):
		x.t.Error("it does not end")
	}
}

// says waits for a text on the console.
func (x *kept) says(text string) {
	x.t.Helper()
	var log []byte
	for end := time.Now().Add(90 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if log, _ = os.ReadFile(engine.ConsoleLog(x.parts.Dir)); strings.Contains(string(log), text) {
			return
		}
		if x.held.State().Exit != nil {
			break
		}
	}
	x.t.Fatalf("it never said %q but %q; its end: %+v", text, log, x.held.State().Exit)
}

// ownDisk makes a guest one that boots a disk with this content.
func (r *rig) ownDisk(t *testing.T, content []byte, spec guest.Spec, os image.Info) (guest.Guest, engine.Parts) {
	t.Helper()
	g, p := r.guest(t, spec)
	disk := filepath.Join(t.TempDir(), "disk.raw")
	write(t, disk, content)
	p.Image, p.Kernel = os, engine.Kernel{}
	p.Root = engine.Root{Writable: p.Root.Writable, Own: &engine.Disk{Name: "root", Path: disk, Format: "raw"}}
	return g, p
}

func write(t testing.TB, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestDiskOfAnUnknownSystem(t *testing.T) {
	r := newRig(t)
	k, _ := enginetest.Keeper(t)
	for name, os := range map[string]image.Info{"what PCs had": {Disk: "raw"}, "virtio": {Disk: "raw", OS: "debian"}} {
		t.Run(name, func(t *testing.T) {
			g, p := r.ownDisk(t, bootSector("the disk boots"), guest.Spec{Memory: 64 << 20}, os)
			x := r.start(t, k, g, p)
			x.says("the disk boots")
			if probe, err := x.m.Probe(t.Context()); err != nil || !probe.Ready || probe.Paused || probe.Trouble != "" {
				t.Errorf("%+v, %v", probe, err)
			}
			if _, err := x.m.Exec(t.Context(), session.Request{Argv: []string{"true"}}); !errs.Is(err, errs.Unsupported) && !errs.Is(err, errs.Busy) {
				t.Errorf("exec without an agent: %v", err)
			}
			if err := x.m.Shutdown(t.Context()); err != nil && !errs.Is(err, errs.Busy) { // which it does not know how to
				t.Error(err)
			}
			if err := x.m.Pause(t.Context()); err != nil {
				t.Fatal(err)
			}
			if probe, err := x.m.Probe(t.Context()); err != nil || !probe.Paused {
				t.Errorf("%+v, %v", probe, err)
			}
			x.picture()
		})
	}
}

// picture checks that the screen shows something.
func (x *kept) picture() {
	x.t.Helper()
	var b bytes.Buffer
	if err := x.m.Screenshot(x.t.Context(), &b); err != nil {
		x.t.Fatal(err)
	}
	p, err := png.Decode(&b)
	if err != nil {
		x.t.Fatal(err)
	}
	lit := 0
	for y := range p.Bounds().Dy() {
		for i := range p.Bounds().Dx() {
			if red, _, _, _ := p.At(i, y).RGBA(); red > 0x8000 {
				lit++
			}
		}
	}
	if lit < 100 {
		x.t.Errorf("of %v only %d pixels are lit", p.Bounds(), lit)
	}
}

// TestBootOrder: firmware tries what has an order before the guest's own disk.
// What it said when it found it there is not told of the next run.
func TestBootOrder(t *testing.T) {
	r := newRig(t)
	k, _ := enginetest.Keeper(t)
	g, p := r.ownDisk(t, bootSector("the own disk boots"), guest.Spec{Memory: 64 << 20}, image.Info{Disk: "raw", OS: "debian"})
	other := filepath.Join(t.TempDir(), "other.raw")
	write(t, other, bootSector("the other disk boots"))
	p.Disks = []engine.Disk{{Name: "other", Path: other, Format: "raw", Boot: 1}}
	x := r.start(t, k, g, p)
	x.says("the other disk boots")
	x.end()
	if err := k.Forget(t.Context(), g.ID); err != nil {
		t.Fatal(err)
	}
	p.Disks = nil
	r.start(t, k, g, p).says("the own disk boots")
	if last := engine.LastLines(p); !strings.Contains(last, "own disk") || strings.Contains(last, "other disk") {
		t.Errorf("the second run is said to have said %q", last)
	}
}

// TestUEFI boots the firmware's own shell, with a security module beside it,
// and finds what both keep.
func TestUEFI(t *testing.T) {
	if os.Getenv("LODGE_TEST_LONG") == "" {
		t.Skip("firmware takes most of a minute to find nothing to boot: set LODGE_TEST_LONG=1")
	}
	r := newRig(t)
	i, err := r.engine.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(i.Machines[0].Firmware) < 2 || !i.Machines[0].TPM {
		sandbox.Missing(t, fmt.Sprintf("OVMF or swtpm is not installed: %+v", i.Machines))
	}
	k, _ := enginetest.Keeper(t)
	g, p := r.ownDisk(t, make([]byte, 1<<20), guest.Spec{Memory: 256 << 20, Hardware: guest.Hardware{Firmware: "uefi", TPM: true}}, image.Info{Disk: "raw", OS: "debian"})
	x := r.start(t, k, g, p)
	x.says("Shell>")
	for _, kept := range []string{"uefi.vars", "tpm/tpm2-00.permall"} {
		if info, err := os.Stat(filepath.Join(p.Root.Writable, kept)); err != nil || info.Size() == 0 {
			t.Errorf("%s: %v", kept, err)
		}
	}
	if err := x.m.SendKeys(t.Context(), []string{"ret"}); err != nil {
		t.Error(err)
	}
	x.picture()
}
