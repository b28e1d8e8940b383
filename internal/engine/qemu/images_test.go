package qemu

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestCopiesOfAnImageAreOneFile: who goes on from a copy of an image that is
// known is given the image.
func TestCopiesOfAnImageAreOneFile(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	first, second := write("first", "first"), write("second", "second")
	known := images{of: map[string]*ramImage{}}
	known.keep("n1", first)
	if err := os.Remove(first); err != nil { // as with the volume that it was written to
		t.Fatal(err)
	}
	read := func(name, path string) string {
		found, err := known.find(name, path)
		if err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(found)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	if is := read("n1", second); is != "first" {
		t.Errorf("a copy of a known image is %q", is)
	}
	if is := read("n2", second); is != "second" {
		t.Errorf("another image is %q", is)
	}
	if is := read("", second); is != "second" {
		t.Errorf("an image without a name is %q", is)
	}
	done := known.use("n1")
	known.forget()
	done()
	if is := read("n1", second); is != "second" {
		t.Errorf("what was forgotten is %q", is)
	}
	known.forget()
}

// TestWhatAProcessChangedOfAnImage: pages that a process wrote to are copied,
// and those that it only read are not.
func TestWhatAProcessChangedOfAnImage(t *testing.T) {
	const pages = 600 // more than are looked at in one go
	was := bytes.Repeat([]byte("i"), pages*pageSize)
	path := filepath.Join(t.TempDir(), "ram")
	if err := os.WriteFile(path, was, 0o600); err != nil {
		t.Fatal(err)
	}
	image, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer image.Close()
	memory, err := unix.Mmap(int(image.Fd()), 0, len(was), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(memory)
	if memory[5*pageSize] != 'i' { // it is in the process's tables now
		t.Fatal("an image that is not what was written")
	}
	want := make([]byte, len(was))
	for _, page := range []int{0, 7, 8, 255, 256, pages - 1} {
		for i := range pageSize {
			memory[page*pageSize+i], want[page*pageSize+i] = 'c', 'c'
		}
	}
	clear(memory[9*pageSize : 10*pageSize]) // zeros are a change too
	to, err := os.Create(filepath.Join(t.TempDir(), "to"))
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	if err := to.Truncate(int64(len(was))); err != nil {
		t.Fatal(err)
	}
	if _, err := to.WriteAt([]byte("i"), 9*pageSize); err != nil {
		t.Fatal(err)
	}
	if err := copyChanged(t.Context(), to, os.Getpid(), int(image.Fd()), uint64(len(was))); err != nil {
		t.Fatal(err)
	}
	is := make([]byte, len(was))
	if _, err := to.ReadAt(is, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(is, want) {
		t.Error("other pages were copied than those that were changed")
	}
	if err := copyChanged(t.Context(), to, os.Getpid(), int(image.Fd()), uint64(len(was))+pageSize); err == nil || !strings.Contains(err.Error(), "maps") {
		t.Errorf("a file that is not wholly mapped: %v", err)
	}
}
