// Package debian is the source of kernels that are taken out of Debian's own
// packages. Nothing is installed, and no script of a package runs.
package debian

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"lodge/internal/base/errs"
	"lodge/internal/base/tool"
	"lodge/internal/base/tool/apt"
	"lodge/internal/kernels"
	"lodge/internal/model/kernel"
)

const op = "kernel.build"

// Source makes kernels of Debian's packages.
type Source struct {
	cache string // lists of packages and what was fetched, one folder per codename
	apt   string // the host's apt configuration
	turn  chan struct{}
}

// New returns the source; what it fetches is kept below dir until it is used.
func New(dir string) *Source {
	return &Source{cache: dir, apt: "/etc/apt", turn: make(chan struct{}, 1)}
}

// recipe is how a kernel is taken out of the packages of a release.
type recipe struct {
	codename string
	take     func(ctx context.Context, p packages) (kernels.Made, error)
}

var recipes = map[string]recipe{
	"linux/debian-12": {"bookworm", machine},
	"linux/debian-13": {"trixie", machine},
	"um/debian-12":    {"bookworm", program},
	"um/debian-13":    {"trixie", program},
	"um/debian-sid":   {"sid", program},
}

// Makes lists the kernels.
func (*Source) Makes() (names []string) {
	for name := range recipes {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Check says Invalid for a kernel that isn't Debian's, and Unsupported when the
// host lacks a program, Debian's keys or a mirror.
func (s *Source) Check(name string) error {
	r, ok := recipes[name]
	if !ok {
		return errs.Bad("kernel", name+" is not made here", "use one of "+strings.Join(s.Makes(), ", "))
	}
	if runtime.GOARCH != "amd64" {
		return &errs.Error{Op: op, Kind: errs.Unsupported, Msg: "kernels are only taken from Debian's packages for amd64, and this host is " + runtime.GOARCH}
	}
	if err := tool.Need(op, map[string]string{"apt-get": "apt", "dpkg-deb": "dpkg"}); err != nil {
		return err
	}
	return apt.Check(s.apt, r.codename)
}

// Make fetches the packages and takes out of them what guests boot.
func (s *Source) Make(ctx context.Context, name, dir, work string, told kernels.Told) (kernels.Made, error) {
	r := recipes[name]
	told("waiting for another build", 0, 0, "", "")
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return kernels.Made{}, ctx.Err()
	}
	root, err := apt.Open(ctx, op, filepath.Join(s.cache, r.codename), s.apt, r.codename)
	if err != nil {
		return kernels.Made{}, err
	}
	said := func(step string, percent uint64) { told(step, percent, 100, "percent", "") }
	if err := root.Update(ctx, said); err != nil {
		return kernels.Made{}, err
	}
	made, err := r.take(ctx, packages{root, dir, work, told, said})
	if err != nil {
		return kernels.Made{}, err
	}
	return made, root.Clean()
}

// packages is what a recipe works with.
type packages struct {
	root *apt.Root
	dir  string // where the kernel goes
	work string
	told kernels.Told
	said apt.Said
}

// unpack fetches packages and extracts them into one tree.
func (p packages) unpack(ctx context.Context, names ...string) (tree string, err error) {
	files, err := p.root.Fetch(ctx, p.said, names...)
	if err != nil {
		return "", err
	}
	tree = filepath.Join(p.work, "tree")
	for i, f := range files {
		p.told("extracting", uint64(i), uint64(len(files)), "", filepath.Base(f))
		if err := p.root.Extract(ctx, f, tree); err != nil {
			return "", err
		}
	}
	return tree, nil
}

// Modules of a machine's kernel that a guest needs before its root is there, or
// when a device comes while it runs and nothing in the guest would load one.
var (
	machineMust = []string{"virtio_pci", "virtio_blk", "virtio_net", "virtio_console", "erofs", "overlay", "ext4"}
	machineMay  = []string{"virtio_rng", "virtio_balloon", "isofs", "pvpanic_pci", "ipv6"}
)

// machine takes out the kernel that Debian makes for rented machines: small,
// and with all that imitated ones have.
func machine(ctx context.Context, p packages) (made kernels.Made, err error) {
	meta, err := p.root.Newest(ctx, "linux-image-cloud-amd64")
	if err != nil {
		return made, err
	}
	name := standsFor(meta.Depends)
	if name == "" {
		return made, fmt.Errorf("%s %s depends on no kernel", meta.Name, meta.Version)
	}
	pkg, err := p.root.Newest(ctx, name)
	if err != nil {
		return made, err
	}
	tree, err := p.unpack(ctx, name)
	if err != nil {
		return made, err
	}
	version := strings.TrimPrefix(name, "linux-image-")
	made.Info = kernel.Info{Version: version, From: pkg.Name + " " + pkg.Version}
	made.Kernel = "kernel"
	if err := os.Rename(filepath.Join(tree, "boot/vmlinuz-"+version), filepath.Join(p.dir, made.Kernel)); err != nil {
		return made, err
	}
	modules := filepath.Join(tree, "lib/modules", version)
	if _, err := os.Stat(modules); err != nil {
		modules = filepath.Join(tree, "usr/lib/modules", version)
	}
	return p.modules(ctx, made, modules, machineMust, machineMay)
}

// standsFor finds the package that a metapackage stands for.
func standsFor(depends []string) string {
	for _, d := range depends {
		if strings.HasPrefix(d, "linux-image-") {
			return d
		}
	}
	return ""
}

// Modules of a program's kernel; its disks are always within.
var (
	programMust = []string{"erofs", "overlay", "ext4"}
	programMay  = []string{"ipv6"}
)

// program takes out the kernel that is a program, with the libraries of its
// own release: the host's may be too old for it.
func program(ctx context.Context, p packages) (made kernels.Made, err error) {
	pkg, err := p.root.Newest(ctx, "user-mode-linux")
	if err != nil {
		return made, err
	}
	tree, err := p.unpack(ctx, "user-mode-linux", "libc6", "libgcc-s1")
	if err != nil {
		return made, err
	}
	binary, err := filepath.Glob(filepath.Join(tree, "usr/bin/linux*"))
	if err != nil || len(binary) != 1 {
		return made, errors.Join(err, fmt.Errorf("user-mode-linux %s has %d programs", pkg.Version, len(binary)))
	}
	made.Kernel = "kernel"
	if made.Support, err = kernels.CopyProgram(tree, binary[0], p.dir); err != nil {
		return made, err
	}
	folders, err := filepath.Glob(filepath.Join(tree, "usr/lib/*/modules/*"))
	if err != nil || len(folders) != 1 {
		return made, errors.Join(err, fmt.Errorf("user-mode-linux %s has modules of %d versions", pkg.Version, len(folders)))
	}
	made.Info = kernel.Info{Version: filepath.Base(folders[0]), From: pkg.Name + " " + pkg.Version}
	return p.modules(ctx, made, folders[0], programMust, programMay)
}

// modules copies those that an initrd needs, and packs all for the guest.
func (p packages) modules(ctx context.Context, made kernels.Made, folder string, must, may []string) (kernels.Made, error) {
	found, err := kernels.FindModules(folder)
	if err != nil {
		return made, err
	}
	if made.Modules, err = found.Copy(p.dir, must, may); err != nil {
		return made, err
	}
	for _, m := range made.Modules {
		made.Info.Modules = append(made.Info.Modules, strings.TrimSuffix(filepath.Base(m), ".ko"))
	}
	made.Extra, err = p.extra(ctx, folder)
	return made, err
}

// volume is the UUID of what extra packs: with a random one, equal modules
// would not give equal files.
const volume = "6c6f6467-6500-4000-8000-000000000001"

// extra packs all modules as a layer that goes below a guest's root, so that
// modprobe finds them where it looks. Where the host has no program that lists
// their dependencies the guest gets none.
func (p packages) extra(ctx context.Context, folder string) (string, error) {
	if tool.Need(op, map[string]string{"depmod": "kmod", "mkfs.erofs": "erofs-utils"}) != nil {
		return "", nil
	}
	p.told("packing modules", 0, 0, "", "")
	root := filepath.Join(p.work, "modules")
	to := filepath.Join(root, "usr/lib/modules", filepath.Base(folder))
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return "", err
	}
	if err := os.Rename(folder, to); err != nil {
		return "", err
	}
	// depmod looks for them below lib, which is a link to usr/lib in guests.
	lib := filepath.Join(root, "lib")
	if err := os.Symlink("usr/lib", lib); err != nil {
		return "", err
	}
	if err := tool.Run(ctx, op, nil, nil, "depmod", "-b", root, filepath.Base(folder)); err != nil {
		return "", err
	}
	if err := os.Remove(lib); err != nil {
		return "", err
	}
	return "modules.erofs", tool.Run(ctx, op, []string{"SOURCE_DATE_EPOCH=0"}, nil, "mkfs.erofs", "--quiet", "-zlz4", "-U", volume, filepath.Join(p.dir, "modules.erofs"), root)
}
