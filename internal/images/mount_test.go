package images

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lodge/internal/base/tool"
)

// Kernels before 6.12 can't mount an EROFS file without a loop device.
func TestTheLoopFallbackMounts(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounts: needs root")
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skip("this kernel has no loop devices")
	}
	tree, out := t.TempDir(), filepath.Join(t.TempDir(), "image.erofs")
	if err := os.WriteFile(filepath.Join(tree, "hello"), []byte("there"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := tool.Need("image.build", map[string]string{"mkfs.erofs": "erofs-utils"}); err != nil {
		t.Skip(err)
	}
	told := func(string, uint64, uint64, string, string) {}
	if err := WriteEROFS(t.Context(), tree, out, time.Unix(0, 0), told); err != nil {
		t.Fatal(err)
	}
	loop, err := attachLoop(out)
	if err != nil {
		t.Fatal(err)
	}
	mount, err := erofs(loop.Name())
	name := loop.Name()
	loop.Close()
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Openat(int(mount.Fd()), "hello", unix.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 10)
	if n, err := unix.Read(fd, b); err != nil || string(b[:n]) != "there" {
		t.Errorf("read %q %v", b[:n], err)
	}
	unix.Close(fd)
	mount.Close()
	// The device detaches itself with its last user; the kernel does that in
	// the background, so it is asked until it has.
	for range 500 {
		if _, err := os.Stat("/sys/block/" + filepath.Base(name) + "/loop/backing_file"); err != nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%s is still attached", name)
}
