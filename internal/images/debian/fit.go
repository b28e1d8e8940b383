package debian

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"lodge/internal/base/tool/apt"
	"lodge/internal/model/image"
)

// released is when the newest of the suites that a tree was made from was
// published: the time of the image, so that building it again later from the
// same packages gives the same times.
func released(tree string) (newest time.Time, err error) {
	files, err := filepath.Glob(filepath.Join(tree, "var/lib/apt/lists", "*Release"))
	if err != nil {
		return newest, err
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return newest, err
		}
		for line := range bytes.Lines(b) {
			value, ok := bytes.CutPrefix(line, []byte("Date: "))
			if !ok {
				continue
			}
			at, err := time.Parse(time.RFC1123, strings.TrimSpace(string(value)))
			if err == nil && at.After(newest) {
				newest = at
			}
			break
		}
	}
	if newest.IsZero() {
		return newest, errors.New("the mirror's Release files have no date")
	}
	return newest, nil
}

// trim is dpkg's configuration that leaves out what a minimal guest won't
// read; copyright files stay. It is in the image, so that packages that are
// installed later are trimmed too.
func trim() []string {
	return []string{
		"path-exclude=/usr/share/man/*", "path-exclude=/usr/share/info/*", "path-exclude=/usr/share/locale/*",
		"path-exclude=/usr/share/doc/*", "path-include=/usr/share/doc/*/copyright",
	}
}

// dpkgOptions are for the build: a tree that a crash cuts off is thrown away,
// so dpkg need not wait for the disk after each file.
func dpkgOptions(v image.Variant) []string {
	options := []string{"force-unsafe-io"}
	if v == image.Minimal {
		options = append(options, trim()...)
	}
	return options
}

// fit turns a fresh installation into an image: nothing of the host, no
// identity of its own, and quick to boot as a guest of any model. The tree is
// Debian's own work, so its links are trusted.
func fit(tree string, v image.Variant, mirrors []apt.Mirror, epoch time.Time) error {
	t := tweak{tree: tree}
	t.sources(mirrors)
	t.impersonal(epoch)
	t.units()
	if v != image.Minimal {
		t.ssh()
		t.cloudInit()
	}
	t.remove("etc/dpkg/dpkg.cfg.d/99mmdebstrap")
	if v == image.Minimal {
		t.write("etc/dpkg/dpkg.cfg.d/lodge-minimal", strings.Join(trim(), "\n")+"\n")
	}
	return errors.Join(t.failed...)
}

// tweak changes files of a tree and collects what failed.
type tweak struct {
	tree   string
	failed []error
}

func (t *tweak) check(err error) {
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.failed = append(t.failed, err)
	}
}

func (t *tweak) write(name, content string) {
	path := filepath.Join(t.tree, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.check(err)
		return
	}
	if fi, err := os.Lstat(path); err == nil && fi.Mode()&os.ModeSymlink != 0 {
		t.check(os.Remove(path))
	}
	t.check(os.WriteFile(path, []byte(content), 0o644))
	t.check(os.Chmod(path, 0o644)) // whatever the daemon's umask is
	t.check(os.Chmod(filepath.Dir(path), 0o755))
}

// remove deletes what matches; that nothing does is fine.
func (t *tweak) remove(patterns ...string) {
	for _, p := range patterns {
		found, err := filepath.Glob(filepath.Join(t.tree, p))
		t.check(err)
		for _, f := range found {
			t.check(os.RemoveAll(f))
		}
	}
}

func (t *tweak) link(target, name string) {
	path := filepath.Join(t.tree, name)
	t.check(os.MkdirAll(filepath.Dir(path), 0o755))
	t.check(os.Remove(path))
	t.check(os.Symlink(target, path))
}

// sources gives the guest the mirrors that it was built from, without the
// host's way to them.
func (t *tweak) sources(mirrors []apt.Mirror) {
	var b strings.Builder
	for _, m := range mirrors {
		fmt.Fprintf(&b, "deb %s %s %s\n", m.URI, m.Suite, m.Components)
	}
	t.write("etc/apt/sources.list", b.String())
	t.remove("etc/apt/sources.list.d/*", "etc/apt/apt.conf.d/99mmdebstrap")
}

