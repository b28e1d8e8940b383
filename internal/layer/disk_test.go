package layer

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"lodge/internal/base/errs"
	"lodge/test/sandbox"
)

func qemuImg(t *testing.T, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath("qemu-img"); err != nil {
		sandbox.Missing(t, "needs qemu-img: scripts/deps.sh run installs it")
	}
	out, err := exec.Command("qemu-img", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("qemu-img %v: %v\n%s", args, err, out)
	}
	return string(out)
}

func TestOverlay(t *testing.T) {
	dir := t.TempDir()
	raw, base := filepath.Join(dir, "raw"), filepath.Join(dir, "base")
	if err := os.WriteFile(raw, bytes.Repeat([]byte("base"), 256<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	qemuImg(t, "convert", "-f", "raw", "-O", "qcow2", raw, base)
	volume := filepath.Join(dir, "volume")
	if err := os.Mkdir(volume, 0o700); err != nil {
		t.Fatal(err)
	}
	disk := filepath.Join(volume, DiskFile)
	if err := os.WriteFile(disk+fresh, []byte("left by one that was cut off"), 0o600); err != nil {
		t.Fatal(err)
	}
	make := func(size uint64) {
		t.Helper()
		if err := Overlay(t.Context(), volume, base, size); err != nil {
			t.Fatal(err)
		}
	}
	make(8<<20 - 100)
	if size, err := overlaySize(disk); err != nil || size != 8<<20 {
		t.Errorf("%d bytes, %v", size, err)
	}
	if st, err := os.Stat(disk); err != nil || st.Mode() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
	qemuImg(t, "bench", "-q", "-f", "qcow2", "-w", "-c", "1", "-s", "4096", "-o", "4096", "--pattern=7", disk)
	make(16 << 20) // keeps what is on it
	make(4 << 20)  // does not shrink
	if size, err := overlaySize(disk); err != nil || size != 16<<20 {
		t.Errorf("%d bytes, %v", size, err)
	}
	back := filepath.Join(dir, "back")
	qemuImg(t, "convert", "-f", "qcow2", "-O", "raw", disk, back)
	b, err := os.ReadFile(back)
	if err != nil || !bytes.HasPrefix(b, []byte("basebase")) || !bytes.Equal(b[4096:8192], bytes.Repeat([]byte{7}, 4096)) || len(b) != 16<<20 {
		t.Errorf("it holds something else: %v", err)
	}
	if left, _ := os.ReadDir(volume); len(left) != 1 {
		t.Errorf("left: %v", left)
	}
}

func TestOverlayOfNothing(t *testing.T) {
	dir := t.TempDir()
	if err := Overlay(t.Context(), dir, "", 1<<30); err != nil {
		t.Fatal(err)
	}
	if out := qemuImg(t, "info", "-f", "qcow2", filepath.Join(dir, DiskFile)); !strings.Contains(out, "1 GiB") || strings.Contains(out, "backing") {
		t.Error(out)
	}
}

// A monitor that a guest took over may have written any header.
func TestOverlayWithAForgedHeader(t *testing.T) {
	dir := t.TempDir()
	if err := Overlay(t.Context(), dir, "", 1<<20); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(filepath.Join(dir, DiskFile), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(binary.BigEndian.AppendUint64(nil, 1<<2), 72); err != nil { // its data is elsewhere
		t.Fatal(err)
	}
	if err := Overlay(t.Context(), dir, "", 1<<21); !errs.Is(err, errs.Internal) {
		t.Error(err)
	}
}
