package fat

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"lodge/test/sandbox"
)

func TestAVolumeIsWhatOthersRead(t *testing.T) {
	files := []File{
		{"meta-data", []byte("instance-id: 7\n")}, {"user-data", bytes.Repeat([]byte("#cloud-config "), 5000)},
		{"network-config", []byte("{}")}, {"empty", nil}, {"a name that takes more than two entries", []byte("x")},
	}
	b, err := Volume("cidata", files)
	if err != nil {
		t.Fatal(err)
	}
	if names, err := List(bytes.NewReader(b)); err != nil || !slices.Equal(names, []string{"FILEA", "FILEB", "FILEC", "FILED", "FILEE"}) {
		t.Errorf("we ourselves read %v, %v", names, err)
	}
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := exec.LookPath("mcopy"); err != nil {
		sandbox.Missing(t, "mtools is not installed")
	}
	for _, f := range files {
		got, err := exec.Command("mcopy", "-i", image, "::"+f.Name, "-").Output()
		if err != nil || !bytes.Equal(got, f.Content) {
			t.Errorf("%s: %d bytes, %v", f.Name, len(got), err)
		}
	}
	if out, err := exec.Command("blkid", "-p", "-o", "export", image).Output(); err != nil || !bytes.Contains(out, []byte("LABEL=cidata")) || !bytes.Contains(out, []byte("TYPE=vfat")) {
		t.Errorf("blkid: %s, %v", out, err)
	}
	if _, err := exec.LookPath("fsck.vfat"); err == nil {
		if out, err := exec.Command("fsck.vfat", "-n", image).CombinedOutput(); err != nil {
			t.Errorf("fsck: %v: %s", err, out)
		}
	}
}

func TestWhatDoesNotFit(t *testing.T) {
	if _, err := Volume("x", []File{{"f", make([]byte, 8<<20)}}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("%v", err)
	}
	if b, err := Volume("x", []File{{"f", make([]byte, 1<<20)}}); err != nil || len(b) < 1<<20 {
		t.Errorf("%d, %v", len(b), err)
	}
}

// TestFoldersAreFound in file systems of all three kinds, as others make them.
func TestFoldersAreFound(t *testing.T) {
	if _, err := exec.LookPath("mformat"); err != nil {
		sandbox.Missing(t, "mtools is not installed")
	}
	for kind, args := range map[string][]string{"12": {"-T", "4096"}, "16": {"-T", "65536"}, "32": {"-T", "400000", "-F"}} {
		image := filepath.Join(t.TempDir(), kind)
		if err := os.WriteFile(image, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(image, 400000*512); err != nil {
			t.Fatal(err)
		}
		for _, c := range [][]string{append([]string{"mformat", "-i", image, "-h", "64", "-s", "32"}, append(args, "::")...),
			{"mmd", "-i", image, "::/EFI", "::/EFI/BOOT"}, {"mcopy", "-i", image, "fat_test.go", "::/EFI/BOOT/BOOTX64.EFI"}} {
			if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
				t.Fatalf("%v: %v: %s", c, err, out)
			}
		}
		f, err := os.Open(image)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if names, err := List(f, "efi", "boot"); err != nil || !slices.Contains(names, "BOOTX64.EFI") {
			t.Errorf("FAT%s: %v, %v", kind, names, err)
		}
		if _, err := List(f, "EFI", "none"); !errors.Is(err, ErrNone) {
			t.Errorf("FAT%s: %v", kind, err)
		}
	}
}

// FuzzList: what comes from anybody ends, and costs no more than it may.
func FuzzList(f *testing.F) {
	b, err := Volume("cidata", []File{{"meta-data", []byte("x")}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b[:8<<10])
	f.Add(make([]byte, 1024))
	f.Fuzz(func(t *testing.T, b []byte) {
		names, _ := List(bytes.NewReader(b), "EFI")
		more, _ := List(bytes.NewReader(b))
		if len(names) > 2*entriesMax || len(more) > 2*entriesMax {
			t.Errorf("%d and %d names", len(names), len(more))
		}
	})
}
