package kernels

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"lodge/internal/base/errs"
	"lodge/internal/model/image"
	"lodge/internal/model/kernel"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// maker makes kernels whose files hold text.
type maker struct {
	text string
	err  error
	then func()
}

func (maker) Makes() []string    { return []string{"linux/test"} }
func (maker) Check(string) error { return nil }
func (m maker) Make(_ context.Context, _, dir, _ string, told Told) (Made, error) {
	told("making", 1, 2, "", "")
	for _, f := range []string{"kernel", "first.ko", "second.ko"} {
		if err := os.WriteFile(filepath.Join(dir, f), []byte(f+m.text), 0o644); err != nil {
			return Made{}, err
		}
	}
	if m.then != nil {
		m.then()
	}
	return Made{Info: kernel.Info{Version: m.text}, Kernel: "kernel", Modules: []string{"first.ko", "second.ko"}}, m.err
}

func quiet(string, uint64, uint64, string, string) {}

func open(t *testing.T) (*Store, string) {
	t.Helper()
	dir, agent := t.TempDir(), filepath.Join(t.TempDir(), "agent")
	must(t, os.WriteFile(agent, []byte("the agent's program"), 0o755))
	s, err := OpenStore(dir, agent, slog.New(slog.DiscardHandler))
	must(t, err)
	return s, dir
}

func content(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	return string(b)
}

func TestBuildPutsAKernelInPlaceAtOnce(t *testing.T) {
	s, dir := open(t)
	one, err := s.Build(t.Context(), maker{text: "one"}, "linux/test", quiet)
	must(t, err)
	b, err := s.For(t.Context(), "linux", image.Info{}, "")
	must(t, err)
	if b.Name != "linux/test" || b.Version != "one" || content(t, b.Path) != "kernelone" {
		t.Errorf("%+v", b)
	}
	held, err := os.Open(b.Path) // as a guest that runs holds it
	must(t, err)
	defer held.Close()
	two, err := s.Build(t.Context(), maker{text: "two"}, "linux/test", quiet)
	must(t, err)
	again, err := s.For(t.Context(), "linux", image.Info{}, "linux/test")
	must(t, err)
	if one.Digest == two.Digest || again.Path != b.Path || again.Version != "two" || content(t, b.Path) != "kerneltwo" {
		t.Errorf("%+v %+v", again, two)
	}
	if old, err := io.ReadAll(held); err != nil || string(old) != "kernelone" {
		t.Errorf("a guest's own file became %q, %v", old, err)
	}
	left, err := os.ReadDir(filepath.Join(dir, "tmp"))
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

func TestABuildThatFailsLeavesWhatWasThere(t *testing.T) {
	s, dir := open(t)
	_, err := s.Build(t.Context(), maker{text: "one"}, "linux/test", quiet)
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	for _, c := range []struct {
		ctx  context.Context
		m    maker
		kind errs.Kind
	}{
		{t.Context(), maker{text: "two", err: errors.New("no")}, errs.Internal},
		{t.Context(), maker{text: "two", err: &errs.Error{Kind: errs.Denied}}, errs.Denied},
		{ctx, maker{text: "two", then: cancel}, errs.Cancelled},
	} {
		if _, err := s.Build(c.ctx, c.m, "linux/test", quiet); errs.KindOf(err) != c.kind {
			t.Errorf("%v, want %v", err, c.kind)
		}
	}
	b, err := s.Boot(t.Context(), "linux/test")
	must(t, err)
	if b.Version != "one" || content(t, b.Path) != "kernelone" {
		t.Errorf("%+v", b)
	}
	if left, err := os.ReadDir(filepath.Join(dir, "tmp")); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
	must(t, os.MkdirAll(filepath.Join(dir, "tmp/build-9/kernel"), 0o755))
	_, err = OpenStore(dir, s.agent, s.log)
	must(t, err)
	if left, err := os.ReadDir(filepath.Join(dir, "tmp")); err != nil || len(left) != 0 {
		t.Errorf("a build that a crash cut off is there still: %v %v", left, err)
	}
}

func TestTheInitrdGoesWithTheAgent(t *testing.T) {
	s, _ := open(t)
	_, err := s.Build(t.Context(), maker{text: "one"}, "linux/test", quiet)
	must(t, err)
	b, err := s.Boot(t.Context(), "linux/test")
	must(t, err)
	first := []byte(content(t, b.Initrd))
	at := 0
	for _, want := range []string{"the agent's program", "first.koone", "second.koone", "first.ko\nsecond.ko\n"} {
		i := bytes.Index(first[at:], []byte(want))
		if i < 0 {
			t.Fatalf("the initrd lacks %q after byte %d", want, at)
		}
		at += i
	}
	if again, err := s.Boot(t.Context(), "linux/test"); err != nil || again.Initrd != b.Initrd {
		t.Errorf("%+v %v", again, err)
	}
	must(t, os.WriteFile(s.agent, []byte("the next agent"), 0o755))
	next, err := s.Boot(t.Context(), "linux/test")
	must(t, err)
	if next.Initrd == b.Initrd || !strings.Contains(content(t, next.Initrd), "the next agent") {
		t.Error("the initrd has the old agent still")
	}
	if _, err := os.Stat(b.Initrd); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the old agent's initrd is left: %v", err)
	}
}

