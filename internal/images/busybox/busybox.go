// Package busybox is the source of the tiny image: the host's static busybox
// and an init that starts a console shell. It is for density and tests.
package busybox

import (
	"bytes"
	"context"
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"lodge/internal/base/errs"
	"lodge/internal/base/tool"
	"lodge/internal/images"
	"lodge/internal/model/image"
)

// Source makes images of busybox.
type Source struct{}

// New returns the source.
func New() Source { return Source{} }

// Name is "busybox".
func (Source) Name() string { return "busybox" }

// Check says Invalid for a release, which there is none of, and Unsupported
// when the host lacks a program.
func (Source) Check(spec image.Spec) error {
	if spec.Release != "" {
		return errs.Bad("release", "busybox has no releases", "build it as just \"busybox\"")
	}
	if err := tool.Need("image.build", map[string]string{"busybox": "busybox-static", "mkfs.erofs": "erofs-utils"}); err != nil {
		return err
	}
	_, err := static()
	return err
}

// static finds a busybox that needs no libraries.
func static() (string, error) {
	path, err := exec.LookPath("busybox")
	if err != nil {
		return "", err
	}
	f, err := elf.Open(path)
	if err != nil {
		return "", fmt.Errorf("busybox: %w", err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return "", &errs.Error{
				Op: "image.build", Kind: errs.Unsupported, Msg: "the busybox of this host is not static",
				Hint: "apt-get install busybox-static",
			}
		}
	}
	return path, nil
}

// file is one file of the tree.
type file struct {
	name    string
	mode    os.FileMode
	content string
}

// files are all besides busybox and its links. The init's table: set up, a
// shell on the console for who asks, and a clean end on the signals that an
// engine sends.
func files() []file {
	return []file{
		{"etc/inittab", 0o644, `::sysinit:/etc/init.d/rcS
console::askfirst:-/bin/sh
::ctrlaltdel:/sbin/poweroff
::shutdown:/etc/init.d/rcK
`},
		{"etc/init.d/rcS", 0o755, `#!/bin/sh
# Runs first. What a server of this image shall do goes into /etc/rc.local.
[ -s /etc/hostname ] && hostname -F /etc/hostname 2>/dev/null
[ -x /etc/rc.local ] && /etc/rc.local
exit 0
`},
		{"etc/init.d/rcK", 0o755, "#!/bin/sh\n[ -x /etc/rc.shutdown ] && /etc/rc.shutdown\nexit 0\n"},
		{"etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"},
		{"etc/group", 0o644, "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"},
		{"etc/shadow", 0o600, "root:*:::::::\nnobody:*:::::::\n"},
		{"etc/hosts", 0o644, "127.0.0.1 localhost\n::1 localhost\n"},
		{"etc/resolv.conf", 0o644, ""},
		{"etc/hostname", 0o644, ""},
		{"etc/profile", 0o644, "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nexport PS1='\\u@\\h:\\w\\$ '\n"},
		{"var/www/index.html", 0o644, "<!doctype html><title>busybox</title><p>It works: <code>httpd -f -h /var/www</code>\n"},
	}
}

// folders of the tree that have no file of ours in them.
func folders() []string {
	return []string{
		"bin", "sbin", "dev", "etc/init.d", "home", "mnt", "proc", "root", "run", "sys", "tmp", "usr/bin", "usr/sbin",
		"usr/local/bin", "usr/local/sbin", "usr/share", "var/lib", "var/log", "var/tmp", "var/www", "lib",
	}
}

// epoch is the time of all files: the first second of 2024, only because the
// same busybox shall give the same image.
func epoch() time.Time { return time.Unix(1704067200, 0) }

// Make builds the tree and its image.
func (Source) Make(ctx context.Context, _ image.Spec, dir, out string, told images.Told) (image.Info, error) {
	told("building tree", 0, 0, "", "")
	program, err := static()
	if err != nil {
		return image.Info{}, err
	}
	tree := filepath.Join(dir, "tree")
	if err := build(ctx, tree, program); err != nil {
		return image.Info{}, err
	}
	info, err := images.Inspect(tree)
	if err != nil {
		return image.Info{}, err
	}
	if err := images.WriteEROFS(ctx, tree, out, epoch(), told); err != nil {
		return image.Info{}, err
	}
	return info, nil
}

func build(ctx context.Context, tree, program string) error {
	for _, d := range folders() {
		if err := os.MkdirAll(filepath.Join(tree, d), 0o755); err != nil {
			return err
		}
	}
	version, err := install(ctx, tree, program)
	if err != nil {
		return err
	}
	release := file{"etc/os-release", 0o644, fmt.Sprintf("ID=busybox\nNAME=BusyBox\nVERSION_ID=%q\nPRETTY_NAME=\"BusyBox %s\"\n", version, version)}
	for _, f := range append(files(), release) {
		path := filepath.Join(tree, f.name)
		if err := os.WriteFile(path, []byte(f.content), 0o600); err != nil {
			return err
		}
		if err := os.Chmod(path, f.mode); err != nil { // whatever the umask
			return err
		}
	}
	return modes(tree)
}

// modes gives the folders theirs, whatever the daemon's umask was.
func modes(tree string) error {
	special := map[string]os.FileMode{"tmp": 0o777 | os.ModeSticky, "var/tmp": 0o777 | os.ModeSticky, "root": 0o700}
	return filepath.WalkDir(tree, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		name, err := filepath.Rel(tree, path)
		if err != nil {
			return err
		}
		mode, ok := special[name]
		if !ok {
			mode = 0o755
		}
		return os.Chmod(path, mode)
	})
}

// install copies the program, links its applets to it, and returns its version.
func install(ctx context.Context, tree, program string) (version string, err error) {
	b, err := os.ReadFile(program)
	if err != nil {
		return "", err
	}
	to := filepath.Join(tree, "bin/busybox")
	if err := os.WriteFile(to, b, 0o700); err != nil {
		return "", err
	}
	if err := os.Chmod(to, 0o755); err != nil {
		return "", err
	}
	list, err := exec.CommandContext(ctx, program, "--list-full").Output()
	if err != nil {
		return "", fmt.Errorf("busybox --list-full: %w", err)
	}
	for applet := range strings.FieldsSeq(string(list)) {
		if applet == "bin/busybox" || !filepath.IsLocal(applet) {
			continue
		}
		path := filepath.Join(tree, applet)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return "", err
		}
		target, err := filepath.Rel(filepath.Dir(path), to)
		if err != nil {
			return "", err
		}
		if err := os.Symlink(target, path); err != nil {
			return "", err
		}
	}
	if _, err := os.Lstat(filepath.Join(tree, "sbin/init")); err != nil {
		return "", fmt.Errorf("this busybox has no init: %w", err)
	}
	help, err := exec.CommandContext(ctx, program, "--help").Output()
	if err != nil {
		return "", fmt.Errorf("busybox --help: %w", err)
	}
	fields := bytes.Fields(help) // "BusyBox v1.35.0 (Debian …"
	if len(fields) < 2 {
		return "", nil
	}
	return strings.TrimPrefix(string(fields[1]), "v"), nil
}
