package zram

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

func TestParse(t *testing.T) {
	all := parse("Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n" +
		"/swapfile                               file\t\t1048572\t\t12\t\t-2\n" +
		"/dev/zram1                              partition\t6291452\t\t768\t\t200\nodd\n")
	want := []area{{"/swapfile", 1048572, 12, -2}, {"/dev/zram1", 6291452, 768, 200}}
	if !slices.Equal(all, want) {
		t.Errorf("%+v", all)
	}
	if first, ok := foremost(all); !ok || first != want[1] || !first.compressed() || want[0].compressed() {
		t.Errorf("the first is %+v, %v", first, ok)
	}
	if _, ok := foremost(nil); ok {
		t.Error("there is a first of none")
	}
	pages, takes, err := parseStat("775647232 255739207 276566016        0 991096832    10173        0      170    67250\n")
	if err != nil || pages != 775647232 || takes != 276566016 {
		t.Errorf("%d pages in %d, %v", pages, takes, err)
	}
}

// TestLife: swap space of the kernel's own is made, stays while it is held, and
// goes.
func TestLife(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("swap space needs root")
	}
	lock, err := lockAll()
	if err != nil {
		t.Fatal(err)
	}
	name := "t" + strconv.Itoa(os.Getpid())
	device, err := create(name, 16<<20)
	lock.Close()
	if err != nil {
		t.Fatal(err)
	}
	there := func() bool {
		all, err := areas()
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(all, func(a area) bool { return a.device == device && a.labelled(name) && a.compressed() })
	}
	if !there() {
		t.Errorf("%s is not among the host's swap space", device)
	}
	hold, err := locked(device, unix.LOCK_SH)
	if err != nil {
		t.Fatal(err)
	}
	s := &Swap{device, hold}
	if u, err := s.Usage(); err != nil || u.Device != device || u.Size != 16<<20 {
		t.Errorf("%+v, %v", u, err)
	}
	if err := removeLabelled(name); err != nil || !there() {
		t.Errorf("it was removed under who holds it: %v", err)
	}
	if err := errors.Join(s.Close(), removeLabelled(name)); err != nil || there() {
		t.Errorf("it was not removed: %v", err)
	}
	if _, err := os.Stat(device); err == nil {
		t.Errorf("%s is left", device)
	}
	devices := func() []string {
		all, _ := filepath.Glob("/sys/block/zram*")
		return all
	}
	if lock, err = lockAll(); err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	before := devices()
	if device, err := create(name, 0); err == nil || len(devices()) > len(before) {
		t.Errorf("of no size %s was made, %v; %v are left where there were %v", device, err, devices(), before)
	}
	var none *Swap
	if u, err := none.Usage(); none.Takes() || err != nil || u != (Usage{}) || none.Close() != nil {
		t.Error("no swap space is some")
	}
}
