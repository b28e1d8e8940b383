package arch

import (
	_ "embed"
	"os"
	"strings"
	"testing"
	"testing/fstest"
)

//go:embed layers.txt
var layers string

// TestHouse holds the whole repository to the laws.
func TestHouse(t *testing.T) {
	faults, err := Check(os.DirFS("../.."), layers)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range faults {
		t.Error(f)
	}
}

// TestPlanted proves that each law can be broken: a house with one violation
// planted must be found out.
func TestPlanted(t *testing.T) {
	long := "package x\nfunc f() {\n" + strings.Repeat("\tprintln()\n", 80) + "}\n"
	branchy := "package x\nfunc f(a bool) {\n" + strings.Repeat("\tif a {\n\t}\n", 15) + "}\n"
	for _, c := range []struct{ name, file, src, says string }{
		{"a driver sees the store", "internal/engine/toy/toy.go", `package toy; import _ "lodge/internal/store"`, "may not import internal/store"},
		{"a driver sees another driver", "internal/engine/toy/toy.go", `package toy; import _ "lodge/internal/engine/oslevel"`, "may not import"},
		{"control sees a driver", "internal/control/guests/x.go", `package guests; import _ "lodge/internal/engine/oslevel"`, "may not import"},
		{"a reconciler sees another", "internal/control/guests/x.go", `package guests; import _ "lodge/internal/control/images"`, "may not import"},
		{"the command line sees the daemon", "internal/cli/x.go", `package cli; import _ "lodge/internal/store"`, "may not import"},
		{"a noun sees another noun", "internal/model/guest/x.go", `package guest; import _ "lodge/internal/model/pool"`, "may not import"},
		{"model does I/O", "internal/model/guest/x.go", `package guest; import _ "os"`, "is pure"},
		{"an unknown folder", "internal/misc/x.go", `package misc; import _ "lodge/internal/base/errs"`, "may not import"},
		{"a driver's name elsewhere", "internal/control/guests/x.go", `package guests; var x = "btrfs"`, "driver's name"},
		{"an init function", "internal/store/x.go", "package store\nfunc init() {}", "no init functions"},
		{"a long file", "internal/store/x.go", "package store\n" + strings.Repeat("\n", 600), "601 lines"},
		{"a long function", "internal/store/x.go", long, "82 lines"},
		{"a branchy function", "internal/store/x.go", branchy, "complexity of 16"},
		{"a wide interface", "internal/store/x.go", "package store\ntype i interface { a(); b(); c(); d(); e(); f(); g(); h(); i(); j() }", "interface of 10"},
	} {
		t.Run(c.name, func(t *testing.T) {
			faults, err := Check(fstest.MapFS{c.file: {Data: []byte(c.src)}}, layers)
			if err != nil {
				t.Fatal(err)
			}
			if all := strings.Join(faults, "\n"); !strings.Contains(all, c.says) {
				t.Errorf("found %q, want something that says %q", all, c.says)
			}
		})
	}
	if _, faults := parseLayers("a : b\nb : a\n"); len(faults) == 0 {
		t.Error("a circle in layers.txt was not found")
	}
}
