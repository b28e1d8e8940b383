package images_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"unicode"

	"lodge/internal/images"
)

func TestInspectReadsOnlyTheTree(t *testing.T) {
	tree, elf := t.TempDir(), make([]byte, 64)
	copy(elf, "\x7fELF\x02\x01")
	elf[18] = 183
	for _, d := range []string{"sbin", "etc", "usr/lib", "usr/bin", "opt", "var/lib/dpkg"} {
		must(t, os.MkdirAll(filepath.Join(tree, d), 0o755))
	}
	must(t, os.WriteFile(filepath.Join(tree, "opt/init"), elf, 0o755))
	must(t, os.Symlink("/opt/init", filepath.Join(tree, "sbin/init"))) // absolute: in the tree, not on the host
	must(t, os.Symlink("/etc/passwd", filepath.Join(tree, "usr/bin/cloud-init")))
	must(t, syscall.Mkfifo(filepath.Join(tree, "etc/os-release"), 0o644)) // opening it must not wait
	must(t, os.WriteFile(filepath.Join(tree, "usr/lib/os-release"), []byte("ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_ID='12'\n"), 0o644))
	must(t, os.WriteFile(filepath.Join(tree, "var/lib/dpkg/status"), []byte(
		"Package: bash\nStatus: install ok installed\nVersion: 5.2.15-2+b2\nDescription: shell\n Package: not this\n\n"+
			"Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n"), 0o644))
	i, err := images.Inspect(tree)
	must(t, err)
	if i.OS != "debian" || i.Release != "12" || i.Pretty != "Debian GNU/Linux 12 (bookworm)" || i.Architecture != "arm64" ||
		!slices.Equal(i.Init, []string{"/sbin/init"}) || i.CloudInit || !slices.Equal(i.Packages, []string{"bash 5.2.15-2+b2"}) || i.Files != 15 {
		t.Errorf("%+v", i)
	}
}

func FuzzParseRelease(f *testing.F) {
	f.Add([]byte("ID=debian\nPRETTY_NAME=\"a \\\" b\"\n# x=y\nX='"))
	f.Add([]byte("A=\xff\x1b[31m\nB=\"\\"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for k, v := range images.ParseRelease(b) {
			if k == "" || len(v) > 200 || strings.ContainsFunc(v, func(r rune) bool { return !unicode.IsPrint(r) && r != unicode.ReplacementChar }) {
				t.Errorf("%q=%q", k, v)
			}
		}
		images.ParseStatus(b)
		images.Architecture(b)
	})
}
