package uml

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"lodge/internal/base/cgroup"
	"lodge/internal/base/ids"
	"lodge/internal/engine"
	"lodge/internal/engine/enginetest"
	"lodge/internal/keeper"
	"lodge/internal/kernels"
	"lodge/internal/kernels/debian"
	"lodge/internal/layer"
	"lodge/internal/model"
	"lodge/internal/model/guest"
	"lodge/internal/model/image"
	"lodge/test/sandbox"
)

func TestMain(m *testing.M) { sandbox.Main(m) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// kernelName is the kernel that guests boot where nobody wants another.
const kernelName = "um/debian-sid"

// kernelsFolder names a folder with a store of kernels in "kernels", as the
// test of package kernels/debian leaves it, so that none is fetched.
const kernelsFolder = "LODGE_TEST_KERNELS"

// rig is an engine with what its guests need around them.
type rig struct {
	t      testing.TB
	engine *Engine
	keeper *keeper.Client
	kill   func(t *testing.T)
	tree   *cgroup.Tree
	kernel engine.Kernel
	base   string // EROFS of a static busybox
	dir    string
	net    sync.Once
	mu     sync.Mutex
	next   int
}

func newRig(t testing.TB) *rig {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes namespaces, mounts and control groups")
	}
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o755))
	r := &rig{t: t, dir: dir, base: filepath.Join(dir, "base.erofs")}
	helper := filepath.Join(dir, "lodge-launch")
	if out, err := exec.Command("../../launch/helper/build.sh", helper).CombinedOutput(); err != nil {
		sandbox.Missing(t, fmt.Sprintf("the launch helper cannot be built here: %v: %s", err, out))
	}
	door := filepath.Join(dir, "lodge-door.so")
	if out, err := exec.Command("door/build.sh", door).CombinedOutput(); err != nil {
		sandbox.Missing(t, fmt.Sprintf("the library for network cards cannot be built here: %v: %s", err, out))
	}
	layout, err := cgroup.Detect()
	if err != nil {
		t.Skip(err)
	}
	r.tree, err = layout.Open("lodge-uml-" + ids.New())
	must(t, err)
	t.Cleanup(func() {
		if err := r.tree.Destroy(context.Background()); err != nil {
			t.Error(err)
		}
	})
	busyboxImage(t, r.base)
	r.kernel = kernelFor(t, dir)
	r.keeper, r.kill = enginetest.Keeper(t)
	r.engine = New(Options{Launch: helper, Door: door, Tree: r.tree, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		Kernel: func(context.Context) (engine.Kernel, error) { return r.kernel, nil }})
	return r
}

// kernelFor takes the kernel out of its packages, unless somebody did already.
func kernelFor(t testing.TB, dir string) engine.Kernel {
	t.Helper()
	name, agent, log := kernelName, enginetest.Build(t, "lodge/cmd/lodge-agent"), slog.New(slog.DiscardHandler)
	if n := os.Getenv("LODGE_TEST_KERNEL"); n != "" {
		name = n
	}
	have := os.Getenv(kernelsFolder)
	if have == "" {
		have = dir
		t.Setenv("http_proxy", sandbox.Proxy(t))
	}
	store, err := kernels.OpenStore(filepath.Join(have, "kernels"), agent, log)
	must(t, err)
	if have == dir {
		source := debian.New(filepath.Join(dir, "cache"))
		if err := source.Check(name); err != nil {
			t.Skip(err)
		}
		_, err = store.Build(t.Context(), source, name, func(string, uint64, uint64, string, string) {})
		must(t, err)
	}
	b, err := store.For(t.Context(), "um", image.Info{}, name)
	must(t, err)
	return engine.Kernel{Name: b.Name, Version: b.Version, Path: b.Path, Initrd: b.Initrd, Support: b.Support, Modules: b.Modules}
}

// busyboxImage makes the smallest image that a guest can live in.
func busyboxImage(t testing.TB, path string) {
	t.Helper()
	static, err := exec.LookPath("busybox")
	if err != nil {
		sandbox.Missing(t, "busybox is not installed: scripts/deps.sh test")
	}
	dir := filepath.Join(t.TempDir(), "tree")
	for _, d := range []string{"bin", "sbin", "etc", "proc", "sys", "dev", "run", "root", "tmp", "home/ann"} {
		must(t, os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	must(t, os.Chmod(filepath.Join(dir, "tmp"), 0o1777))
	must(t, os.Chown(filepath.Join(dir, "home/ann"), 1000, 1000))
	text, err := os.ReadFile(static)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "bin/busybox"), text, 0o755))
	if out, err := exec.Command("chroot", dir, "/bin/busybox", "--install", "-s", "/bin").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	must(t, os.Symlink("/bin/busybox", filepath.Join(dir, "sbin/init")))
	for name, text := range map[string]string{
		"etc/passwd":  "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000:Ann:/home/ann:/bin/sh\n",
		"etc/group":   "root:x:0:\nann:x:1000:\naudio:x:29:ann,bob\n",
		"etc/inittab": "::sysinit:/bin/echo booted\n::ctrlaltdel:/bin/reboot\n::shutdown:/bin/echo going down\n",
	} {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	if out, err := exec.Command("mkfs.erofs", "--quiet", path, dir).CombinedOutput(); err != nil {
		sandbox.Missing(t, fmt.Sprintf("no image: %v: %s: scripts/deps.sh test", err, out))
	}
	must(t, os.Chmod(path, 0o644))
}

