// Package compiled is the source of a kernel that Lodge compiles itself from
// the source that Debian packages, configured for guests and for nothing else,
// with as many processors as they are given.
package compiled

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"lodge/internal/agent"
	"lodge/internal/agent/initrd"
	"lodge/internal/base/errs"
	"lodge/internal/base/fsx"
	"lodge/internal/base/tool"
	"lodge/internal/base/tool/apt"
	"lodge/internal/base/units"
	"lodge/internal/kernels"
	"lodge/internal/model/kernel"
)

const (
	op       = "kernel.build"
	name     = "um/lodge"
	codename = "sid"           // where the newest source is
	patience = 2 * time.Minute // for a kernel that takes a second
	tree     = 3 << 30         // bytes that the source takes while it is compiled
)

//go:embed fragment.config
var fragment []byte

// What a kernel with several processors needs that its source lacks.
//
//go:embed patches
var patches embed.FS

// single is for a source that the patches do not fit.
const single = "# CONFIG_SMP is not set\n"

// Source compiles the kernel of paravirtual guests from the source that Debian has.
type Source struct {
	cache string
	agent string // the guests' first program
	apt   string // the host's apt configuration
	turn  chan struct{}
}

// New returns the source; a new kernel is tried out with agent as its first
// program. What it fetched and compiled is kept below dir until
// the kernel is done, so that a build that was cut off goes on where it was.
func New(dir, agent string) *Source {
	return &Source{cache: dir, agent: agent, apt: "/etc/apt", turn: make(chan struct{}, 1)}
}

// Makes names the one kernel that is compiled.
func (*Source) Makes() []string { return []string{name} }

// Check says Unsupported when the host lacks what compiles kernels, and NoSpace
// when the source would not fit.
func (s *Source) Check(wanted string) error {
	if wanted != name {
		return errs.Bad("kernel", wanted+" is not made here", "use "+name)
	}
	if runtime.GOARCH != "amd64" {
		return &errs.Error{Op: op, Kind: errs.Unsupported, Msg: "this kernel is only compiled on amd64, and this host is " + runtime.GOARCH}
	}
	err := tool.Need(op, map[string]string{
		"gcc": "gcc", "make": "make", "flex": "flex", "bison": "bison", "bc": "bc", "xz": "xz-utils", "tar": "tar", "strip": "binutils",
		"perl": "perl", "patch": "patch", "apt-get": "apt", "dpkg-deb": "dpkg",
	})
	if err != nil {
		return err
	}
	if _, err := os.Stat("/usr/include/stdio.h"); err != nil {
		return &errs.Error{Op: op, Kind: errs.Unsupported, Msg: "this host lacks the C library's headers", Hint: "apt-get install libc6-dev", Err: err}
	}
	return apt.Check(s.apt, codename)
}

// Make fetches the newest source, configures it and compiles it.
func (s *Source) Make(ctx context.Context, _, dir, work string, told kernels.Told) (made kernels.Made, err error) {
	told("waiting for another build", 0, 0, "", "")
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return made, ctx.Err()
	}
	if err := os.MkdirAll(s.cache, 0o755); err != nil {
		return made, err
	}
	free, err := fsx.Free(s.cache)
	if err != nil {
		return made, err
	}
	if free < tree {
		return made, &errs.Error{Op: op, Kind: errs.NoSpace, Msg: "a kernel's source needs " + units.Bytes(tree) + " while it is compiled, and " + units.Bytes(free) + " are free",
			Hint: "free some space, or use the kernel of Debian's packages: lodge kernel build um/debian-sid"}
	}
	source, pkg, err := s.source(ctx, work, told)
	if err != nil {
		return made, err
	}
	version, err := compile(ctx, source, told)
	if err != nil {
		return made, err
	}
	binary := filepath.Join(work, "program")
	if err := tool.Run(ctx, op, nil, nil, "strip", "-o", binary, filepath.Join(source, "linux")); err != nil {
		return made, err
	}
	made = kernels.Made{Info: kernel.Info{Version: version, From: pkg.Name + " " + pkg.Version}, Kernel: "kernel"}
	if made.Support, err = kernels.CopyProgram("/", binary, dir); err != nil {
		return made, err
	}
	if err := s.try(ctx, filepath.Join(dir, made.Kernel), work, told); err != nil {
		return made, err
	}
	return made, os.RemoveAll(s.cache)
}

// try boots the kernel as far as its first program, the agent, which then
// complains that nobody told it what guest it is in: the kernel is preferred to
// those of packages, and must not be where it cannot run. It was linked with
// this host's own libraries, so it runs as it is.
func (s *Source) try(ctx context.Context, program, work string, told kernels.Told) error {
	told("trying it out", 0, 0, "", "")
	first, err := os.ReadFile(s.agent)
	if err != nil {
		return err
	}
	var archive bytes.Buffer
	if err := initrd.Base(&archive, first, nil); err != nil {
		return err
	}
	at := filepath.Join(work, "initrd")
	if err := os.WriteFile(at, archive.Bytes(), 0o600); err != nil {
		return err
	}
	args := []string{"mem=96M", "initrd=" + at, "con=null", "ssl=null", "con0=null,fd:1", "panic=1", "noreboot"}
	runs, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	up, panicked := false, ""
	err = tool.Run(runs, op, []string{"HOME=" + work}, func(line string) {
		if strings.Contains(line, agent.ConfigPath) {
			up = true
			cancel()
		} else if strings.HasPrefix(line, "Kernel panic") {
			panicked = ": " + line
			cancel()
		}
	}, program, args...)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case !up:
		return &errs.Error{Op: op, Kind: errs.Unsupported, Msg: "the kernel was compiled, but does not run on this host" + panicked, Err: err,
			Hint: "use the kernel of Debian's packages: lodge kernel build um/debian-sid"}
	}
	return nil
}

