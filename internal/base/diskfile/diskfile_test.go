package diskfile_test

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"lodge/internal/base/diskfile"
	"lodge/internal/base/errs"
	"lodge/test/sandbox"
)

// make has qemu-img make a disk, so that what is read here is what is written
// elsewhere.
func make(t testing.TB, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath("qemu-img"); err != nil {
		sandbox.Missing(t, "needs qemu-img to make disks: scripts/deps.sh test installs it")
	}
	file := filepath.Join(t.TempDir(), name)
	for i := range args {
		args[i] = strings.ReplaceAll(args[i], "FILE", file)
	}
	c := exec.Command("qemu-img", args...)
	c.Dir = filepath.Dir(file)
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("qemu-img %v: %v\n%s", args, err, out)
	}
	return file
}

func look(t testing.TB, file string) (diskfile.Header, error) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	head := bytes.NewBuffer(nil)
	if _, err := head.ReadFrom(f); err != nil {
		t.Fatal(err)
	}
	h, err := diskfile.Look(f, st.Size())
	if err == nil && !diskfile.Likely(head.Next(diskfile.Head)) && h.Format != diskfile.VHD {
		t.Errorf("%s is a %s, but not likely a disk", file, h.Format)
	}
	return h, err
}

func TestKnowsWhatQEMUMakes(t *testing.T) {
	const size = 20 << 20
	for _, c := range []struct {
		format diskfile.Format
		args   []string
		size   uint64
	}{
		{diskfile.QCOW2, []string{"create", "-q", "-f", "qcow2", "FILE", "20M"}, size},
		{diskfile.QCOW2, []string{"create", "-q", "-f", "qcow2", "-o", "compat=0.10", "FILE", "20M"}, size},
		{diskfile.QCOW2, []string{"create", "-q", "-f", "qcow2", "-o", "compression_type=zstd,extended_l2=on", "FILE", "20M"}, size},
		{diskfile.VMDK, []string{"create", "-q", "-f", "vmdk", "FILE", "20M"}, size},
		{diskfile.VMDK, []string{"create", "-q", "-f", "vmdk", "-o", "subformat=streamOptimized", "FILE", "20M"}, size},
		{diskfile.VHD, []string{"create", "-q", "-f", "vpc", "-o", "force_size=on", "FILE", "20M"}, size},
		{diskfile.VHD, []string{"create", "-q", "-f", "vpc", "-o", "force_size=on,subformat=fixed", "FILE", "20M"}, size},
		{diskfile.VHDX, []string{"create", "-q", "-f", "vhdx", "FILE", "20M"}, 0},
		{diskfile.VDI, []string{"create", "-q", "-f", "vdi", "FILE", "20M"}, size},
	} {
		h, err := look(t, make(t, "disk", c.args...))
		if err != nil || h.Format != c.format || h.Size != c.size {
			t.Errorf("%v is %+v, %v", c.args, h, err)
		}
	}
}

// patched is a file of 4 MiB of zeros with some bytes set.
func patched(t testing.TB, at map[int]string) string {
	t.Helper()
	b := bytes.Repeat([]byte{0}, 4<<20)
	for offset, text := range at {
		copy(b[offset:], text)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestKnowsDisksWithoutHeaders(t *testing.T) {
	for what, c := range map[string]struct {
		file   string
		format diskfile.Format
	}{
		"boot sector":            {patched(t, map[int]string{510: "\x55\xaa"}), diskfile.Raw},
		"GPT of 512":             {patched(t, map[int]string{512: "EFI PART"}), diskfile.Raw},
		"disc":                   {patched(t, map[int]string{0x8001: "CD001"}), diskfile.ISO},
		"disc that is also disk": {patched(t, map[int]string{510: "\x55\xaa", 0x8001: "CD001"}), diskfile.ISO},
	} {
		if h, err := look(t, c.file); err != nil || h.Format != c.format || h.Size != 4<<20 {
			t.Errorf("%s: %+v, %v", what, h, err)
		}
	}
}

func TestRefusesWhatIsNotOneDisk(t *testing.T) {
	base := make(t, "base.qcow2", "create", "-q", "-f", "qcow2", "FILE", "20M")
	vmdk := make(t, "base.vmdk", "create", "-q", "-f", "vmdk", "FILE", "20M")
	damaged := make(t, "damaged", "create", "-q", "-f", "qcow2", "FILE", "20M")
	edit(t, damaged, 72, 1<<1)
	future := make(t, "future", "create", "-q", "-f", "qcow2", "FILE", "20M")
	edit(t, future, 72, 1<<40)
	for what, c := range map[string]struct{ file, says string }{
		"qcow2 on another":      {make(t, "over", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", "FILE"), "backing file"},
		"qcow2 beside its data": {make(t, "data", "create", "-q", "-f", "qcow2", "-o", "data_file=FILE.raw", "FILE", "20M"), "data file"},
		"damaged qcow2":         {damaged, "damaged"},
		"qcow2 to come":         {future, "not known"},
		"qcow":                  {make(t, "qcow", "create", "-q", "-f", "qcow", "FILE", "20M"), "version 1"},
		"VMDK on another":       {make(t, "over.vmdk", "create", "-q", "-f", "vmdk", "-b", vmdk, "-F", "vmdk", "FILE"), "parent"},
		"VMDK in two":           {make(t, "two", "create", "-q", "-f", "vmdk", "-o", "subformat=monolithicFlat", "FILE", "20M"), "other files"},
		"VMDK without size":     {patched(t, map[int]string{0: "KDMV\x01"}), "no size"},
		"VHD on another":        {patched(t, map[int]string{0: "conectix", 63: "\x04"}), "parent"},
		"VDI on another":        {patched(t, map[int]string{0x40: "\x7f\x10\xda\xbe", 0x4c: "\x04"}), "parent"},
		"QED":                   {make(t, "qed", "create", "-q", "-f", "qed", "FILE", "20M"), "QED"},
		"Parallels":             {make(t, "parallels", "create", "-q", "-f", "parallels", "FILE", "20M"), "Parallels"},
		"zeros":                 {patched(t, nil), "no disk that is known"},
	} {
		_, err := look(t, c.file)
		if !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), "file: ") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func edit(t testing.TB, file string, at int64, value uint64) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(binary.BigEndian.AppendUint64(nil, value), at); err != nil {
		t.Fatal(err)
	}
}

func FuzzLook(f *testing.F) {
	for _, m := range []string{"QFI\xfb\x00\x00\x00\x03", "KDMV\x01", "conectix", "vhdxfile", "# Disk DescriptorFile"} {
		f.Add(append([]byte(m), bytes.Repeat([]byte{0}, 2048)...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := diskfile.Look(bytes.NewReader(b), int64(len(b)))
		if err == nil && (h.Format == "" || h.Format == diskfile.QCOW2 && binary.BigEndian.Uint64(b[8:]) != 0) {
			t.Errorf("%+v", h)
		}
		diskfile.Likely(b)
	})
}
