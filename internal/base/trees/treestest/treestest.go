// Package treestest makes trees with all that a guest can leave in one, and
// tells whether two are the same.
package treestest

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Odd fills the folder dir with files (about so many, of about so many bytes
// together) and with one of every oddity.
func Odd(t testing.TB, dir string, files int, bytes int64) {
	t.Helper()
	random := rand.New(rand.NewPCG(1, 2))
	noise := make([]byte, 1<<20)
	for i := range noise {
		noise[i] = byte(random.Uint32())
	}
	each := int(bytes / int64(max(files, 1)))
	for i := range files {
		folder := filepath.Join(dir, fmt.Sprintf("usr/lib%d/%d", i%7, i/200))
		if i%200 < 7 {
			must(t, os.MkdirAll(folder, 0o755))
		}
		name := filepath.Join(folder, fmt.Sprintf("file-%d.so", i))
		size := each/2 + random.IntN(each+1)
		f, err := os.Create(name)
		must(t, err)
		for size > 0 {
			at := random.IntN(len(noise) / 2)
			n := min(size, len(noise)-at)
			_, err := f.Write(noise[at : at+n])
			must(t, err)
			size -= n
		}
		must(t, f.Chown(i%1000, i%65536))
		must(t, f.Chmod(fs.FileMode(0o400+i%0o377)))
		must(t, f.Close())
		stamp(t, name, int64(1_000_000_000+i), int64(i*7919%1_000_000_000))
	}
	oddities(t, dir)
	must(t, os.Chown(dir, 0, 3))
	must(t, os.Chmod(dir, 0o751))
	attr(t, dir, "trusted.overlay.uuid", strings.Repeat("u", 16))
	stamp(t, dir, 1_700_000_000, 123_456_789)
}

func oddities(t testing.TB, dir string) {
	t.Helper()
	in := func(name string) string { return filepath.Join(dir, name) }
	must(t, os.MkdirAll(in("odd/empty"), 0o700))
	must(t, os.WriteFile(in("odd/suid"), []byte("program"), 0o700))
	must(t, os.Chown(in("odd/suid"), 1000, 65534))
	must(t, os.Chmod(in("odd/suid"), 0o755|fs.ModeSetuid|fs.ModeSetgid))
	attr(t, in("odd/suid"), "user.lodge", "v\x00w")
	// CAP_NET_RAW, permitted and effective, as setcap writes it.
	attr(t, in("odd/suid"), "security.capability", "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	must(t, os.Mkdir(in("odd/links"), 0o755))
	for _, n := range []string{"hard", "odd/links/hard", "zz-last"} {
		must(t, os.Link(in("odd/suid"), in(n)))
	}
	must(t, os.Symlink("../../../../etc/passwd", in("odd/soft")))
	must(t, os.Lchown(in("odd/soft"), 7, 8))
	must(t, os.Symlink("/", in("odd/root")))
	must(t, os.Symlink(strings.Repeat("x/", 2000)+"y", in("odd/far")))
	must(t, unix.Lsetxattr(in("odd/soft"), "trusted.overlay.origin", []byte("link"), 0))
	must(t, unix.Mknod(in("odd/fifo"), unix.S_IFIFO|0o640, 0))
	must(t, unix.Mknod(in("odd/socket"), unix.S_IFSOCK|0o755, 0))
	must(t, os.Chown(in("odd/socket"), 33, 33))
	must(t, unix.Mknod(in("odd/whiteout"), unix.S_IFCHR, 0))
	must(t, unix.Mknod(in("odd/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(t, unix.Mknod(in("odd/disk"), unix.S_IFBLK|0o660, int(unix.Mkdev(254, 200_000))))
	must(t, os.Chmod(in("odd/null"), 0o666))
	must(t, os.Link(in("odd/fifo"), in("odd/fifo2")))
	must(t, os.Mkdir(in("odd/opaque"), 0o755))
	attr(t, in("odd/opaque"), "trusted.overlay.opaque", "y")
	attr(t, in("odd/opaque"), "trusted.overlay.origin", "\x00\xfb\x1d\x00\x01")
	must(t, os.Chmod(in("odd/opaque"), 0o2775|fs.ModeSetgid))
	must(t, os.Mkdir(in("odd/sticky"), 0o777))
	must(t, os.Chmod(in("odd/sticky"), 0o777|fs.ModeSticky))
	must(t, os.WriteFile(in("odd/acl"), []byte("acl"), 0o640))
	attr(t, in("odd/acl"), "system.posix_acl_access", ACL(6, 1234, 5, 4, 7, 0))
	must(t, os.Mkdir(in("odd/inherits"), 0o750))
	attr(t, in("odd/inherits"), "system.posix_acl_default", ACL(7, 77, 7, 5, 7, 0))
	must(t, os.WriteFile(in("odd/inherits/not"), nil, 0o600))
	must(t, os.Mkdir(in("odd/inherits/nor"), 0o700))
	attr(t, in("odd/acl"), "user.large", strings.Repeat("0123456789abcdef", 180))
	sparse(t, in("odd/sparse"), 64<<20, 0, 20<<20, 64<<20-4096)
	sparse(t, in("odd/hole"), 3<<20)
	sparse(t, in("odd/tail"), 1<<20, 8192)
	for _, n := range []string{"new\nline", "\xff\xfe\x80", " ", "-rf", "a\\b\"c'", strings.Repeat("n", 255), "..."} {
		must(t, os.WriteFile(filepath.Join(dir, "odd", n), []byte(n), 0o644))
	}
	stamp(t, in("odd/soft"), 1, 999_999_999)
	stamp(t, in("odd/fifo"), -2, 5)
	stamp(t, in("odd/whiteout"), 0, 1)
	deep(t, in("odd"), 150)
	stamp(t, in("odd/opaque"), 2_000_000_000, 1)
	stamp(t, in("odd"), 1_234_567_890, 987_654_321)
}

// ACL is an access control list as the kernel keeps it in an attribute
// (linux/posix_acl_xattr.h): of the owner, one user, the group, everybody.
func ACL(owner, user int, userPerm, group, mask, other byte) string {
	entry := func(tag, perm byte, id uint32) string {
		return string([]byte{tag, 0, perm, 0, byte(id), byte(id >> 8), byte(id >> 16), byte(id >> 24)})
	}
	const none = ^uint32(0)
	return "\x02\x00\x00\x00" + entry(1, byte(owner), none) + entry(2, userPerm, uint32(user)) +
		entry(4, group, none) + entry(0x10, mask, none) + entry(0x20, other, none)
}

func sparse(t testing.TB, name string, size int64, at ...int64) {
	t.Helper()
	f, err := os.Create(name)
	must(t, err)
	defer f.Close()
	must(t, f.Truncate(size))
	for _, a := range at {
		_, err := f.WriteAt([]byte(strings.Repeat("data", 1024)), a)
		must(t, err)
	}
}

// deep makes folders below each other, deeper than a path may be long.
func deep(t testing.TB, dir string, n int) {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	name := strings.Repeat("d", 100)
	for range n {
		must(t, unix.Mkdirat(fd, name, 0o755))
		must(t, unix.Mknodat(fd, "beside", unix.S_IFREG|0o644, 0))
		next, err := unix.Openat(fd, name, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		must(t, err)
		unix.Close(fd)
		fd = next
	}
	must(t, unix.Mknodat(fd, "a", unix.S_IFREG|0o600, 0))
	must(t, unix.Linkat(fd, "a", fd, "b", 0))
	unix.Close(fd)
}

func attr(t testing.TB, name, key, value string) {
	t.Helper()
	if err := unix.Setxattr(name, key, []byte(value), 0); err != nil {
		t.Fatalf("%s of %s: %v", key, name, err)
	}
}

func stamp(t testing.TB, name string, sec, nsec int64) {
	t.Helper()
	ts := unix.Timespec{Sec: sec, Nsec: nsec}
	must(t, unix.UtimesNanoAt(unix.AT_FDCWD, name, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Manifest tells all that counts of every file below dir, one line each, by
// path. Files that are one under several names are told by the first of them.
func Manifest(t testing.TB, dir string) []string {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	m := manifest{t: t, first: map[uint64]string{}}
	m.folder(os.NewFile(uintptr(fd), dir), ".")
	return m.lines
}

type manifest struct {
	t     testing.TB
	first map[uint64]string
	lines []string
}

func (m *manifest) folder(dir *os.File, path string) {
	defer dir.Close()
	m.line(int(dir.Fd()), ".", path)
	names, err := dir.Readdirnames(-1)
	must(m.t, err)
	sort.Strings(names)
	for _, name := range names {
		if m.line(int(dir.Fd()), name, path+"/"+name) {
			fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
			must(m.t, err)
			m.folder(os.NewFile(uintptr(fd), name), path+"/"+name)
		}
	}
}

func (m *manifest) line(at int, name, path string) (isDir bool) {
	var st unix.Stat_t
	must(m.t, unix.Fstatat(at, name, &st, unix.AT_SYMLINK_NOFOLLOW))
	isDir = st.Mode&unix.S_IFMT == unix.S_IFDIR
	if isDir && name != "." {
		return true // told when it is entered
	}
	if len(path) > 300 {
		path = fmt.Sprintf("%x", sha256.Sum256([]byte(path)))
	}
	line := fmt.Sprintf("%q mode %o owner %d:%d mtime %d.%09d", path, st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec)
	if !isDir {
		line += fmt.Sprintf(" links %d size %d device %#x", st.Nlink, st.Size, st.Rdev)
		if first, ok := m.first[st.Ino]; ok {
			m.lines = append(m.lines, line+" is "+first)
			return false
		}
		m.first[st.Ino] = path
	}
	line += m.attrs(fmt.Sprintf("/proc/self/fd/%d/%s", at, name))
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		b := make([]byte, 1<<16)
		n, err := unix.Readlinkat(at, name, b)
		must(m.t, err)
		line += fmt.Sprintf(" to %x", sha256.Sum256(b[:n]))
	case unix.S_IFREG:
		line += m.content(at, name, &st)
	}
	m.lines = append(m.lines, line)
	return isDir
}

func (m *manifest) attrs(path string) string {
	b := make([]byte, 1<<16)
	n, err := unix.Llistxattr(path, b)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return ""
	}
	must(m.t, err)
	names := strings.FieldsFunc(string(b[:n]), func(r rune) bool { return r == 0 })
	sort.Strings(names)
	text := ""
	for _, name := range names {
		n, err := unix.Lgetxattr(path, name, b)
		must(m.t, err)
		text += fmt.Sprintf(" %s=%x", name, sha256.Sum256(b[:n]))
	}
	return text
}

// content tells the bytes of a file, and where it has none: whole MiB that are
// holes must stay holes.
func (m *manifest) content(at int, name string, st *unix.Stat_t) string {
	fd, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	must(m.t, err)
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	must(m.t, err)
	holes := int64(0)
	if gap := st.Size - st.Blocks*512; gap > 0 {
		holes = gap >> 20
	}
	return fmt.Sprintf(" holes %d MiB sha256 %x", holes, h.Sum(nil))
}

// Same compares two manifests.
func Same(t testing.TB, got, want []string) {
	t.Helper()
	have := map[string]bool{}
	for _, l := range got {
		have[l] = true
	}
	wanted, wrong := map[string]bool{}, 0
	for _, l := range want {
		wanted[l] = true
		if !have[l] && wrong < 10 {
			wrong++
			t.Errorf("missing: %s", l)
		}
	}
	for _, l := range got {
		if !wanted[l] && wrong < 20 {
			wrong++
			t.Errorf("not wanted: %s", l)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d files, want %d", len(got), len(want))
	}
}
