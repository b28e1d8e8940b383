// Package diskfile tells by their content what files of disks are, and refuses
// those that are not one disk in one file. They may come from anybody: only a
// few bytes at fixed places are read, and nothing that they name is opened.
package diskfile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"lodge/internal/base/errs"
)

// Format is a kind of file, by the name that qemu-img has for it.
type Format string

// The formats that are known. An ISO is a disc, which nothing is written to.
const (
	QCOW2 Format = "qcow2"
	VMDK  Format = "vmdk"
	VHD   Format = "vpc"
	VHDX  Format = "vhdx"
	VDI   Format = "vdi"
	Raw   Format = "raw"
	ISO   Format = "iso"
)

// Head is how much of a file's beginning Likely looks at.
const Head = 34 << 10

// Header is what a file says of itself.
type Header struct {
	Format Format
	Size   uint64 // bytes that a guest sees; 0 where only a tool can tell (VHDX)
}

const sector = 512

// hint is what to do about a file that cannot be taken as it is.
const hint = "convert it to one file that stands alone: qemu-img convert -O qcow2 OLD NEW.qcow2"

func bad(msg string) error { return errs.Bad("file", msg, hint) }

// magics begin files of disks. Those without a format are known, and refused.
var magics = []struct {
	text   string
	at     int
	format Format
	name   string
}{
	{"QFI\xfb", 0, QCOW2, ""},
	{"KDMV", 0, VMDK, ""},
	{"vhdxfile", 0, VHDX, ""},
	{"conectix", 0, VHD, ""},
	{"\x7f\x10\xda\xbe", 0x40, VDI, ""},
	{"# Disk DescriptorFile", 0, "", "the description of a VMDK whose content lies in other files"},
	{"COWD", 0, "", "an old VMDK of ESX"},
	{"QED\x00", 0, "", "a QED disk"},
	{"WithoutFreeSpace", 0, "", "a Parallels disk"},
	{"WithouFreSpacExt", 0, "", "a Parallels disk"},
}

// Likely reports whether a file that begins with head is a disk rather than a
// tar or something else.
func Likely(head []byte) bool {
	if at(head, 257, "ustar") {
		return false
	}
	for _, m := range magics {
		if at(head, m.at, m.text) {
			return true
		}
	}
	return at(head, 510, "\x55\xaa") || at(head, sector, "EFI PART") || isISO(head)
}

func at(b []byte, offset int, text string) bool {
	return len(b) >= offset && bytes.HasPrefix(b[offset:], []byte(text))
}

func isISO(head []byte) bool { return at(head, 0x8001, "CD001") }

// Look says what the file r of the given length is. The error, of kind
// Invalid, says what is wrong with it and what to do.
func Look(r io.ReaderAt, length int64) (Header, error) {
	head := make([]byte, Head)
	n, err := r.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return Header{}, err
	}
	head = head[:n]
	for _, m := range magics {
		switch {
		case !at(head, m.at, m.text):
		case m.format == "":
			return Header{}, bad("the file is " + m.name)
		default:
			return parse(m.format, head, r)
		}
	}
	if length >= sector {
		foot := make([]byte, sector)
		if _, err := r.ReadAt(foot, length-sector); err != nil {
			return Header{}, err
		}
		if at(foot, 0, "conectix") {
			return vhd(foot)
		}
	}
	switch {
	case isISO(head):
		return Header{ISO, uint64(length)}, nil
	case at(head, 510, "\x55\xaa"), at(head, sector, "EFI PART"):
		return Header{Raw, (uint64(length) + sector - 1) / sector * sector}, nil
	}
	return Header{}, errs.Bad("file", "the file is no disk that is known",
		"give a qcow2, VMDK, VHD, VHDX, VDI or ISO file, or a raw disk that begins with a boot sector or a partition table")
}

func parse(f Format, head []byte, r io.ReaderAt) (Header, error) {
	switch f {
	case QCOW2:
		return qcow2(head)
	case VMDK:
		return vmdk(head, r)
	case VHD:
		return vhd(head)
	case VDI:
		return vdi(head)
	}
	return Header{Format: f}, nil
}

var cut = bad("the file ends within its header")

