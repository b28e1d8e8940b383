package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"lodge/internal/base/diskfile"
	"lodge/internal/base/errs"
	"lodge/internal/base/fat"
	"lodge/internal/model/image"
)

// architectures are what an image may be said to be for, as distributions name
// them.
var architectures = []string{"amd64", "i386", "arm64", "armhf", "ppc64el", "riscv64", "s390x"}

// checkArchitecture says whether a name that a person gave is one.
func checkArchitecture(name string) error {
	if name == "" || slices.Contains(architectures, name) {
		return nil
	}
	return errs.Bad("architecture", fmt.Sprintf("%q is no architecture that is known", name), fmt.Sprintf("one of %v", architectures))
}

// settle puts together what a disk shows and what its owner says. A disk that
// boots on several machines is what its owner wants it for.
func settle(shown []string, spec image.Spec) (string, error) {
	said := spec.Architecture
	switch {
	case len(shown) == 0:
		return said, nil
	case said == "":
		return shown[0], nil
	case slices.Contains(shown, said), said == "i386" && slices.Contains(shown, "amd64"): // a BIOS does not tell them apart
		return said, nil
	}
	return "", errs.Bad("architecture", fmt.Sprintf("the disk has boot loaders for %v, and none for %s", shown, said), "leave --arch out")
}

// loaders are the files that UEFI boots a disk by, by the architecture of the
// firmware; the first in this order is what a disk counts as that has several.
var loaders = []struct{ file, architecture string }{
	{"BOOTX64.EFI", "amd64"}, {"BOOTIA32.EFI", "i386"}, {"BOOTAA64.EFI", "arm64"}, {"BOOTARM.EFI", "armhf"},
}

// architecturesOf looks at what firmware would boot from a disk or disc, and
// returns what that is for, the first above all. It is none of many a disk that
// boots: one that is empty, or that only firmware of another kind can read.
// What it reads may come from anybody.
func architecturesOf(r io.ReaderAt, disc bool) (all []string, err error) {
	found := map[string]bool{}
	bootCode := false
	look := func(at, size int64) error {
		names, err := fat.List(io.NewSectionReader(r, at, size), "EFI", "BOOT")
		if err != nil && !errors.Is(err, fat.ErrNone) {
			return err
		}
		for _, l := range loaders {
			found[l.architecture] = found[l.architecture] || slices.Contains(names, l.file)
		}
		return nil
	}
	if disc {
		bootCode, err = torito(r, look)
	} else {
		bootCode, err = partitions(r, look)
	}
	if err != nil {
		return nil, err
	}
	if bootCode && !found["i386"] {
		found["amd64"] = true
	}
	for _, l := range loaders {
		if found[l.architecture] {
			all = append(all, l.architecture)
		}
	}
	return all, nil
}

const (
	sector = 512
	// Of partition tables.
	tableAt, slotSize = 446, 16
	kindGPT, kindESP  = 0xee, 0xef
	mostGPT           = 128
)

// espGUID is the kind of partition that UEFI looks for loaders in, as GPT
// writes it.
var espGUID = []byte{0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b}

// partitions calls esp for each partition with loaders of UEFI, and reports
// whether the first sector has code for a BIOS.
func partitions(r io.ReaderAt, esp func(at, size int64) error) (bios bool, err error) {
	first := make([]byte, sector)
	if err := readAt(r, first, 0); err != nil {
		return false, err
	}
	le := binary.LittleEndian
	if first[510] == 0x55 && first[511] == 0xaa {
		bios = code86(first)
		for slot := first[tableAt:510]; len(slot) >= slotSize; slot = slot[slotSize:] {
			if slot[4] != kindESP {
				continue
			}
			if err := esp(int64(le.Uint32(slot[8:]))*sector, int64(le.Uint32(slot[12:]))*sector); err != nil {
				return bios, err
			}
		}
	}
	return bios, gpt(r, esp)
}

// gpt calls esp for each such partition of a GPT, if there is one.
func gpt(r io.ReaderAt, esp func(at, size int64) error) error {
	head := make([]byte, sector)
	if err := readAt(r, head, sector); err != nil || !bytes.HasPrefix(head, []byte("EFI PART")) {
		return err
	}
	le := binary.LittleEndian
	at, size := le.Uint64(head[72:]), le.Uint32(head[84:])
	if at > mostVirtual/sector || size < 128 || size > 4096 {
		return nil
	}
	for i := range int64(min(le.Uint32(head[80:]), mostGPT)) {
		e := make([]byte, 128)
		if err := readAt(r, e, int64(at)*sector+i*int64(size)); err != nil {
			return err
		}
		from, to := le.Uint64(e[32:]), le.Uint64(e[40:])
		if !bytes.Equal(e[:16], espGUID) || from > to || to > mostVirtual/sector {
			continue
		}
		if err := esp(int64(from)*sector, int64(to-from+1)*sector); err != nil {
			return err
		}
	}
	return nil
}

// code86 reports whether a boot sector begins with what programs of PCs begin
// with: a jump, or the registers being set up.
func code86(b []byte) bool {
	for _, start := range [][]byte{{0xeb}, {0xe9}, {0x33, 0xc0}, {0x31, 0xc0}, {0xfa}, {0xfc}, {0x0e}, {0x8c, 0xc8}, {0xb8}, {0xbb}, {0xea}} {
		if bytes.HasPrefix(b, start) {
			return true
		}
	}
	return false
}

// Of discs: El Torito's boot record is their 18th sector.
const (
	discSector  = 2048
	bootRecord  = 17 * discSector
	bootEntry   = 32
	platform86  = 0
	platformEFI = 0xef
	bootable    = 0x88
	// efiMost is how much of a disc is looked at as the image of a disk that
	// UEFI boots, whose size the catalogue often does not say.
	efiMost = 512 << 20
)

// torito calls esp for each image of a disk that UEFI boots a disc by, and
// reports whether a BIOS of a PC boots it.
func torito(r io.ReaderAt, esp func(at, size int64) error) (bios bool, err error) {
	b := make([]byte, discSector)
	if err := readAt(r, b, bootRecord); err != nil || !bytes.HasPrefix(b, []byte("\x00CD001\x01EL TORITO SPECIFICATION")) {
		return false, err
	}
	le := binary.LittleEndian
	if err := readAt(r, b, int64(le.Uint32(b[0x47:]))*discSector); err != nil {
		return false, err
	}
	if b[0] != 1 || b[30] != 0x55 || b[31] != 0xaa {
		return false, nil
	}
	platform := b[1]
	for e := b[bootEntry:]; len(e) >= bootEntry; e = e[bootEntry:] {
		switch {
		case e[0] == 0x90, e[0] == 0x91: // a section of entries for another platform begins
			platform = e[1]
		case e[0] == bootable && platform == platform86:
			bios = true
		case e[0] == bootable && platform == platformEFI:
			if err := esp(int64(le.Uint32(e[8:]))*discSector, efiMost); err != nil {
				return bios, err
			}
		}
	}
	return bios, nil
}

// readAt fills b. Behind the end of a file are zeros.
func readAt(r io.ReaderAt, b []byte, at int64) error {
	n, err := r.ReadAt(b, at)
	clear(b[n:])
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}

// architecture says what the image file of a disk is for.
func architecture(f io.ReaderAt, format diskfile.Format, spec image.Spec) (string, error) {
	if format == diskfile.QCOW2 {
		q, err := openQCOW2(f)
		if err != nil {
			return "", err
		}
		f = q
	}
	shown, err := architecturesOf(f, format == diskfile.ISO)
	if err != nil {
		return "", err
	}
	return settle(shown, spec)
}
