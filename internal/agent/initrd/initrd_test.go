package initrd

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"lodge/internal/agent"
	"lodge/test/sandbox"
)

func base(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := Base(&b, []byte("program"), []Module{{"zz.ko", []byte("first")}, {"aa.ko", []byte("second one")}}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestSameInputSameBytes(t *testing.T) {
	if !bytes.Equal(base(t), base(t)) {
		t.Error("two archives of the same differ")
	}
}

func TestBadModuleNamesAreRefused(t *testing.T) {
	for _, name := range []string{"", "a/b.ko", "../x", "a\nb", "order", "."} {
		if err := Base(&bytes.Buffer{}, nil, []Module{{Name: name}}); err == nil {
			t.Errorf("%q was taken", name)
		}
	}
}

// TestCpioReadsIt unpacks both archives with the distribution's own cpio.
func TestCpioReadsIt(t *testing.T) {
	cpio, err := exec.LookPath("cpio")
	if err != nil {
		sandbox.Missing(t, "cpio is not installed (scripts/deps.sh test)")
	}
	if os.Getuid() != 0 {
		t.Skip("makes device nodes: needs root")
	}
	want := agent.Config{ID: "id", Hostname: "web1", Init: []string{"/sbin/init"}, Channel: "/dev/ttyS1"}
	config, err := ConfigArchive(want)
	if err != nil || len(config)%4 != 0 {
		t.Fatal(len(config), err)
	}
	dir := t.TempDir()
	for _, archive := range [][]byte{base(t), config} {
		c := exec.Command(cpio, "-id", "--quiet")
		c.Dir, c.Stdin = dir, bytes.NewReader(archive)
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	order, err := os.ReadFile(filepath.Join(dir, "modules/order"))
	if err != nil || string(order) != "zz.ko\naa.ko\n" {
		t.Errorf("%q %v", order, err)
	}
	module, err := os.ReadFile(filepath.Join(dir, "modules/aa.ko"))
	if err != nil || string(module) != "second one" {
		t.Errorf("%q %v", module, err)
	}
	if fi, err := os.Stat(filepath.Join(dir, "init")); err != nil || fi.Mode().Perm() != 0o755 {
		t.Error(fi, err)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, "dev/console"), &st); err != nil || st.Rdev != unix.Mkdev(5, 1) || st.Mode&unix.S_IFMT != unix.S_IFCHR {
		t.Errorf("%+v %v", st, err)
	}
	text, err := os.ReadFile(filepath.Join(dir, strings.TrimPrefix(agent.ConfigPath, "/")))
	var got agent.Config
	if err != nil || json.Unmarshal(text, &got) != nil || got.Hostname != want.Hostname || got.Init[0] != want.Init[0] {
		t.Errorf("%s %v", text, err)
	}
}
