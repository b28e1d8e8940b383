package kernels

import (
	"compress/gzip"
	"debug/elf"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"lodge/internal/base/errs"
)

// Modules are the modules of one version of a kernel, by name as the kernel
// says it: "virtio_pci".
type Modules struct {
	files   map[string]string
	builtin map[string]bool
}

// FindModules looks at the modules below dir, which is called like the
// kernel's version in /lib/modules.
func FindModules(dir string) (Modules, error) {
	m := Modules{files: map[string]string{}, builtin: map[string]bool{}}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		if name, ok := moduleName(d.Name()); ok {
			m.files[name] = path
		}
		return nil
	})
	if err != nil {
		return m, err
	}
	text, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return m, err
	}
	for line := range strings.Lines(string(text)) {
		if name, ok := moduleName(filepath.Base(strings.TrimSpace(line))); ok {
			m.builtin[name] = true
		}
	}
	return m, nil
}

// moduleName is the name of the module that a file holds.
func moduleName(file string) (string, bool) {
	name, rest, ok := strings.Cut(file, ".ko")
	if !ok || rest != "" && rest != ".xz" && rest != ".zst" && rest != ".gz" {
		return "", false
	}
	return strings.ReplaceAll(name, "-", "_"), true
}

// Copy copies the modules of the names, and those that they depend on, into
// dir/modules, uncompressed, and lists them in the order in which they can be
// loaded. One of must that the kernel neither has as a module nor within is an
// error, one of may is passed over.
func (m Modules) Copy(dir string, must, may []string) (order []string, err error) {
	if err := os.MkdirAll(filepath.Join(dir, "modules"), 0o755); err != nil {
		return nil, err
	}
	done := map[string]bool{}
	var add func(name string) error
	add = func(name string) error {
		path, ok := m.files[name]
		if done[name] || m.builtin[name] && !ok {
			return nil
		}
		if !ok {
			return &errs.Error{Op: "kernel.build", Kind: errs.Unsupported, Msg: "the kernel has no module " + name}
		}
		done[name] = true
		relative := filepath.Join("modules", name+".ko")
		depends, err := unpackModule(path, filepath.Join(dir, relative))
		if err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
		for _, d := range depends {
			if err := add(d); err != nil {
				return err
			}
		}
		order = append(order, relative)
		return nil
	}
	for _, name := range must {
		if err := add(name); err != nil {
			return nil, err
		}
	}
	for _, name := range may {
		if _, ok := m.files[name]; !ok {
			continue
		}
		if err := add(name); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// unpackModule writes the module at path to the file to, and returns the names
// of those that it depends on, as it says itself.
func unpackModule(path, to string) (depends []string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var in io.Reader = f
	switch filepath.Ext(path) {
	case ".xz":
		in, err = xz.NewReader(f)
	case ".gz":
		in, err = gzip.NewReader(f)
	case ".zst":
		var z *zstd.Decoder
		if z, err = zstd.NewReader(f); err == nil {
			defer z.Close()
			in = z
		}
	}
	if err != nil {
		return nil, err
	}
	if err := writeFile(to, in, 0o644); err != nil {
		return nil, err
	}
	return dependencies(to)
}

// dependencies reads the names of the modules that must be loaded before the
// one at path, but not those that it would only like to have.
func dependencies(path string) (names []string, err error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	section := f.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("is not a kernel module")
	}
	text, err := section.Data()
	if err != nil {
		return nil, err
	}
	for entry := range strings.SplitSeq(string(text), "\x00") {
		if list, ok := strings.CutPrefix(entry, "depends="); ok && list != "" {
			for name := range strings.SplitSeq(list, ",") {
				names = append(names, strings.ReplaceAll(name, "-", "_"))
			}
		}
	}
	return names, nil
}
