package inside

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"lodge/internal/agent"
)

// resolverMark is the first line of a resolv.conf that is Lodge's to renew.
const resolverMark = "# made by lodge; remove this line to keep your own\n"

// stampPath holds the id and name that the guest's files were last made for. A
// guest keeps what its owner changes; a copy or a renamed guest gets files of
// its own. Guests of all models use the same, so that one that changes model
// stays as it is.
const stampPath = "etc/.lodge"

// Personal writes the few files that make an image this guest. Everything there
// is the guest's, so nothing is followed, nothing is waited for, and what
// cannot be written is left.
func Personal(root *os.File, c agent.Config) {
	t := tree{root}
	t.mkdir("etc")
	stamp := c.ID + " " + c.Hostname + "\n"
	if have := t.read(stampPath, len(stamp)); have != stamp {
		if !strings.HasPrefix(have, c.ID) {
			t.put("etc/machine-id", line(c.Machine), 0)
			t.hostKeys(c.HostKeys)
		}
		t.put("etc/hostname", c.Hostname+"\n", unix.O_CREAT)
		t.put("etc/hosts", c.Hosts, unix.O_CREAT)
		t.put("etc/resolv.conf", c.Resolver, unix.O_CREAT)
		t.put(stampPath, stamp, unix.O_CREAT)
	}
	if t.read("etc/machine-id", 1) == "" { // was emptied for another model, whose init is told it otherwise
		t.put("etc/machine-id", line(c.Machine), 0)
	}
	t.resolver(c)
	t.seed(c)
}

// line is text and a line's end, or nothing.
func line(text string) string {
	if text == "" {
		return ""
	}
	return text + "\n"
}

// resolver renews the name servers, which may change from boot to boot: in
// resolv.conf if that is ours still or missing, and where systemd-resolved
// looks, whose links lead below the fresh /run.
func (t tree) resolver(c agent.Config) {
	if len(c.DNS) == 0 {
		return
	}
	t.put("etc/resolv.conf", c.Resolver, unix.O_CREAT|unix.O_EXCL)
	if t.read("etc/resolv.conf", len(resolverMark)) == resolverMark {
		t.put("etc/resolv.conf", c.Resolver, 0)
	}
	t.mkdir("run/systemd", "run/systemd/resolve", "run/systemd/resolved.conf.d")
	t.put("run/systemd/resolved.conf.d/lodge.conf", "[Resolve]\nDNS="+strings.Join(c.DNS, " ")+"\nDomains="+c.Domain+"\n", unix.O_CREAT)
	for _, file := range []string{"stub-resolv.conf", "resolv.conf"} {
		t.put("run/systemd/resolve/"+file, c.Resolver, unix.O_CREAT)
	}
}

// seed leaves what cloud-init's NoCloud source reads. The network is configured
// already.
func (t tree) seed(c agent.Config) {
	if c.UserData == "" {
		return
	}
	dir := "var/lib/cloud/seed/nocloud"
	t.mkdir("var", "var/lib", "var/lib/cloud", "var/lib/cloud/seed", dir)
	t.put(dir+"/meta-data", fmt.Sprintf("instance-id: %s\nlocal-hostname: %s\n", c.ID, c.Hostname), unix.O_CREAT)
	t.put(dir+"/user-data", c.UserData, unix.O_CREAT)
	t.put(dir+"/network-config", "network: {config: disabled}\n", unix.O_CREAT)
}

// hostKeys gives a server of the secure shell its keys, if there is one and it has
// none.
func (t tree) hostKeys(keys []agent.HostKey) {
	dir, err := t.open("etc/ssh", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil || t.read("etc/ssh/sshd_config", 1) == "" {
		return
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil || slices.ContainsFunc(names, func(n string) bool { return strings.HasPrefix(n, filepath.Base(hostKeys)) }) {
		return
	}
	for _, key := range keys {
		for _, f := range filesOf(strings.TrimPrefix(hostKeys, "/"), key) {
			t.add(f.name, f.text, f.mode)
		}
	}
}

// add makes a file that is not there.
func (t tree) add(path, text string, mode uint32) {
	f, err := t.open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, mode)
	if err != nil {
		return
	}
	defer f.Close()
	if _, err := f.WriteString(text); err != nil {
		_ = unix.Unlinkat(int(t.root.Fd()), path, 0)
	}
}

// tree is a guest's root.
type tree struct{ root *os.File }

// unblocked keeps a pipe or device that a guest put where a file should be from
// holding anybody up.
const unblocked = unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC

func (t tree) open(path string, flags int, mode uint32) (*os.File, error) {
	if flags&unix.O_CREAT == 0 {
		mode = 0 // openat2 refuses one that has no use
	}
	fd, err := unix.Openat2(int(t.root.Fd()), path, &unix.OpenHow{Flags: uint64(flags | unblocked), Mode: uint64(mode), Resolve: stay})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

// put makes text all that is in a file, if that can be opened with flags. What
// is there is written over and not thrown away first: file systems think that a
// file which was emptied matters, and write it to the disk at once when it is
// closed.
func (t tree) put(path, text string, flags int) {
	f, err := t.open(path, unix.O_WRONLY|flags, 0o644)
	if err != nil {
		return
	}
	defer f.Close()
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return
	}
	n, err := f.WriteString(text)
	if err == nil && st.Size > int64(n) {
		_ = unix.Ftruncate(int(f.Fd()), int64(n))
	}
}

// read returns the first n bytes of a file, or what there is.
func (t tree) read(path string, n int) string {
	f, err := t.open(path, unix.O_RDONLY, 0)
	if err != nil {
		return ""
	}
	defer f.Close()
	b := make([]byte, n)
	n, _ = io.ReadFull(f, b)
	return string(b[:n])
}

func (t tree) mkdir(paths ...string) {
	for _, path := range paths {
		parent, err := t.open(filepath.Dir(path), unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			continue
		}
		_ = unix.Mkdirat(int(parent.Fd()), filepath.Base(path), 0o755)
		parent.Close()
	}
}