// impersonal removes what one machine has and the next must not: identity,
// host names, caches, logs.
func (t *tweak) impersonal(epoch time.Time) {
	t.write("etc/machine-id", "") // systemd makes one at the first boot
	t.write("etc/hostname", "")
	t.write("etc/resolv.conf", "")
	t.write("etc/hosts", "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	t.write("etc/default/locale", "LANG=C.UTF-8\n")
	t.remove("var/lib/dbus/machine-id", "var/lib/apt/lists/*", "var/cache/apt/*.bin", "var/cache/apt/archives",
		"var/cache/ldconfig/aux-cache", "var/cache/debconf/*-old", "var/lib/dpkg/*-old", "etc/*-",
		"var/log/*.log", "var/log/apt/*", "var/log/journal/*", "run/*", "tmp/*", "var/tmp/*", "root/.bash_history",
		"var/lib/systemd/random-seed", "etc/.pwd.lock", "dev/*")
	// apt wants these, and its own cleaning makes them only when it is used.
	for _, d := range []string{"var/lib/apt/lists/partial", "var/cache/apt/archives/partial"} {
		t.check(os.MkdirAll(filepath.Join(t.tree, d), 0o755))
	}
	t.shadow(epoch)
}

// shadow sets the day of the last change of each password, which is the day of
// the build, to that of the release.
func (t *tweak) shadow(epoch time.Time) {
	path := filepath.Join(t.tree, "etc/shadow")
	b, err := os.ReadFile(path)
	t.check(err)
	day := strconv.FormatInt(epoch.Unix()/86400, 10)
	var out strings.Builder
	for line := range strings.Lines(string(b)) {
		if f := strings.Split(line, ":"); len(f) > 2 {
			f[2] = day
			line = strings.Join(f, ":")
		}
		out.WriteString(line)
	}
	t.check(os.WriteFile(path, []byte(out.String()), 0o640)) // it exists: owner and mode stay
}

// units fits systemd for guests of every model. Conditions, not masks, switch
// off what fails only where there is no kernel of one's own.
func (t *tweak) units() {
	for _, unit := range []string{
		"sys-kernel-debug.mount", "sys-kernel-tracing.mount", "sys-kernel-config.mount",
		"proc-sys-fs-binfmt_misc.automount", "dev-hugepages.mount", "systemd-modules-load.service", "modprobe@.service",
		"systemd-udevd.service", "systemd-udevd-control.socket", "systemd-udevd-kernel.socket",
		"systemd-udev-trigger.service", "systemd-pstore.service",
	} {
		t.dropIn(unit, "[Unit]\nConditionVirtualization=!container\n")
	}
	// Lodge writes addresses itself, or has cloud-init do it.
	t.write("etc/systemd/system-preset/00-lodge.preset", "disable systemd-networkd.service\ndisable systemd-networkd-wait-online.service\n"+
		"disable apt-daily.timer\ndisable apt-daily-upgrade.timer\n")
	// A thousand guests would all call the mirror a few minutes after they
	// were started: `systemctl enable apt-daily.timer` is the guest's choice.
	t.remove("etc/systemd/system/timers.target.wants/apt-daily*.timer",
		"etc/systemd/system/*.wants/systemd-networkd*", "etc/systemd/system/*.wants/systemd-network-generator*")
	// Which look for volumes of LVM to check, at each boot and each week: a
	// guest that has some can enable them.
	t.remove("etc/systemd/system/*.wants/e2scrub_*")
	// Each guest's journal is on its pool; a tenth of a small disk is too much.
	t.write("etc/systemd/journald.conf.d/lodge.conf", "[Journal]\nSystemMaxUse=64M\n")
}

func (t *tweak) dropIn(unit, content string) {
	t.write("etc/systemd/system/"+unit+".d/lodge.conf", content)
}

// ssh has each guest make its own host keys at its first boot, unless its host
// gave it some.
func (t *tweak) ssh() {
	t.remove("etc/ssh/ssh_host_*")
	t.write("etc/systemd/system/lodge-ssh-keys.service", `[Unit]
Description=SSH host keys of this guest
Before=ssh.service
ConditionPathExists=!/etc/ssh/ssh_host_ed25519_key

[Service]
Type=oneshot
ExecStart=/usr/bin/ssh-keygen -q -t ecdsa -N "" -f /etc/ssh/ssh_host_ecdsa_key
ExecStart=/usr/bin/ssh-keygen -q -t ed25519 -N "" -f /etc/ssh/ssh_host_ed25519_key

[Install]
WantedBy=ssh.service
`)
	t.link("/etc/systemd/system/lodge-ssh-keys.service", "etc/systemd/system/ssh.service.wants/lodge-ssh-keys.service")
}

// cloudInit makes cloud-init work with a seed that Lodge puts into the tree or
// on a disk, and cost nothing without one: its generator, which looks for the
// data sources of all clouds at each boot, is replaced by a condition.
func (t *tweak) cloudInit() {
	t.write("etc/cloud/cloud.cfg.d/90_lodge.cfg", `# Lodge's guests get their configuration as a NoCloud seed.
datasource_list: [ NoCloud, None ]
network: { config: disabled }
manage_etc_hosts: false
preserve_hostname: true
`)
	t.write("etc/cloud/cloud.cfg.d/91_lodge_ssh.cfg", "# The keys are made at the first boot by lodge-ssh-keys.service.\nssh_deletekeys: false\nssh_genkeytypes: []\n")
	t.link("/dev/null", "etc/systemd/system-generators/cloud-init-generator")
	t.link("/lib/systemd/system/cloud-init.target", "etc/systemd/system/multi-user.target.wants/cloud-init.target")
	for _, unit := range []string{
		"cloud-init-local.service", "cloud-init.service", "cloud-config.service", "cloud-final.service",
		"cloud-init-main.service", "cloud-init-network.service", "cloud-init-hotplugd.socket",
	} {
		t.dropIn(unit, "[Unit]\nConditionPathExists=|/var/lib/cloud/seed/nocloud/meta-data\nConditionPathExists=|/dev/disk/by-label/cidata\n")
	}
}
