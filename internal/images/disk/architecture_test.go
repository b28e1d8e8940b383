package disk

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"lodge/internal/base/diskfile"
	"lodge/internal/base/errs"
	"lodge/internal/model/image"
	"lodge/test/sandbox"
)

// espAt is where the disks below have their partition with loaders, in sectors.
const espAt = 2048

// espWith makes a disk whose second MiB begins a partition with these loaders,
// by a table of one kind or the other.
func espWith(t *testing.T, gpt bool, loaders ...string) string {
	t.Helper()
	if _, err := exec.LookPath("mformat"); err != nil {
		sandbox.Missing(t, "mtools is not installed")
	}
	disk := filepath.Join(t.TempDir(), "disk")
	b := make([]byte, 16<<20)
	le := binary.LittleEndian
	b[510], b[511] = 0x55, 0xaa
	if gpt {
		b[tableAt+4] = kindGPT
		copy(b[sector:], "EFI PART")
		le.PutUint64(b[sector+72:], 2)
		le.PutUint32(b[sector+80:], 128)
		le.PutUint32(b[sector+84:], 128)
		e := b[2*sector+128:] // the second entry
		copy(e, espGUID)
		le.PutUint64(e[32:], espAt)
		le.PutUint64(e[40:], 16<<20/sector-1)
	} else {
		e := b[tableAt+slotSize:]
		e[4] = kindESP
		le.PutUint32(e[8:], espAt)
		le.PutUint32(e[12:], 16<<20/sector-espAt)
	}
	if err := os.WriteFile(disk, b, 0o600); err != nil {
		t.Fatal(err)
	}
	at := disk + "@@1M"
	commands := [][]string{{"mformat", "-i", at, "-T", "20480", "-h", "64", "-s", "32", "::"}, {"mmd", "-i", at, "::/EFI", "::/EFI/BOOT"}}
	for _, l := range loaders {
		commands = append(commands, []string{"mcopy", "-i", at, "disk_test.go", "::/EFI/BOOT/" + l})
	}
	for _, c := range commands {
		if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", c, err, out)
		}
	}
	return disk
}

func shown(t *testing.T, path string, disc bool) []string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	all, err := architecturesOf(f, disc)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestWhatLoadersAreFor(t *testing.T) {
	for _, gpt := range []bool{false, true} {
		if got := shown(t, espWith(t, gpt, "BOOTAA64.EFI"), false); !slices.Equal(got, []string{"arm64"}) {
			t.Errorf("GPT %v: %v", gpt, got)
		}
		if got := shown(t, espWith(t, gpt, "BOOTAA64.EFI", "BOOTX64.EFI"), false); !slices.Equal(got, []string{"amd64", "arm64"}) {
			t.Errorf("GPT %v: %v", gpt, got)
		}
	}
	if got := shown(t, espWith(t, true), false); got != nil {
		t.Errorf("without loaders: %v", got)
	}
}

func TestWhatABIOSBoots(t *testing.T) {
	disk := filepath.Join(t.TempDir(), "disk")
	for name, c := range map[string]struct {
		start []byte
		want  []string
	}{"GRUB": {[]byte{0xeb, 0x63, 0x90}, []string{"amd64"}}, "nothing": {nil, nil}} {
		b := make([]byte, 1<<20)
		copy(b, c.start)
		b[510], b[511] = 0x55, 0xaa
		if err := os.WriteFile(disk, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if got := shown(t, disk, false); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// TestWhatDiscsAreFor: one for PCs, and one that only an ARM boots.
func TestWhatDiscsAreFor(t *testing.T) {
	if _, err := exec.LookPath("xorriso"); err != nil {
		sandbox.Missing(t, "xorriso is not installed")
	}
	disk, err := os.ReadFile(espWith(t, false, "BOOTAA64.EFI"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, content := range map[string][]byte{"efi.img": disk[1<<20:], "bios.img": make([]byte, 2048)} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	iso := filepath.Join(t.TempDir(), "iso")
	for name, c := range map[string]struct {
		args []string
		want []string
	}{
		"ARM":  {[]string{"-e", "efi.img", "-no-emul-boot"}, []string{"arm64"}},
		"both": {[]string{"-b", "bios.img", "-no-emul-boot", "-boot-load-size", "4", "-eltorito-alt-boot", "-e", "efi.img", "-no-emul-boot"}, []string{"amd64", "arm64"}},
		"none": {nil, nil},
	} {
		args := append([]string{"-as", "mkisofs", "-quiet", "-o", iso}, c.args...)
		if out, err := exec.Command("xorriso", append(args, dir)...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if got := shown(t, iso, true); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestWhatIsSaidOfADisk(t *testing.T) {
	for _, c := range []struct {
		shown []string
		said  string
		want  string
		ok    bool
	}{
		{nil, "", "", true}, {nil, "arm64", "arm64", true}, {[]string{"amd64"}, "", "amd64", true}, {[]string{"amd64", "arm64"}, "arm64", "arm64", true},
		{[]string{"amd64"}, "i386", "i386", true}, {[]string{"arm64"}, "amd64", "", false},
	} {
		got, err := settle(c.shown, image.Spec{Architecture: c.said})
		if got != c.want || (err == nil) != c.ok || err != nil && !errs.Is(err, errs.Invalid) {
			t.Errorf("%v, said %q: %q, %v", c.shown, c.said, got, err)
		}
	}
	if checkArchitecture("x86_64") == nil || checkArchitecture("amd64") != nil || checkArchitecture("") != nil {
		t.Error("names of architectures")
	}
}

// TestReadingAQCOW2 that qemu-img made is reading what went into it.
func TestReadingAQCOW2(t *testing.T) {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		sandbox.Missing(t, "qemu-img is not installed")
	}
	dir := t.TempDir()
	content := make([]byte, 3<<20+512)
	for i := 1 << 20; i < 1<<20+200_000; i++ {
		content[i] = byte(i * 7)
	}
	content[len(content)-1] = 9
	raw, out := filepath.Join(dir, "raw"), filepath.Join(dir, "qcow2")
	if err := os.WriteFile(raw, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if text, err := exec.Command("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, out).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	f, err := os.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	q, err := openQCOW2(f)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(content))
	if n, err := q.ReadAt(got, 0); n != len(content) || err != nil || !bytes.Equal(got, content) {
		t.Errorf("%d bytes, %v", n, err)
	}
	if n, err := q.ReadAt(got, int64(len(content))-5); n != 5 || err == nil || got[4] != 9 {
		t.Errorf("at the end %d bytes, %v", n, err)
	}
}

// FuzzArchitecture: whatever a disk holds, looking at it ends.
func FuzzArchitecture(f *testing.F) {
	b := make([]byte, 4096)
	b[510], b[511], b[tableAt+4] = 0x55, 0xaa, kindESP
	copy(b[sector:], "EFI PART")
	f.Add(b, false)
	f.Add(b, true)
	f.Fuzz(func(t *testing.T, b []byte, disc bool) {
		all, err := architecturesOf(bytes.NewReader(b), disc)
		if err != nil || len(all) > len(loaders) {
			t.Errorf("%v, %v", all, err)
		}
		if q, err := openQCOW2(bytes.NewReader(b)); err == nil {
			_, _ = architecturesOf(q, false)
		}
		if _, err := architecture(bytes.NewReader(b), diskfile.ISO, image.Spec{}); err != nil {
			t.Error(err)
		}
	})
}
