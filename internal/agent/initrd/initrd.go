// Package initrd writes the small file system that a guest's kernel starts
// from: the agent as /init, the modules it loads, and in a part of its own,
// which is appended for each guest, what makes the guest this guest. Equal
// input gives equal bytes.
package initrd

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"path"
	"strings"

	"lodge/internal/agent"
)

// Module is a kernel module, uncompressed.
type Module struct {
	Name string // of its file: "erofs.ko"
	Data []byte
}

// Base writes the archive that all guests of a kernel share. The agent loads
// the modules in the order given.
func Base(w io.Writer, agentBinary []byte, modules []Module) error {
	a := archive{w: w}
	for _, dir := range []string{"dev", "modules", "proc", "sys"} {
		a.add(dir, modeDir|0o755, nil, 0)
	}
	a.add("dev/console", modeChar|0o600, nil, device(5, 1))
	a.add("dev/null", modeChar|0o666, nil, device(1, 3))
	a.add("init", modeFile|0o755, agentBinary, 0)
	var order strings.Builder
	for _, m := range modules {
		if m.Name == "." || m.Name == "" || m.Name != path.Base(m.Name) || strings.ContainsAny(m.Name, "\n\x00") || m.Name == "order" {
			return fmt.Errorf("module %q: that is no name of a file", m.Name)
		}
		a.add("modules/"+m.Name, modeFile|0o644, m.Data, 0)
		fmt.Fprintln(&order, m.Name)
	}
	a.add("modules/order", modeFile|0o644, []byte(order.String()), 0)
	return a.end()
}

// ConfigArchive is the archive that holds cfg, to be appended to a base
// archive, compressed or not. Its length is a multiple of 4.
func ConfigArchive(cfg agent.Config) ([]byte, error) {
	text, err := json.Marshal(cfg)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	a := archive{w: &b}
	a.add(strings.TrimPrefix(agent.ConfigPath, "/"), modeFile|0o600, text, 0)
	err = a.end()
	return b.Bytes(), err
}

// Kinds of files, as cpio and stat number them.
const (
	modeFile = 0o100000
	modeDir  = 0o040000
	modeChar = 0o020000
)

type numbers struct{ major, minor uint32 }

func device(major, minor uint32) uint64 { return uint64(major)<<32 | uint64(minor) }

// archive is a cpio archive in the format that Linux calls "newc"
// (Documentation/driver-api/early-userspace/buffer-format.rst). All belongs to
// root and is from the beginning of time.
type archive struct {
	w    io.Writer
	next uint32 // inode
	at   int64
	err  error
}

func (a *archive) add(name string, mode uint32, data []byte, dev uint64) {
	a.next++
	links := uint32(1)
	if mode&modeDir == modeDir {
		links = 2
	}
	a.entry(name, a.next, mode, links, data, numbers{uint32(dev >> 32), uint32(dev)})
}

func (a *archive) entry(name string, inode, mode, links uint32, data []byte, dev numbers) {
	if a.err == nil && uint64(len(data)) > 1<<32-1 {
		a.err = fmt.Errorf("%s is too large for an initramfs", name)
	}
	var h strings.Builder
	h.WriteString("070701")
	for _, v := range []uint32{inode, mode, 0, 0, links, 0, uint32(len(data)), 0, 0, dev.major, dev.minor, uint32(len(name) + 1), 0} {
		fmt.Fprintf(&h, "%08X", v)
	}
	a.write([]byte(h.String() + name + "\x00"))
	a.pad()
	a.write(data)
	a.pad()
}

func (a *archive) end() error {
	a.entry("TRAILER!!!", 0, 0, 1, nil, numbers{})
	return a.err
}

func (a *archive) pad() { a.write(make([]byte, -a.at&3)) }

func (a *archive) write(b []byte) {
	if a.err != nil {
		return
	}
	n, err := a.w.Write(b)
	a.at += int64(n)
	a.err = err
}
