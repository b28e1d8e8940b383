package qemu

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"lodge/internal/base/cgroup"
	"lodge/internal/base/ids"
	"lodge/internal/engine"
	"lodge/internal/engine/enginetest"
	"lodge/internal/kernels"
	"lodge/internal/kernels/debian"
	"lodge/internal/layer"
	"lodge/internal/model"
	"lodge/internal/model/guest"
	"lodge/internal/model/image"
	"lodge/test/sandbox"
)

// TestMain gives the tests a network, mounts and processes of their own.
func TestMain(m *testing.M) {
	os.Exit(sandbox.Run(func() int {
		defer func() { os.RemoveAll(theKernel.made) }()
		return m.Run()
	}))
}

// theKernel is the kernel that all tests boot, made once for each run of them.
var theKernel struct {
	once sync.Once
	dir  string
	made string // dir, if it goes with the tests
	err  error
}

// kernelName is the kernel that the tests boot.
const kernelName = "linux/debian-12"

// testKernel returns a kernel of Debian's with the agent. It is fetched from
// the distribution's mirror, once for each run of the tests, or for all when
// LODGE_TEST_KERNELS names a folder to keep it in.
func testKernel(t testing.TB) engine.Kernel {
	t.Helper()
	dir := os.Getenv("LODGE_TEST_KERNELS")
	theKernel.once.Do(func() {
		if theKernel.dir = dir; dir == "" {
			theKernel.made, theKernel.err = os.MkdirTemp("", "lodge-kernels-")
			theKernel.dir = theKernel.made
		}
	})
	if theKernel.err != nil {
		t.Fatal(theKernel.err)
	}
	agent := enginetest.Build(t, "lodge/cmd/lodge-agent")
	store, err := kernels.OpenStore(filepath.Join(theKernel.dir, "kernels"), agent, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Boot(t.Context(), kernelName); err != nil {
		if p := sandbox.Proxy(t); p != "" {
			t.Setenv("http_proxy", p)
		}
		if _, err := store.Build(t.Context(), debian.New(filepath.Join(theKernel.dir, "cache")), kernelName, func(string, uint64, uint64, string, string) {}); err != nil {
			sandbox.Missing(t, fmt.Sprintf("no kernel to boot: %v", err))
		}
	}
	b, err := store.Boot(t.Context(), kernelName)
	if err != nil {
		t.Fatal(err)
	}
	return engine.Kernel{Name: b.Name, Version: b.Version, Path: b.Path, Initrd: b.Initrd}
}

// rig is an engine with what its guests need around them.
type rig struct {
	t      testing.TB
	engine *Engine
	o      Options
	tree   *cgroup.Tree
	kernel engine.Kernel
	base   string // image of a busybox
	next   int
}

func newRig(t testing.TB) *rig {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes namespaces and control groups")
	}
	for _, program := range []string{program, "mkfs.erofs", "mkfs.ext4"} {
		if _, err := exec.LookPath(program); err != nil {
			sandbox.Missing(t, program+" is not installed")
		}
	}
	dir := t.TempDir()
	helper := filepath.Join(dir, "lodge-launch")
	if out, err := exec.Command("../../launch/helper/build.sh", helper).CombinedOutput(); err != nil {
		sandbox.Missing(t, fmt.Sprintf("the launch helper cannot be built here: %v: %s", err, out))
	}
	image := filepath.Join(dir, "lodge-image.so")
	if out, err := exec.Command("image/build.sh", image).CombinedOutput(); err != nil {
		sandbox.Missing(t, fmt.Sprintf("the helper library cannot be built here: %v: %s", err, out))
	}
	layout, err := cgroup.Detect()
	if err != nil {
		t.Skip(err)
	}
	tree, err := layout.Open("lodge-qemu-" + ids.New())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tree.Destroy(context.Background()); err != nil {
			t.Error(err)
		}
	})
	r := &rig{t: t, tree: tree, kernel: testKernel(t), base: filepath.Join(dir, "base.erofs")}
	r.o = Options{Launch: helper, Image: image, Tree: tree, Log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	r.engine = New(r.o)
	t.Cleanup(func() { r.engine.Close() })
	enginetest.BusyboxTree(t, filepath.Join(dir, "tree"))
	if out, err := exec.Command("mkfs.erofs", "--quiet", r.base, filepath.Join(dir, "tree")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return r
}

// guest makes a record and what it boots from.
func (r *rig) guest(t testing.TB, spec guest.Spec) (guest.Guest, engine.Parts) {
	t.Helper()
	r.next++
	if spec.Memory == 0 {
		spec.Memory = 128 << 20
	}
	if spec.CPUs == 0 {
		spec.CPUs = 1
	}
	disk := spec.Disk
	if disk == 0 {
		disk = 256 << 20
	}
	g := guest.Guest{Meta: model.Meta{ID: ids.New(), Name: fmt.Sprintf("guest%d", r.next)}, Spec: spec}
	dir := t.TempDir()
	if err := layer.Create(t.Context(), dir, disk); err != nil {
		t.Fatal(err)
	}
	p := engine.Parts{Dir: t.TempDir(), Cgroup: g.ID, IDBase: 1_600_000_000 + uint32(os.Getpid()%500+r.next)*65536, Domain: "lodge.internal",
		Root: engine.Root{Writable: dir, Base: r.base, Volume: filepath.Join(dir, "root.ext4")}, Kernel: r.kernel,
		Image: image.Info{OS: "busybox", Init: []string{"/sbin/init"}}}
	if err := r.tree.Create(p.Cgroup, overhead().Limits(g.Spec, "")); err != nil {
		t.Fatal(err)
	}
	return g, p
}

// TestEngine holds this engine to the suite of all engines.
func TestEngine(t *testing.T) {
	r := newRig(t)
	k, kill := enginetest.Keeper(t)
	bridge(t)
	enginetest.Run(t, enginetest.Harness{
		Engine: r.engine, Keepers: k, KillKeeper: kill, Crowd: 2, Slow: true, OwnKernel: true, Late: true,
		Guest: func(t *testing.T, s guest.Spec) (guest.Guest, engine.Parts) { return r.guest(t, s) },
		Anew: func(*testing.T) engine.Engine {
			r.engine.Close()
			r.engine = New(r.o)
			return r.engine
		},
		NIC: suiteNIC, Copy: r.copy,
	})
}

// copy makes a guest with a copy of another's volume.
func (r *rig) copy(t *testing.T, g guest.Guest, p engine.Parts) (guest.Guest, engine.Parts) {
	t.Helper()
	copied, parts := r.guest(t, g.Spec)
	if out, err := exec.Command("cp", "--sparse=always", p.Root.Volume, parts.Root.Volume).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return copied, parts
}

// bridge makes the network of the suite's guests.
func bridge(t *testing.T) {
	t.Helper()
	for _, c := range []string{"link add suite0 type bridge", "addr add 10.68.0.254/24 dev suite0", "link set suite0 up"} {
		if out, err := exec.Command("ip", strings.Fields(c)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", c, err, out)
		}
	}
	t.Cleanup(func() { exec.Command("ip", "link", "del", "suite0").Run() })
}

func suiteNIC(_ *testing.T, n int) engine.NIC {
	return engine.NIC{
		Name: "eth0", MAC: fmt.Sprintf("02:00:00:00:01:%02x", n), Device: fmt.Sprintf("lgs%dn0", n), Master: "suite0", MTU: 1500,
		IPv4: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 68, 0, byte(n)}), 24), Gateway4: netip.MustParseAddr("10.68.0.254"),
	}
}
