package qemu

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"lodge/internal/base/zram"
	"lodge/internal/engine/enginetest"
	"lodge/internal/launch"
	"lodge/internal/model/guest"
)

func TestWhenItIsIdle(t *testing.T) {
	const mib = 1 << 20
	var r idleness
	for i, step := range []struct {
		cpu    float64
		memory uint64
		out    bool
		then   uint64 // what it has once it was paged out
	}{
		{cpu: 20, memory: 600 * mib}, // it booted
		{cpu: 20.3, memory: 600 * mib},
		{cpu: 20.6, memory: 600 * mib},
		{cpu: 22, memory: 600 * mib}, // it did something
		{cpu: 22.3, memory: 600 * mib},
		{cpu: 22.6, memory: 600 * mib},
		{cpu: 22.9, memory: 600 * mib, out: true, then: 40 * mib},
		{cpu: 23.1, memory: 45 * mib},
		{cpu: 23.3, memory: 50 * mib},
		{cpu: 23.5, memory: 55 * mib}, // it is not worth it
		{cpu: 25, memory: 80 * mib},
		{cpu: 25.1, memory: 80 * mib},
		{cpu: 25.2, memory: 80 * mib},
		{cpu: 25.3, memory: 80 * mib, out: true, then: 45 * mib},
		{cpu: 25.4, memory: 45 * mib},
	} {
		if is := r.tick(step.cpu, step.memory); is != step.out {
			t.Errorf("step %d: it is paged out: %v", i, is)
		}
		if step.out {
			r.pagedOut(step.then)
		}
	}
}

func TestMappings(t *testing.T) {
	for _, step := range []struct {
		line             string
		writable, shares bool
	}{
		{"7f24fbfff000-7f250bfff000 rw-s 00000000 00:01 45986                      /memfd:ram (deleted)", true, false},
		{"7f24fbfff000-7f250bfff000 rw-s 00000000 00:3c 2                          /ram", true, false},
		{"7f24fbfff000-7f250bfff000 rw-p 00000000 00:2b 290                        /pool/a b/ram", true, true},
		{"7f0000000000-7f0018000000 rwxp 00000000 00:00 0 ", true, false},
		{"559150bc1000-559150bc2000 rw-p 00001000 fe:00 1234                       /usr/bin/qemu-system-x86_64", true, true},
		{"559150bc0000-559150bc1000 r-xp 00001000 fe:00 1234                       /usr/bin/qemu-system-x86_64", false, true},
		{"7f250bfff000-7f250c000000 rw-s 00000000 00:0e 12                         /dev/shm/x", false, true},
	} {
		a, err := parseMapping(step.line)
		if err != nil || a.writable() != step.writable || a.shares() != step.shares {
			t.Errorf("%q is %+v, %v: writable %v, shares %v", step.line, a, err, a.writable(), a.shares())
		}
	}
	if _, err := parseMapping("what is this"); err == nil {
		t.Error("nonsense was read")
	}
}

// TestPagedOut: what an idle guest does not use is compressed by the host's
// kernel, those that came up from one memory leave that alone, and it answers.
func TestPagedOut(t *testing.T) {
	swap, err := zram.Open(512 << 20)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		swap.Close()
		if err := zram.Remove(); err != nil {
			t.Error(err)
		}
	})
	r := newRig(t)
	k, _ := enginetest.Keeper(t)
	g, p := r.guest(t, guest.Spec{})
	first := r.start(t, k, g, p)
	first.ready()
	first.shell("echo what it knows >/run/known; sync")
	if launch.HugeFiles() && !strings.Contains(hugePages(t, first.held.State().Pid), "/"+ramName) {
		t.Error("its memory has no huge pages")
	}
	pagedOut(t, first)
	if err := first.m.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := first.m.Save(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	first.end()
	g, p = r.copy(t, g, p)
	p.Memory = dir
	second := r.start(t, k, g, p)
	if err := second.m.Renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	second.shell("head -c 8000000 /dev/urandom >/run/new")
	pagedOut(t, second)
}

// pagedOut pages a guest out and checks that it still knows what it knew.
func pagedOut(t *testing.T, x *kept) {
	t.Helper()
	pid := x.held.State().Pid
	before, _ := memoryOf(t, pid)
	if err := pageOut(t.Context(), x.held.Pidfd(), pid); err != nil {
		t.Fatal(err)
	}
	after, swapped := memoryOf(t, pid)
	t.Logf("it had %d MiB; %d are left, and %d are compressed", before>>10, after>>10, swapped>>10)
	if after > before/2 || swapped < before/3 {
		t.Errorf("of %d KiB %d are left, and %d swapped out", before, after, swapped)
	}
	if known := x.shell("cat /run/known"); known != "what it knows" {
		t.Errorf("it now knows %q", known)
	}
}

// hugePages lists the mappings of a process that have some, by name.
func hugePages(t *testing.T, pid int) (names string) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		t.Fatal(err)
	}
	name := ""
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		switch {
		case strings.Contains(f[0], "-"): // addresses
			name = f[len(f)-1]
		case f[0] == "ShmemPmdMapped:" && f[1] != "0":
			names += name + "\n"
		}
	}
	return names
}

// memoryOf is the KiB of a process that are its own, and those swapped out.
func memoryOf(t *testing.T, pid int) (here, swapped uint64) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var n uint64
		name, value, _ := strings.Cut(line, ":")
		_, _ = fmt.Sscan(value, &n)
		switch name {
		case "RssAnon", "RssShmem":
			here += n
		case "VmSwap":
			swapped = n
		}
	}
	return here, swapped
}