// Bits of qcow2's incompatible features that need nothing beside the file:
// not closed cleanly, kind of compression, finer clusters.
const qcow2Harmless = 1<<0 | 1<<3 | 1<<4

// Overlay returns the size of a qcow2 that may lie on another file, but is
// otherwise one that Look takes. Whoever opens it must say what it lies on, and
// not follow the name in it.
func Overlay(r io.ReaderAt) (uint64, error) {
	head := make([]byte, sector)
	if n, err := r.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	} else if !at(head[:n], 0, magics[0].text) {
		return 0, bad("the file is no qcow2")
	}
	clear(head[8:20]) // the name of the other file
	h, err := qcow2(head)
	return h.Size, err
}

func qcow2(b []byte) (Header, error) {
	if len(b) < 104 {
		return Header{}, cut
	}
	be := binary.BigEndian
	version := be.Uint32(b[4:])
	switch {
	case version != 2 && version != 3:
		return Header{}, bad(fmt.Sprintf("the file is a qcow of version %d", version))
	case be.Uint64(b[8:]) != 0:
		return Header{}, bad("the qcow2 is only what differs from another file, its backing file")
	case be.Uint32(b[32:]) != 0:
		return Header{}, bad("the qcow2 is encrypted")
	}
	if features := be.Uint64(b[72:]); version == 3 && features&^qcow2Harmless != 0 {
		if features&4 != 0 {
			return Header{}, bad("the content of the qcow2 lies in another file, its data file")
		}
		return Header{}, bad("the qcow2 is marked as damaged, or has features that are not known")
	}
	return Header{QCOW2, be.Uint64(b[24:])}, nil
}

// mostDescriptor bounds the text in a VMDK that describes it.
const mostDescriptor = 64 << 10

func vmdk(b []byte, r io.ReaderAt) (Header, error) {
	if len(b) < sector {
		return Header{}, cut
	}
	le := binary.LittleEndian
	capacity, where, size := le.Uint64(b[12:]), le.Uint64(b[28:]), le.Uint64(b[36:])
	const most = 1 << 50 / sector // keeps sums within 64 bits
	if capacity == 0 || capacity > most {
		return Header{}, bad("the VMDK has no size of its own: its content lies in other files")
	}
	if where == 0 || where > most || size == 0 || size > mostDescriptor/sector {
		return Header{}, bad("the VMDK does not describe itself")
	}
	text := make([]byte, size*sector)
	if _, err := r.ReadAt(text, int64(where*sector)); err != nil && !errors.Is(err, io.EOF) {
		return Header{}, err
	}
	return Header{VMDK, capacity * sector}, describes(text)
}

// describes checks a VMDK's description: one extent, no parent.
func describes(text []byte) error {
	text, _, _ = bytes.Cut(text, []byte{0})
	extents := 0
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		key, value, _ := strings.Cut(line, "=")
		key, value = strings.TrimSpace(key), strings.Trim(strings.TrimSpace(value), `"`)
		switch {
		case key == "parentFileNameHint", key == "parentCID" && !strings.EqualFold(value, "ffffffff"):
			return bad("the VMDK is only what differs from another file, its parent")
		case key == "createType" && value != "monolithicSparse" && value != "streamOptimized":
			return bad(fmt.Sprintf("the VMDK is of type %.30q, which lies in several files", value))
		case strings.HasPrefix(line, "RW "), strings.HasPrefix(line, "RDONLY "), strings.HasPrefix(line, "NOACCESS "):
			extents++
		}
	}
	if extents != 1 {
		return bad("the VMDK does not lie in one file")
	}
	return nil
}

func vhd(b []byte) (Header, error) {
	if len(b) < sector {
		return Header{}, cut
	}
	be := binary.BigEndian
	if kind := be.Uint32(b[60:]); kind != 2 && kind != 3 {
		return Header{}, bad("the VHD is only what differs from another file, its parent")
	}
	return Header{VHD, be.Uint64(b[48:])}, nil
}

func vdi(b []byte) (Header, error) {
	if len(b) < sector {
		return Header{}, cut
	}
	le := binary.LittleEndian
	if kind := le.Uint32(b[0x4c:]); kind != 1 && kind != 2 {
		return Header{}, bad("the VDI is only what differs from another file, its parent")
	}
	return Header{VDI, le.Uint64(b[0x170:])}, nil
}
