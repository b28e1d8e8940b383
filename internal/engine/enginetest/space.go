package enginetest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"lodge/internal/model/guest"
)

// hostFull fills what a guest's disk lies on. The guest waits with what it writes,
// which is told, also to the next daemon, and goes on when there is space.
func hostFull(t *testing.T, h *suite) {
	g, parts := h.Guest(t, guest.Spec{Memory: 256 << 20, Disk: 256 << 20})
	if parts.Root.Volume == "" {
		t.Skip("guests write to the host's file systems themselves")
	}
	small := t.TempDir()
	if err := unix.Mount("small", small, "tmpfs", 0, "size=64m,mode=755"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(small, unix.MNT_DETACH) })
	volume := filepath.Join(small, "root.ext4")
	if out, err := exec.Command("cp", "--sparse=always", parts.Root.Volume, volume).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	parts.Root.Volume = volume
	r := &running{t: t, h: h, g: g, parts: parts}
	r.start()
	t.Cleanup(r.end)
	r.up()
	r.must("echo kept >/root/kept; sync")
	if err := os.WriteFile(filepath.Join(small, "ballast"), make([]byte, 40<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	waits := func() bool {
		p, err := r.m.Probe(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(p.Trouble, "no space left for its disk root")
	}
	r.background("yes a line that nobody has to guess | head -c 40000000 >/root/big; sync; md5sum </root/big >/root/sum; sync")
	r.eventually("it waits for space", waits)
	if h.Anew != nil {
		h.Engine = h.Anew(t)
		r.connect()
		r.eventually("the next daemon knows that it waits", waits)
	}
	if err := unix.Mount("", small, "", unix.MS_REMOUNT, "size=160m"); err != nil {
		t.Fatal(err)
	}
	r.eventually("it goes on", func() bool {
		p, err := r.m.Probe(t.Context())
		return err == nil && p.Trouble == "" && !p.Paused
	})
	r.eventually("what it wrote is there", func() bool { return r.shell("cat /root/sum") != "" })
	if out := r.must("yes a line that nobody has to guess | head -c 40000000 | cmp - /root/big && md5sum </root/big | cmp - /root/sum && cat /root/kept"); out != "kept" {
		t.Errorf("it holds %q", out)
	}
}
