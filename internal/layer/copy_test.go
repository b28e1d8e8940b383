package layer

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

func TestCopyVolumeIsPristineUntilTouched(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("marks of volumes need root")
	}
	from, dir := t.TempDir(), t.TempDir()
	want := bytes.Repeat([]byte("lodge"), 1000)
	if err := os.WriteFile(filepath.Join(from, File), want, 0o600); err != nil {
		t.Fatal(err)
	}
	if Pristine(dir, "boot1") {
		t.Error("what is not there is pristine")
	}
	if err := CopyVolume(t.Context(), from, dir, "boot1"); err != nil {
		t.Fatal(err)
	}
	have, err := os.ReadFile(filepath.Join(dir, File))
	if err != nil || !bytes.Equal(have, want) {
		t.Errorf("the copy differs (%v)", err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("left %v", left)
	}
	if !Pristine(dir, "boot1") || Pristine(dir, "boot2") || Pristine(dir, "boot") {
		t.Error("pristine in another boot than its own")
	}
	for range 2 {
		if err := Touch(dir); err != nil {
			t.Fatal(err)
		}
	}
	if Pristine(dir, "boot1") {
		t.Error("still pristine after it was touched")
	}
	if err := Touch(t.TempDir()); err != nil {
		t.Error(err)
	}
}
