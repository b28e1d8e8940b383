package debian

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"lodge/internal/base/errs"
	"lodge/internal/images"
	"lodge/internal/model/image"
)

func TestCheckNamesFieldAndFix(t *testing.T) {
	s := New(t.TempDir())
	for field, spec := range map[string]image.Spec{
		"release": {Source: "debian", Release: "14"},
		"variant": {Source: "debian", Release: "12", Variant: "huge"},
	} {
		err := s.Check(spec)
		e, ok := err.(*errs.Error)
		if !ok || e.Kind != errs.Invalid || e.Field != field || e.Hint == "" {
			t.Errorf("%+v: %v", spec, err)
		}
	}
}

func TestProgressIsHonest(t *testing.T) {
	type step struct {
		name        string
		done, total uint64
	}
	var got []step
	p := progress{told: func(name string, done, total uint64, _, _ string) { got = append(got, step{name, done, total}) }}
	for _, line := range []string{
		"I: running apt-get update...",
		"Get:1 http://mirror.example/debian bookworm InRelease [151 kB]",
		"I: downloading packages with apt...",
		"0 upgraded, 2 newly installed, 0 to remove and 0 not upgraded.",
		"Get:1 http://mirror.example/debian bookworm/main amd64 gcc-12-base amd64 12.2.0-14 [37.5 kB]",
		"Get:2 http://mirror.example/debian bookworm/main amd64 dpkg amd64 1.21 [1 kB]",
		"I: extracting archives...",
		"Unpacking gcc-12-base:amd64 (12.2.0-14) ...",
		"Setting up gcc-12-base:amd64 (12.2.0-14) ...",
		"0 upgraded, 139 newly installed, 0 to remove and 0 not upgraded.",
		"Setting up sudo (1.9) ...",
		"E: Failed to fetch something",
	} {
		p.line(line)
	}
	want := []step{
		{"fetching package lists", 0, 0}, {"fetching package lists", 0, 0},
		{"fetching packages", 1, 2}, {"fetching packages", 2, 2},
		{"extracting", 0, 0}, {"unpacking", 1, 2}, {"configuring", 1, 2}, {"configuring", 1, 139},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	if len(p.troubles) != 1 {
		t.Errorf("troubles: %v", p.troubles)
	}
}

// A build needs a mirror and most of a minute, so it runs with LODGE_TEST_LONG
// only; LODGE_TEST_DEBIAN keeps what it makes in that folder.
func TestBuild(t *testing.T) {
	if os.Getenv("LODGE_TEST_LONG") == "" {
		t.Skip("builds Debian from the network: set LODGE_TEST_LONG=1")
	}
	dir := os.Getenv("LODGE_TEST_DEBIAN")
	if dir == "" {
		dir = t.TempDir()
	}
	store, err := images.OpenStore(filepath.Join(dir, "images"), t.TempDir(), log(t))
	must(t, err)
	s := New(filepath.Join(dir, "cache"))
	for _, v := range []image.Variant{image.Minimal, image.Standard} {
		t.Run(string(v), func(t *testing.T) { buildOne(t, store, s, v) })
	}
}

func buildOne(t *testing.T, store *images.Store, s *Source, v image.Variant) {
	spec := image.Spec{Source: "debian", Release: "12", Variant: v}
	steps := map[string]time.Duration{}
	start, last := time.Now(), ""
	told := func(name string, _, _ uint64, _, _ string) {
		if name != last {
			steps[name], last = time.Since(start).Round(100*time.Millisecond), name
		}
	}
	built, err := store.Build(t.Context(), s, spec, told)
	must(t, err)
	t.Logf("%s: %s, %d bytes, %d files, %d packages, steps began at %v", v, time.Since(start), built.Size, built.Info.Files, len(built.Info.Packages), steps)
	i := built.Info
	if i.OS != "debian" || i.Release != "12" || !slices.Equal(i.Init, []string{"/sbin/init"}) || i.CloudInit != (v == image.Standard) || len(i.Packages) < 80 {
		t.Errorf("info: %+v", i)
	}
	at, err := store.Mount(t.Context(), built.Digest)
	must(t, err)
	t.Cleanup(func() { must(t, store.Unmount(context.Background(), built.Digest)) })
	for _, gone := range []string{"etc/ssh/ssh_host_ed25519_key", "var/lib/dbus/machine-id", "etc/apt/apt.conf.d/99mmdebstrap", "etc/network/interfaces", "dev/null"} {
		if _, err := os.Lstat(filepath.Join(at, gone)); err == nil {
			t.Errorf("%s is in the image", gone)
		}
	}
	for _, empty := range []string{"etc/machine-id", "etc/hostname", "etc/resolv.conf"} {
		if fi, err := os.Lstat(filepath.Join(at, empty)); err != nil || !fi.Mode().IsRegular() || fi.Size() != 0 {
			t.Errorf("%s is not an empty file: %v", empty, err)
		}
	}
	if fi, err := os.Stat(filepath.Join(at, "etc/shadow")); err != nil || fi.Mode().Perm() != 0o640 {
		t.Errorf("etc/shadow: %v %v", fi, err)
	}
}