// guest makes a record and its parts.
func (r *rig) guest(t testing.TB, spec guest.Spec) (guest.Guest, engine.Parts) {
	t.Helper()
	r.mu.Lock()
	r.next++
	n := r.next
	r.mu.Unlock()
	if spec.Memory == 0 {
		spec.Memory = 128 << 20
	}
	if spec.Processes == 0 {
		spec.Processes = 200
	}
	if spec.Disk == 0 {
		spec.Disk = 256 << 20
	}
	g := guest.Guest{Meta: model.Meta{ID: ids.New(), Name: fmt.Sprintf("guest%d", n)}, Spec: spec}
	dir := filepath.Join(t.TempDir(), "guest")
	volume := filepath.Join(dir, "volume")
	must(t, os.MkdirAll(volume, 0o711))
	must(t, layer.Create(t.Context(), volume, spec.Disk))
	info, err := r.engine.Info(t.Context())
	must(t, err)
	p := engine.Parts{Dir: dir, Cgroup: g.ID, IDBase: 1_500_000_000 + uint32(os.Getpid()%500+n)*65536, Domain: "lodge.internal", Kernel: r.kernel,
		Root: engine.Root{Base: r.base, Volume: filepath.Join(volume, "root.ext4"), Quota: spec.Disk}, CPUSet: []int{n % 2}}
	must(t, r.tree.Create(p.Cgroup, info.Overhead.Limits(g.Spec, "")))
	return g, p
}

// nic is a network card on a bridge of the test's own.
func (r *rig) nic(t testing.TB, n int) engine.NIC {
	t.Helper()
	r.net.Do(func() {
		for _, c := range []string{"ip link add br0 type bridge", "ip addr add 10.67.0.1/16 dev br0", "ip link set br0 up"} {
			if out, err := exec.Command("sh", "-c", c).CombinedOutput(); err != nil {
				t.Fatalf("%s: %v: %s", c, err, out)
			}
		}
		r.t.Cleanup(func() {
			if out, err := exec.Command("ip", "link", "del", "br0").CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	})
	return engine.NIC{Name: "eth0", MAC: fmt.Sprintf("02:00:00:00:00:%02x", n), Device: fmt.Sprintf("lgt%dn0", n), Master: "br0", MTU: 1400,
		IPv4: netip.MustParsePrefix(fmt.Sprintf("10.67.1.%d/16", n)), Gateway4: netip.MustParseAddr("10.67.0.1")}
}

// boot starts a guest and connects to it.
func (r *rig) boot(t testing.TB, g guest.Guest, p engine.Parts) *Machine {
	t.Helper()
	prog, err := r.engine.Program(g, p)
	must(t, err)
	h, err := r.keeper.Start(context.Background(), g.ID, prog)
	must(t, err)
	m, err := r.engine.Connect(context.Background(), g, p, h)
	must(t, err)
	return m.(*Machine)
}

func (r *rig) end(t testing.TB, m *Machine) {
	t.Helper()
	must(t, m.Kill(context.Background()))
	_, err := m.held.Wait(context.Background())
	must(t, err)
	must(t, r.keeper.Forget(context.Background(), m.g.ID))
}

// TestEngine holds this engine to the suite of all engines.
func TestEngine(t *testing.T) {
	r := newRig(t)
	last := r.engine
	enginetest.Run(t, enginetest.Harness{Engine: r.engine, Keepers: r.keeper, KillKeeper: r.kill,
		Guest: func(t *testing.T, spec guest.Spec) (guest.Guest, engine.Parts) { return r.guest(t, spec) },
		NIC:   func(t *testing.T, n int) engine.NIC { return r.nic(t, n) }, OwnKernel: true, Late: true,
		Anew: func(t *testing.T) engine.Engine {
			ls := &last.lines
			ls.mu.Lock()
			all := slices.Collect(maps.Values(ls.of))
			ls.mu.Unlock()
			for _, l := range all {
				must(t, l.Close())
			}
			last = New(r.engine.o)
			return last
		}})
}
