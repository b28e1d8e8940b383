// Package debian is the source of images that are built from Debian's own
// packages, fetched from the mirror that the host itself uses.
package debian

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"lodge/internal/base/errs"
	"lodge/internal/base/tool"
	"lodge/internal/base/tool/apt"
	"lodge/internal/images"
	"lodge/internal/model/image"
)

// Source makes images of Debian.
type Source struct {
	cache string // of fetched packages, one folder per codename
	apt   string // the host's apt configuration

	mu    sync.Mutex
	turns map[string]chan struct{} // one build of a codename at a time: apt locks its cache
}

// New returns the source; packages are kept in the folder "debian" below dir,
// so that a second build, or one after a failure, fetches only what is new.
func New(dir string) *Source {
	return &Source{cache: filepath.Join(dir, "debian"), apt: "/etc/apt", turns: map[string]chan struct{}{}}
}

// Name is "debian".
func (*Source) Name() string { return "debian" }

// codenames are the releases that are built, by number.
func codenames() map[string]string {
	return map[string]string{"12": "bookworm", "13": "trixie", "sid": "sid"}
}

// Check says Invalid for a release or variant that isn't built, and
// Unsupported when the host lacks a program, Debian's keys or a mirror.
func (s *Source) Check(spec image.Spec) error {
	if codenames()[spec.Release] == "" {
		return errs.Bad("release", fmt.Sprintf("debian/%s is not built here", spec.Release), "use debian/12, debian/13 or debian/sid")
	}
	if spec.Variant != image.Minimal && spec.Variant != image.Standard && spec.Variant != "" {
		return errs.Bad("variant", fmt.Sprintf("%q is not a variant", spec.Variant), "use minimal or standard")
	}
	err := tool.Need("image.build", map[string]string{"mmdebstrap": "mmdebstrap", "mkfs.erofs": "erofs-utils", "apt-get": "apt"})
	if err != nil {
		return err
	}
	return apt.Check(s.apt, codenames()[spec.Release])
}

// packages of a variant besides the essential ones and apt. Recommended
// packages are not taken.
func packages(v image.Variant) []string {
	list := []string{"systemd-sysv", "dbus", "iproute2", "procps", "passwd", "tzdata"}
	if v == image.Minimal {
		return list
	}
	return append(list,
		"libpam-systemd",
		"udev", "kmod", // devices and their modules, when the same image boots with a kernel of its own
		"openssh-server", "cloud-init", "sudo", "cron",
		"iputils-ping", "netbase", "ca-certificates", "curl",
		"less", "nano", "bash-completion")
}

// base is mmdebstrap's name of the set that the packages are added to: only
// what is essential, or all that has the priority "required" too.
func base(v image.Variant) string {
	if v == image.Minimal {
		return "apt"
	}
	return "required"
}

// Make builds the tree with mmdebstrap, fits it for guests, and packs it.
func (s *Source) Make(ctx context.Context, spec image.Spec, dir, out string, told images.Told) (image.Info, error) {
	codename := codenames()[spec.Release]
	done, err := s.turn(ctx, codename, told)
	if err != nil {
		return image.Info{}, err
	}
	defer done()
	tree := filepath.Join(dir, "tree")
	mirrors := apt.Mirrors(s.apt, codename)
	if err := s.bootstrap(ctx, spec.Variant, codename, mirrors, tree, told); err != nil {
		return image.Info{}, err
	}
	told("fitting for guests", 0, 0, "", "")
	epoch, err := released(tree)
	if err != nil {
		return image.Info{}, err
	}
	if err := fit(tree, spec.Variant, mirrors, epoch); err != nil {
		return image.Info{}, fmt.Errorf("fitting the tree for guests: %w", err)
	}
	info, err := images.Inspect(tree)
	if err != nil {
		return image.Info{}, err
	}
	return info, images.WriteEROFS(ctx, tree, out, epoch, told)
}

// turn waits until no other build of the codename runs.
func (s *Source) turn(ctx context.Context, codename string, told images.Told) (done func(), err error) {
	s.mu.Lock()
	turn, ok := s.turns[codename]
	if !ok {
		turn = make(chan struct{}, 1)
		s.turns[codename] = turn
	}
	s.mu.Unlock()
	told("waiting for another build of "+codename, 0, 0, "", "")
	select {
	case turn <- struct{}{}:
		return func() { <-turn }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// bootstrap makes the tree. mmdebstrap runs in namespaces of its own, so that
// what it mounts, the cache among it, is gone with it.
func (s *Source) bootstrap(ctx context.Context, v image.Variant, codename string, mirrors []apt.Mirror, tree string, told images.Told) error {
	cache := filepath.Join(s.cache, codename)
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return err
	}
	args := []string{
		"--mode=root", "--variant=" + base(v), "--format=directory", "--verbose",
		"--include=" + strings.Join(packages(v), ","),
		// The cache is the host's: kept, and read as root, whatever its folders allow.
		"--skip=essential/unlink,cleanup/apt/cache,cleanup/apt/lists",
		`--aptopt=APT::Sandbox::User "root"`,
		`--setup-hook=mkdir -p "$1/var/cache/apt/archives" && mount --bind "$LODGE_CACHE" "$1/var/cache/apt/archives"`,
		// What no mirror has any more is of no use to the next build.
		`--customize-hook=chroot "$1" apt-get --quiet autoclean`,
		`--customize-hook=umount --lazy "$1/var/cache/apt/archives"`,
	}
	for _, o := range apt.Options(ctx) {
		args = append(args, "--aptopt="+o)
	}
	for _, o := range dpkgOptions(v) {
		args = append(args, "--dpkgopt="+o)
	}
	args = append(args, codename, tree)
	for _, m := range mirrors {
		args = append(args, m.Signed())
	}
	p := &progress{told: told}
	err := tool.Run(ctx, "image.build", []string{"LODGE_CACHE=" + cache, "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive"}, p.line, "mmdebstrap", args...)
	if err != nil {
		return apt.Explain("image.build", err, p.troubles)
	}
	return nil
}
