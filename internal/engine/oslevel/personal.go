package oslevel

import (
	"fmt"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"lodge/internal/engine"
	"lodge/internal/launch"
	"lodge/internal/launch/plan"
)

// stampPath holds the id and name that the guest's files were last made for. A
// guest keeps what its owner changes; a copy or a renamed guest gets files of
// its own.
const stampPath = "etc/.lodge"

// personal writes the few files that make an image this guest. Everything
// there is the guest's, so nothing is followed, nothing is waited for, and what
// cannot be written is left.
func (b *boot) personal() {
	b.Ignore(unix.SYS_MKDIRAT, b.root, b.Text("etc"), plan.Imm(0o755))
	known := b.Mark()
	stamp := b.g.ID + " " + b.g.Name + "\n"
	have := b.read(stampPath, len(stamp))
	want := b.Bytes([]byte(stamp))
	b.JumpIf(b.Differ(have, want, len(stamp)), zero, known)

	sameGuest := b.Mark()
	b.JumpIf(b.Differ(have, want, len(b.g.ID)), zero, sameGuest)
	b.put("etc/machine-id", "", unix.O_TRUNC)
	b.Here(sameGuest)
	b.put("etc/hostname", b.g.Name+"\n", unix.O_CREAT|unix.O_TRUNC)
	b.put("etc/hosts", engine.Hosts(b.g, b.parts), unix.O_CREAT|unix.O_TRUNC)
	b.put("etc/resolv.conf", engine.Resolver(b.parts), unix.O_CREAT|unix.O_TRUNC)
	b.put(stampPath, stamp, unix.O_CREAT|unix.O_TRUNC)
	b.Here(known)
	b.resolver()
	b.seed()
}

// resolver renews the name servers, which may change from boot to boot: in
// resolv.conf if that is ours still or missing, and where systemd-resolved
// looks, whose links lead below the fresh /run.
func (b *boot) resolver() {
	if len(b.parts.DNS) == 0 {
		return
	}
	text := engine.Resolver(b.parts)
	theirs := b.Mark()
	b.put("etc/resolv.conf", text, unix.O_CREAT|unix.O_EXCL)
	have := b.read("etc/resolv.conf", len(engine.ResolverMark))
	b.JumpUnless(b.Differ(have, b.Bytes([]byte(engine.ResolverMark)), len(engine.ResolverMark)), zero, theirs)
	b.put("etc/resolv.conf", text, unix.O_TRUNC)
	b.Here(theirs)

	for _, dir := range []string{"run/systemd", "run/systemd/resolve", "run/systemd/resolved.conf.d"} {
		b.Ignore(unix.SYS_MKDIRAT, b.root, b.Text(dir), plan.Imm(0o755))
	}
	var servers []string
	for _, a := range b.parts.DNS {
		servers = append(servers, a.String())
	}
	conf := "[Resolve]\nDNS=" + strings.Join(servers, " ") + "\nDomains=" + b.parts.Domain + "\n"
	b.put("run/systemd/resolved.conf.d/lodge.conf", conf, unix.O_CREAT)
	for _, file := range []string{"stub-resolv.conf", "resolv.conf"} {
		b.put("run/systemd/resolve/"+file, text, unix.O_CREAT)
	}
}

// seed leaves what cloud-init's NoCloud source reads. The network is
// configured already.
func (b *boot) seed() {
	if b.g.Spec.UserData == "" {
		return
	}
	dir := "var/lib/cloud"
	for _, d := range []string{"var", "var/lib", dir, dir + "/seed", dir + "/seed/nocloud"} {
		b.folder(d)
	}
	dir += "/seed/nocloud/"
	meta := fmt.Sprintf("instance-id: %s\nlocal-hostname: %s\n", b.g.ID, b.g.Name)
	b.put(dir+"meta-data", meta, unix.O_CREAT|unix.O_TRUNC)
	b.put(dir+"user-data", b.g.Spec.UserData, unix.O_CREAT|unix.O_TRUNC)
	b.put(dir+"network-config", "network: {config: disabled}\n", unix.O_CREAT|unix.O_TRUNC)
}

// folder makes a folder of the guest if the way to it leads through folders
// only: a link there could lead to the host, whose tree is still in sight.
func (b *boot) folder(path string) {
	parent := b.Try(unix.SYS_OPENAT2, b.root, b.Text(filepath.Dir(path)), b.How(unix.O_PATH|unix.O_DIRECTORY, 0, launch.Stay), launch.HowSize)
	done := b.Mark()
	b.skipFailed(parent, done)
	b.Ignore(unix.SYS_MKDIRAT, parent, b.Text(filepath.Base(path)), plan.Imm(0o755))
	b.Close(parent)
	b.Here(done)
}

// unblocked keeps a pipe or device that a guest put where a file should be from
// holding up its start.
const unblocked = unix.O_NONBLOCK | unix.O_NOCTTY

// put writes a whole file of the guest if it can be opened with flags.
func (b *boot) put(path, text string, flags int) {
	fd := b.Try(unix.SYS_OPENAT2, b.root, b.Text(path), b.How(unix.O_WRONLY|unblocked|flags, modeFor(flags), launch.Stay), launch.HowSize)
	done := b.Mark()
	b.skipFailed(fd, done)
	if text != "" {
		b.Ignore(unix.SYS_WRITE, fd, b.Text(text), plan.Imm(len(text)))
	}
	b.Close(fd)
	b.Here(done)
}

// modeFor is 0 unless a file may be made: openat2 refuses a mode otherwise.
func modeFor(flags int) int {
	if flags&unix.O_CREAT == 0 {
		return 0
	}
	return 0o644
}

// read returns where the first n bytes of a file of the guest are; zeros stand
// for what is not there.
func (b *boot) read(path string, n int) plan.At {
	at := b.Space(n)
	fd := b.Try(unix.SYS_OPENAT2, b.root, b.Text(path), b.How(unix.O_RDONLY|unblocked, 0, launch.Stay), launch.HowSize)
	done := b.Mark()
	b.skipFailed(fd, done)
	b.Ignore(unix.SYS_READ, fd, at, plan.Imm(n))
	b.Close(fd)
	b.Here(done)
	return at
}

// skipFailed goes on at m when fd is an error.
func (b *boot) skipFailed(fd plan.Reg, m plan.Mark) {
	b.JumpBelow(fd, zero, m)
}