// source returns the folder of the newest source, which is there already if an
// earlier build was cut off.
func (s *Source) source(ctx context.Context, work string, told kernels.Told) (dir string, pkg apt.Package, err error) {
	root, err := apt.Open(ctx, op, filepath.Join(s.cache, "apt"), s.apt, codename)
	if err != nil {
		return "", pkg, err
	}
	said := func(step string, percent uint64) { told(step, percent, 100, "percent", "") }
	if err := root.Update(ctx, said); err != nil {
		return "", pkg, err
	}
	meta, err := root.Newest(ctx, "linux-source")
	if err != nil {
		return "", pkg, err
	}
	if len(meta.Depends) == 0 {
		return "", pkg, fmt.Errorf("%s %s depends on no source", meta.Name, meta.Version)
	}
	if pkg, err = root.Newest(ctx, meta.Depends[0]); err != nil {
		return "", pkg, err
	}
	dir = filepath.Join(s.cache, pkg.Name+"_"+pkg.Version)
	if _, err := os.Stat(dir); err == nil {
		return dir, pkg, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", pkg, err
	}
	files, err := root.Fetch(ctx, said, pkg.Name)
	if err != nil {
		return "", pkg, err
	}
	told("extracting", 0, 0, "", filepath.Base(files[0]))
	if err := root.Extract(ctx, files[0], work); err != nil {
		return "", pkg, err
	}
	packed, err := filepath.Glob(filepath.Join(work, "usr/src/linux-source-*.tar.xz"))
	if err != nil || len(packed) != 1 {
		return "", pkg, errors.Join(err, fmt.Errorf("%s %s has %d sources", pkg.Name, pkg.Version, len(packed)))
	}
	half := dir + ".half"
	if err := errors.Join(os.RemoveAll(half), os.Mkdir(half, 0o755)); err != nil {
		return "", pkg, err
	}
	if err := tool.Run(ctx, op, nil, nil, "tar", "-C", half, "--strip-components=1", "-xJf", packed[0]); err != nil {
		return "", pkg, err
	}
	return dir, pkg, os.Rename(half, dir)
}

// mend applies the patches to a source that does not have them yet, all or
// none, and reports whether it has them.
func mend(ctx context.Context, source string) (bool, error) {
	names, err := fs.Glob(patches, "patches/*.patch")
	if err != nil {
		return false, err
	}
	run := func(file string, args ...string) error {
		args = append([]string{"-d", source, "-p1", "-s", "-f", "-r", "-", "-i", file}, args...)
		return tool.Run(ctx, op, []string{"LC_ALL=C"}, nil, "patch", args...)
	}
	var missing []string
	for _, name := range names {
		text, err := patches.ReadFile(name)
		if err != nil {
			return false, err
		}
		file := filepath.Join(source, "lodge-"+filepath.Base(name))
		if err := os.WriteFile(file, text, 0o644); err != nil {
			return false, err
		}
		if run(file, "-R", "--dry-run") == nil {
			continue // it has it
		}
		if run(file, "--dry-run") != nil {
			return false, ctx.Err()
		}
		missing = append(missing, file)
	}
	for _, file := range missing {
		if err := run(file); err != nil {
			return false, err
		}
	}
	return true, nil
}

// compile makes the program "linux" in source, gently: guests run beside it.
func compile(ctx context.Context, source string, told kernels.Told) (version string, err error) {
	told("configuring", 0, 0, "", "")
	wanted := fragment
	fits, err := mend(ctx, source)
	if err != nil {
		return "", err
	}
	if !fits {
		told("configuring", 0, 0, "", "for one processor: the source is not one that Lodge's patches are for")
		wanted = append(bytes.Clone(fragment), single...)
	}
	if err := os.WriteFile(filepath.Join(source, "lodge.config"), wanted, 0o644); err != nil {
		return "", err
	}
	run := func(line func(string), args ...string) error {
		args = append([]string{"-n", "15", "make", "-C", source, "ARCH=um"}, args...)
		return tool.Run(ctx, op, []string{"LC_ALL=C.UTF-8", "KBUILD_BUILD_USER=lodge", "KBUILD_BUILD_HOST=lodge"}, line, "nice", args...)
	}
	if err := run(nil, "defconfig"); err != nil {
		return "", err
	}
	merge := []string{"-n", "15", "env", "-C", source, "ARCH=um", "scripts/kconfig/merge_config.sh", "-m", ".config", "lodge.config"}
	if err := tool.Run(ctx, op, nil, nil, "nice", merge...); err != nil {
		return "", err
	}
	if err := run(nil, "olddefconfig"); err != nil {
		return "", err
	}
	files := uint64(0)
	err = run(func(line string) {
		if what, file, ok := strings.Cut(strings.TrimSpace(line), " "); ok && (what == "CC" || what == "AR" || what == "LD") {
			files++
			told("compiling", files, 0, "", strings.TrimSpace(file))
		}
	}, "-j"+strconv.Itoa(runtime.NumCPU()), "linux")
	if err != nil {
		return "", err
	}
	text, err := os.ReadFile(filepath.Join(source, "include/config/kernel.release"))
	return strings.TrimSpace(string(text)), err
}
