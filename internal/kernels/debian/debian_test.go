package debian

import (
	"debug/elf"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"lodge/internal/base/errs"
	"lodge/internal/kernels"
	"lodge/internal/model/image"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestCheckNamesFieldAndFix(t *testing.T) {
	err := New(t.TempDir()).Check("linux/debian-11")
	e, ok := err.(*errs.Error)
	if !ok || e.Kind != errs.Invalid || e.Field != "kernel" || !strings.Contains(e.Hint, "linux/debian-12") {
		t.Error(err)
	}
	s := New(t.TempDir())
	s.apt = t.TempDir() // a host whose apt knows no Debian
	if err := s.Check("linux/debian-12"); !errs.Is(err, errs.Unsupported) {
		t.Error(err)
	}
}

func TestTheMetapackagesKernel(t *testing.T) {
	if got := standsFor([]string{"linux-base-cloud-amd64", "linux-image-7.2.13+deb14-cloud-amd64"}); got != "linux-image-7.2.13+deb14-cloud-amd64" {
		t.Error(got)
	}
	if got := standsFor([]string{"libc6"}); got != "" {
		t.Error(got)
	}
}

// A build needs a mirror, so it runs with LODGE_TEST_LONG only;
// LODGE_TEST_KERNELS keeps what it makes in that folder.
func TestBuild(t *testing.T) {
	if os.Getenv("LODGE_TEST_LONG") == "" {
		t.Skip("fetches kernels from the network: set LODGE_TEST_LONG=1")
	}
	dir := os.Getenv("LODGE_TEST_KERNELS")
	if dir == "" {
		dir = t.TempDir()
	}
	agent := filepath.Join(t.TempDir(), "agent")
	must(t, os.WriteFile(agent, []byte("the agent"), 0o755))
	store, err := kernels.OpenStore(filepath.Join(dir, "kernels"), agent, slog.New(slog.DiscardHandler))
	must(t, err)
	s := New(filepath.Join(dir, "cache"))
	for _, name := range s.Makes() {
		t.Run(strings.ReplaceAll(name, "/", "-"), func(t *testing.T) { buildOne(t, store, s, name) })
	}
}

func buildOne(t *testing.T, store *kernels.Store, s *Source, name string) {
	last := ""
	built, err := store.Build(t.Context(), s, name, func(step string, done, total uint64, _, note string) {
		if step != last {
			t.Log(step, done, total, note)
			last = step
		}
	})
	must(t, err)
	t.Logf("%+v", built)
	sort, _, _ := strings.Cut(name, "/")
	b, err := store.For(t.Context(), sort, image.Info{}, name)
	must(t, err)
	t.Logf("%+v", b)
	if !slices.Contains(built.Info.Modules, "erofs") || !slices.Contains(built.Info.Modules, "overlay") {
		t.Errorf("modules: %v", built.Info.Modules)
	}
	for _, f := range append(b.Support, b.Path, b.Initrd) {
		if fi, err := os.Stat(f); err != nil || fi.Size() == 0 {
			t.Errorf("%s: %v", f, err)
		}
	}
	if sort != "um" {
		return
	}
	if f, err := elf.Open(b.Path); err != nil || f.Type != elf.ET_EXEC && f.Type != elf.ET_DYN {
		t.Errorf("the kernel is no program: %v", err)
	}
	if len(b.Support) != 3 || !strings.HasPrefix(filepath.Base(b.Support[0]), "ld-linux") {
		t.Errorf("support: %v", b.Support)
	}
}
