package busybox

import (
	"context"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"lodge/internal/base/errs"
	"lodge/internal/images"
	"lodge/internal/model/image"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestAReleaseIsRefused(t *testing.T) {
	if err := New().Check(image.Spec{Source: "busybox", Release: "1"}); !errs.Is(err, errs.Invalid) {
		t.Error(err)
	}
}

func TestBuild(t *testing.T) {
	if err := New().Check(image.Spec{Source: "busybox"}); err != nil {
		t.Skip(err)
	}
	if os.Getuid() != 0 {
		t.Skip("mounts: needs root")
	}
	store, err := images.OpenStore(t.TempDir(), t.TempDir(), slog.New(slog.NewTextHandler(t.Output(), nil)))
	must(t, err)
	told := func(string, uint64, uint64, string, string) {}
	built, err := store.Build(t.Context(), New(), image.Spec{Source: "busybox"}, told)
	must(t, err)
	again, err := store.Build(t.Context(), New(), image.Spec{Source: "busybox"}, told)
	must(t, err)
	if built.Digest != again.Digest {
		t.Error("built twice, it is not the same")
	}
	if built.Size > 2<<20 {
		t.Errorf("%d bytes are too many", built.Size)
	}
	if i := built.Info; i.OS != "busybox" || i.Release == "" || i.Architecture == "" || !slices.Equal(i.Init, []string{"/sbin/init"}) {
		t.Errorf("info: %+v", i)
	}
	at, err := store.Mount(t.Context(), built.Digest)
	must(t, err)
	t.Cleanup(func() { must(t, store.UnmountAll(context.Background())) })
	// Its programs run with nothing but the image.
	out, err := exec.CommandContext(t.Context(), "chroot", at, "/bin/sh", "-c", "id -u && httpd --help 2>&1 | head -n 1 && test -x /etc/init.d/rcS && stat -c %a /tmp").Output()
	if err != nil || len(out) == 0 || string(out[:2]) != "0\n" || string(out[len(out)-5:]) != "1777\n" {
		t.Errorf("in the image: %q %v", out, err)
	}
	if fi, err := os.Stat(filepath.Join(at, "root")); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("root's home: %v %v", fi, err)
	}
}
