package oslevel

import (
	"bytes"
	"flag"
	"net/netip"
	"os"
	"runtime"
	"testing"

	"lodge/internal/base/cgroup"
	"lodge/internal/engine"
	"lodge/internal/launch/plan/render"
	"lodge/internal/model"
	"lodge/internal/model/guest"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestGolden shows every system call of a start and of an exec, so that a
// change of one is seen by whoever reviews it.
func TestGolden(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("the golden files are of amd64")
	}
	g := guest.Guest{Meta: model.Meta{ID: "abcdefghijkmnpqr", Name: "web1"}}
	g.Spec = guest.Spec{Memory: 512 << 20, Env: map[string]string{"B": "2", "A": "1"}, UserData: "#cloud-config\n"}
	p := engine.Parts{Dir: "/d", Root: engine.Root{Lower: "/l", Writable: "/w", Used: []string{"/used"}, Limit: "/limit"}, Cgroup: "web1", IDBase: 1_000_065_536, Domain: "lodge.internal",
		DNS: []netip.Addr{netip.MustParseAddr("10.67.0.1")},
		NICs: []engine.NIC{{Name: "eth0", MAC: "02:00:00:00:00:01", Device: "lg1n0", Master: "lodge0", MTU: 1500, IPv4: netip.MustParsePrefix("10.67.0.5/16"),
			IPv6: netip.MustParsePrefix("fd67::5/64"), Gateway4: netip.MustParseAddr("10.67.0.1"), Gateway6: netip.MustParseAddr("fd67::1")}}}
	e := New(Options{Launch: "/launch"})
	join := cgroup.JoinPaths{Dir: "/v2/web1", Tasks: []string{"/v1/memory/web1/tasks"}, Delegate: []string{"/v2/web1"}}
	start, err := e.compileStart(g, p, join)
	if err != nil {
		t.Fatal(err)
	}
	bpf, err := e.filter()
	if err != nil {
		t.Fatal(err)
	}
	x := entry{argv: []string{"ls", "-l"}, env: environment(g), dir: "/home/ann", who: account{uid: 1000, gid: 1000, groups: []uint32{1000, 29}}, tty: true, rows: 24, cols: 80, ask: true}
	enter, err := x.compile(join, bpf)
	if err != nil {
		t.Fatal(err)
	}
	for name, plan := range map[string][]byte{"start": start, "exec": enter} {
		text, err := render.Plan(plan)
		if err != nil {
			t.Fatal(err)
		}
		path, is := "testdata/"+name+".golden", []byte(text)
		if *update {
			if err := os.WriteFile(path, is, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(is, want) {
			t.Errorf("%s is not what it was; if that is meant: go test -run TestGolden -update\n%s", path, is)
		}
	}
}
