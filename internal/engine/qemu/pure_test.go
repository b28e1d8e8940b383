package qemu

import (
	"bytes"
	"image/color"
	"os"
	"path/filepath"
	"testing"

	"lodge/internal/engine/qemu/qmp"
)

// heard is a link without a QEMU, for what it makes of events.
func heard(events ...qmp.Event) (*link, *int) {
	told := 0
	e := New(Options{Changed: func(string) { told++ }})
	l := &link{e: e, id: "g", status: "running", deleted: map[string]chan error{}}
	for _, x := range events {
		l.event(x)
	}
	return l, &told
}

func TestEvents(t *testing.T) {
	for name, c := range map[string]struct {
		events          []qmp.Event
		status, trouble string
		told            int
	}{
		"nothing":  {nil, "running", "", 0},
		"paused":   {[]qmp.Event{{Name: "STOP"}}, "paused", "", 1},
		"resumed":  {[]qmp.Event{{Name: "STOP"}, {Name: "RESUME"}}, "running", "", 2},
		"panic":    {[]qmp.Event{{Name: "GUEST_PANICKED"}, {Name: "GUEST_PANICKED"}}, "running", "kernel panic: the guest's kernel says that it cannot go on", 1},
		"io error": {[]qmp.Event{{Name: "BLOCK_IO_ERROR", Data: []byte(`{"node-name":"node-data","action":"report","reason":"Input/output error"}`)}}, "running", "its disk data fails: Input/output error", 1},
		"ignored":  {[]qmp.Event{{Name: "BLOCK_IO_ERROR", Data: []byte(`{"node-name":"node-data","action":"ignore"}`)}}, "running", "", 0},
		"garbage":  {[]qmp.Event{{Name: "BLOCK_IO_ERROR", Data: []byte(`[`)}, {Name: "DEVICE_DELETED", Data: []byte(`7`)}, {Name: "NEW_IN_QEMU_99"}}, "running", "", 0},
	} {
		l, told := heard(c.events...)
		if l.status != c.status || l.trouble != c.trouble || *told != c.told {
			t.Errorf("%s: %q, %q, told %d times", name, l.status, l.trouble, *told)
		}
	}
}

func TestPictures(t *testing.T) {
	p, err := parsePPM([]byte("P6\n2 1\n255\n\x01\x02\x03\xff\x00\x00"))
	if err != nil || p.Bounds().Dx() != 2 || p.At(1, 0) != (color.NRGBA{255, 0, 0, 255}) {
		t.Errorf("%v, %v", p, err)
	}
	for _, bad := range []string{"", "P5\n2 1\n255\n123456", "P6\n2 1\n255\n12345", "P6\n-2 1\n255\n123456", "P6\n99999 99999\n255\n", "P6\n2 1\n65535\n123456"} {
		if _, err := parsePPM([]byte(bad)); err == nil {
			t.Errorf("%q is a picture", bad)
		}
	}
}

func FuzzPicture(f *testing.F) {
	f.Add([]byte("P6\n2 1\n255\n\x01\x02\x03\xff\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, err := parsePPM(b); err == nil && 3*p.Bounds().Dx()*p.Bounds().Dy() > len(b) {
			t.Error("a picture of more than there is")
		}
	})
}

// TestSparseCopies: what is zero is not written, and nothing else is lost.
func TestSparseCopies(t *testing.T) {
	dir := t.TempDir()
	content := make([]byte, 3<<20)
	for _, at := range []int{0, 4095, 4096, 1 << 20, 3<<20 - 1} {
		content[at] = 7
	}
	if err := os.WriteFile(filepath.Join(dir, "from"), content, 0o600); err != nil {
		t.Fatal(err)
	}
	from, err := os.Open(filepath.Join(dir, "from"))
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	err = create(filepath.Join(dir, "to"), func(to *os.File) error { return copySparse(t.Context(), to, from) })
	if err != nil {
		t.Fatal(err)
	}
	if is, err := os.ReadFile(filepath.Join(dir, "to")); err != nil || !bytes.Equal(is, content) {
		t.Errorf("the copy is another, %v", err)
	}
}

func TestPortsAndWhatIsBehindThem(t *testing.T) {
	type bridge = struct {
		Devices []pciDevice `json:"devices"`
	}
	got := behind([]pciDevice{{ID: "disk-base"}, {ID: "port1", Bridge: &bridge{[]pciDevice{{ID: "disk-data"}}}}, {ID: "port2", Bridge: &bridge{}}})
	if len(got) != 1 || got["port1"] != "disk-data" {
		t.Errorf("%v", got)
	}
	w := hardware{Ports: []string{"port1", "port2"}, Drives: []drive{{Name: "data", Port: "port1"}}}
	if w.freePort() != "port2" {
		t.Error(w.freePort())
	}
	w.Cards = []card{{Port: "port2"}}
	if w.freePort() != "" {
		t.Error(w.freePort())
	}
}
