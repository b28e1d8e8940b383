package images

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"unicode"

	"golang.org/x/sys/unix"

	"lodge/internal/model/image"
)

// How much of a file in a tree is read at most: an image may come from anybody.
const (
	maxRelease = 64 << 10
	maxStatus  = 32 << 20
	maxValue   = 200 // of one value of os-release, in bytes
)

// Inspect says what a root tree has in it. A tree without a thing that is
// looked for is no error; the tree may be hostile, nothing outside of it is
// read.
func Inspect(tree string) (image.Info, error) {
	root, err := os.Open(tree)
	if err != nil {
		return image.Info{}, err
	}
	defer root.Close()
	in := inside{int(root.Fd())}
	var info image.Info
	for _, name := range []string{"etc/os-release", "usr/lib/os-release"} {
		if b, err := in.read(name, maxRelease); err == nil {
			r := ParseRelease(b)
			info.OS, info.Release, info.Pretty = r["ID"], r["VERSION_ID"], r["PRETTY_NAME"]
			if info.Release == "" {
				info.Release = r["VERSION_CODENAME"]
			}
			break
		}
	}
	for _, name := range []string{"/sbin/init", "/usr/lib/systemd/systemd", "/lib/systemd/systemd", "/init", "/bin/init"} {
		if in.program(name) {
			info.Init = []string{name}
			break
		}
	}
	for _, name := range append(info.Init, "/bin/sh", "/bin/busybox", "/usr/bin/env") {
		if b, err := in.read(name, 64); err == nil {
			if info.Architecture = Architecture(b); info.Architecture != "" {
				break
			}
		}
	}
	info.CloudInit = in.program("usr/bin/cloud-init")
	if b, err := in.read("var/lib/dpkg/status", maxStatus); err == nil {
		info.Packages = ParseStatus(b)
	}
	info.Files, err = count(tree)
	return info, err
}

func count(tree string) (n int64, err error) {
	err = filepath.WalkDir(tree, func(_ string, _ fs.DirEntry, err error) error {
		n++
		return err
	})
	return n - 1, err // the tree's own root isn't in it
}

// inside opens files of a tree as its own programs would see them: absolute
// links start at the tree's root, and none leads out.
type inside struct{ root int }

func (in inside) open(name string) (*os.File, error) {
	fd, err := unix.Openat2(in.root, name, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_NONBLOCK | unix.O_CLOEXEC, // a pipe must not make us wait
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

func (in inside) read(name string, limit int64) ([]byte, error) {
	f, err := in.open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		return nil, errors.Join(err, errors.New("not a regular file"))
	}
	return io.ReadAll(io.LimitReader(f, limit))
}

func (in inside) program(name string) bool {
	f, err := in.open(name)
	if err != nil {
		return false
	}
	defer f.Close()
	fi, err := f.Stat()
	return err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0
}

// ParseRelease reads an os-release file (os-release(5)): the value of each
// key, cut to what is printable on one line.
func ParseRelease(b []byte) map[string]string {
	values := map[string]string{}
	for line := range bytes.Lines(b) {
		key, value, ok := strings.Cut(strings.TrimSpace(string(line)), "=")
		if !ok || key == "" || strings.HasPrefix(key, "#") {
			continue
		}
		values[key] = printable(unquote(value))
	}
	return values
}

// unquote removes the shell's quotes and escapes that os-release(5) allows.
func unquote(s string) string {
	if len(s) >= 2 && s[0] == '\'' && s[len(s)-1] == '\'' {
		return s[1 : len(s)-1]
	}
	if len(s) >= 2 && s[0] == '"' && s[len(s)-1] == '"' {
		s = s[1 : len(s)-1]
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, ""))
	if len(s) > maxValue {
		s = strings.ToValidUTF8(s[:maxValue], "")
	}
	return s
}

// ParseStatus reads dpkg's list of packages: "name version" of each that is
// installed.
func ParseStatus(b []byte) (packages []string) {
	var name, version string
	installed := false
	end := func() {
		if installed && name != "" {
			packages = append(packages, printable(name+" "+version))
		}
		name, version, installed = "", "", false
	}
	lines := bufio.NewScanner(bytes.NewReader(b))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		key, value, _ := strings.Cut(lines.Text(), ": ")
		switch key {
		case "":
			end()
		case "Package":
			name = value
		case "Version":
			version = value
		case "Status":
			installed = strings.HasSuffix(value, " installed")
		}
	}
	end()
	return packages
}

// machines are the values of e_machine of the ELF header (elf(5)) and what
// Debian calls them; little-endian, as all of these are in Debian today.
var machines = map[uint16]string{3: "i386", 40: "armhf", 62: "amd64", 183: "arm64", 243: "riscv64", 21: "ppc64el", 258: "loong64"}

// Architecture is Debian's name of the machine that an ELF file is for, empty
// for what isn't one.
func Architecture(header []byte) string {
	if len(header) < 20 || string(header[:4]) != "\x7fELF" {
		return ""
	}
	if header[5] == 2 { // big-endian
		if binary.BigEndian.Uint16(header[18:]) == 22 {
			return "s390x"
		}
		return ""
	}
	return machines[binary.LittleEndian.Uint16(header[18:])]
}