func TestADamagedKernelIsNotBooted(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, dir string){
		"another byte": func(t *testing.T, dir string) {
			must(t, os.WriteFile(filepath.Join(dir, "kernel"), []byte("kernelonf"), 0o644))
		},
		"a file less":     func(t *testing.T, dir string) { must(t, os.Remove(filepath.Join(dir, "second.ko"))) },
		"half a manifest": func(t *testing.T, dir string) { must(t, os.Truncate(filepath.Join(dir, "manifest.json"), 20)) },
	} {
		t.Run(name, func(t *testing.T) {
			s, dir := open(t)
			_, err := s.Build(t.Context(), maker{text: "one"}, "linux/test", quiet)
			must(t, err)
			damage(t, filepath.Join(dir, "linux/test"))
			_, err = s.For(t.Context(), "linux", image.Info{}, "")
			e, ok := err.(*errs.Error)
			if !ok || e.Kind != errs.Unsupported || !strings.Contains(e.Hint, "lodge kernel build linux/test") {
				t.Fatal(err)
			}
			_, err = s.Build(t.Context(), maker{text: "one"}, "linux/test", quiet)
			must(t, err)
			_, err = s.For(t.Context(), "linux", image.Info{}, "")
			must(t, err)
		})
	}
}

func TestRemove(t *testing.T) {
	s, _ := open(t)
	_, err := s.Build(t.Context(), maker{text: "one"}, "linux/test", quiet)
	must(t, err)
	must(t, s.Remove("linux/test"))
	must(t, s.Remove("linux/test"))
	if names, err := s.Names(); err != nil || len(names) != 0 {
		t.Errorf("%v %v", names, err)
	}
	if _, err := s.For(t.Context(), "linux", image.Info{}, ""); !errs.Is(err, errs.NotFound) {
		t.Error(err)
	}
}

func TestNamesBecomePaths(t *testing.T) {
	s, dir := open(t)
	for _, name := range []string{"", "linux", "/etc", "../x", "linux/..", "linux/../../x", "tmp/x", "cache/x", "linux/a/b", "linux/", "linux/.x", "./linux/x"} {
		if err := s.Remove(name); !errs.Is(err, errs.Invalid) {
			t.Errorf("%q: %v", name, err)
		}
		if _, err := s.Build(t.Context(), maker{}, name, quiet); !errs.Is(err, errs.Invalid) {
			t.Errorf("%q: %v", name, err)
		}
	}
	must(t, os.MkdirAll(filepath.Join(dir, "linux/unfinished"), 0o755))
	if names, err := s.Names(); err != nil || len(names) != 0 {
		t.Errorf("a folder without a manifest counts: %v %v", names, err)
	}
}

// A program that this machine has is good enough to see what is copied with it.
func TestAProgramIsCopiedWithItsLibraries(t *testing.T) {
	root, dir := t.TempDir(), t.TempDir()
	self, err := os.Executable()
	must(t, err)
	loader, libraries, err := needs("/bin/sh")
	if err != nil || loader == "" {
		t.Skipf("this machine's sh is not a program with libraries: %v", err)
	}
	must(t, os.MkdirAll(filepath.Join(root, "usr/lib64"), 0o755))
	for _, l := range append(libraries, filepath.Base(loader), "libgcc_s.so.1") {
		from, err := find("/", l)
		must(t, err)
		must(t, copyFile(from, filepath.Join(root, "usr/lib64", "real-"+l), 0o755))
		must(t, os.Symlink("/usr/lib64/real-"+l, filepath.Join(root, "usr/lib64", l))) // a link of the tree, not the host's
	}
	support, err := CopyProgram(root, "/bin/sh", dir)
	must(t, err)
	if len(support) < 2 || support[0] != "support/"+filepath.Base(loader) || !slices.Contains(support, "support/libc.so.6") {
		t.Errorf("%v", support)
	}
	must(t, os.Remove(filepath.Join(root, "usr/lib64/libc.so.6")))
	if _, err := CopyProgram(root, "/bin/sh", t.TempDir()); !errs.Is(err, errs.Unavailable) {
		t.Errorf("a library that lacks: %v", err)
	}
	if _, err := CopyProgram(root, self+".none", t.TempDir()); err == nil {
		t.Error("a program that isn't there was copied")
	}
}
