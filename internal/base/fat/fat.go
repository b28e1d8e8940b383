// Package fat reads and writes small file systems of the FAT family, without
// mounting them: what firmware boots from, and what guests are given to read.
// (The layout: Microsoft's "FAT General Overview of On-Disk Format".)
package fat

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
)

// ErrNone says that there is no such file system, or no such folder in it.
var ErrNone = errors.New("no FAT file system, or no such folder in it")

const (
	entrySize = 32
	// entriesMax bounds how many entries of a folder are looked at.
	entriesMax = 4096
	sectorMax  = 4096
	clusterMax = 64 << 10

	// Attributes of entries.
	isLabel  = 0x08
	isFolder = 0x10
	isLong   = 0x0f // part of a long name
)

// volume is what a file system says of itself.
type volume struct {
	r       io.ReaderAt
	cluster int64 // bytes
	fat     int64 // where the table begins
	root    int64 // where the root folder begins; 0: it is a chain
	rootLen int64
	first   uint32 // of the root folder's chain
	data    int64  // where cluster 2 begins
	count   uint32 // of clusters
	bits    uint32 // of an entry of the table
}

// open reads the boot sector. Nothing in it is believed that leads out of
// bounds: whoever reads on has at most some thousand small reads to make.
func open(r io.ReaderAt) (*volume, error) {
	b := make([]byte, 512)
	if _, err := r.ReadAt(b, 0); err != nil {
		return nil, none(err)
	}
	le := binary.LittleEndian
	sector, per := int64(le.Uint16(b[11:])), int64(b[13])
	reserved, fats, entries := int64(le.Uint16(b[14:])), int64(b[16]), int64(le.Uint16(b[17:]))
	total, fatSize := int64(le.Uint16(b[19:])), int64(le.Uint16(b[22:]))
	if total == 0 {
		total = int64(le.Uint32(b[32:]))
	}
	if fatSize == 0 {
		fatSize = int64(le.Uint32(b[36:]))
	}
	sane := sector >= 512 && sector <= sectorMax && power(sector) && power(per) && sector*per <= clusterMax
	if b[510] != 0x55 || b[511] != 0xaa || !sane || reserved*fats*fatSize == 0 {
		return nil, ErrNone
	}
	v := &volume{r: r, cluster: sector * per, fat: reserved * sector, root: (reserved + fats*fatSize) * sector, rootLen: entries * entrySize}
	v.data = v.root + (v.rootLen+sector-1)/sector*sector
	clusters := (total*sector - v.data) / v.cluster
	switch {
	case clusters <= 0:
		return nil, ErrNone
	case clusters < 4085:
		v.bits = 12
	case clusters < 65525:
		v.bits = 16
	default:
		v.bits = 32
		v.root, v.first = 0, le.Uint32(b[44:])
	}
	v.count = uint32(min(clusters, 1<<28))
	return v, nil
}

func power(n int64) bool { return n > 0 && n&(n-1) == 0 }

// none makes of the end of what is read that there is nothing.
func none(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return ErrNone
	}
	return err
}

// next returns the cluster that follows one in its chain; false: it is the last.
func (v *volume) next(n uint32) (uint32, bool, error) {
	b := make([]byte, 4)
	at := v.fat + int64(n)*int64(v.bits)/8
	if _, err := v.r.ReadAt(b[:max(2, v.bits/8)], at); err != nil {
		return 0, false, none(err)
	}
	n32 := binary.LittleEndian.Uint32(b)
	switch v.bits {
	case 12:
		if n&1 != 0 {
			n32 >>= 4
		}
		n32 &= 0xfff
	case 16:
		n32 &= 0xffff
	default:
		n32 &= 0x0fff_ffff
	}
	return n32, n32 >= 2 && n32 < v.count+2, nil
}

// entry is a file or folder.
type entry struct {
	name    string // "BOOTX64.EFI"
	folder  bool
	cluster uint32
}

// folder reads the entries of the folder whose chain begins at a cluster; 0 is
// the root.
func (v *volume) folder(n uint32) (all []entry, err error) {
	if n == 0 && v.root != 0 {
		b := make([]byte, min(v.rootLen, entriesMax*entrySize))
		if _, err := v.r.ReadAt(b, v.root); err != nil {
			return nil, none(err)
		}
		all, _ = entries(nil, b)
		return all, nil
	}
	if n == 0 {
		n = v.first
	}
	for left := int64(entriesMax * entrySize); left > 0 && n >= 2 && n < v.count+2; left -= v.cluster {
		b := make([]byte, v.cluster)
		if _, err := v.r.ReadAt(b, v.data+int64(n-2)*v.cluster); err != nil {
			return all, none(err)
		}
		var last bool
		if all, last = entries(all, b); last {
			return all, nil
		}
		var more bool
		if n, more, err = v.next(n); err != nil || !more {
			return all, err
		}
	}
	return all, nil
}

// entries adds what a piece of a folder holds, and reports whether that is all.
func entries(all []entry, b []byte) ([]entry, bool) {
	le := binary.LittleEndian
	for ; len(b) >= entrySize; b = b[entrySize:] {
		switch attributes := b[11]; {
		case b[0] == 0:
			return all, true
		case b[0] == 0xe5, attributes&isLong == isLong, attributes&isLabel != 0:
		default:
			name := strings.TrimRight(string(b[:8]), " ")
			if kind := strings.TrimRight(string(b[8:11]), " "); kind != "" {
				name += "." + kind
			}
			all = append(all, entry{name, attributes&isFolder != 0, uint32(le.Uint16(b[20:]))<<16 | uint32(le.Uint16(b[26:]))})
		}
	}
	return all, false
}

// List returns the short names of what is in a folder, from the root folder on.
// What r holds may come from anybody. It is ErrNone if r holds no such file
// system, or no such folder.
func List(r io.ReaderAt, path ...string) (names []string, err error) {
	v, err := open(r)
	if err != nil {
		return nil, err
	}
	at := uint32(0)
	for {
		all, err := v.folder(at)
		if err != nil {
			return nil, err
		}
		if len(path) == 0 {
			for _, e := range all {
				names = append(names, e.name)
			}
			return names, nil
		}
		found := false
		for _, e := range all {
			if e.folder && e.cluster != 0 && strings.EqualFold(e.name, path[0]) {
				at, found = e.cluster, true
			}
		}
		if !found {
			return nil, ErrNone
		}
		path = path[1:]
	}
}

// Of a volume that is written: one sector a cluster, few enough of them that
// the table's entries have 12 bits; each as large as a disc's, so that the volume
// can be read on discs and disks alike.
const (
	sectorSize  = 2048
	rootEntries = 64
	tableBytes  = 2 * sectorSize
	mostSectors = tableBytes*2/3 - 2
)

// File is a file for a new volume.
type File struct {
	Name    string // as Linux shows it: "user-data"
	Content []byte
}

// ErrTooLarge says that files do not fit.
var ErrTooLarge = errors.New("the files do not fit into a small volume")

// Volume makes a volume with a label and files in its root folder: the same of
// the same.
func Volume(label string, files []File) ([]byte, error) {
	le := binary.LittleEndian
	const dataAt = sectorSize + 2*tableBytes + rootEntries*entrySize
	table := []byte{0xf8, 0xff, 0xff}
	var root, data []byte
	root = append(root, short(padded(label, 11), isLabel, 0, 0)...)
	clusters := uint16(2)
	for i, f := range files {
		need := (len(f.Content) + sectorSize - 1) / sectorSize
		if int(clusters)-2+need > mostSectors || len(root)/entrySize+1+longEntries(f.Name) > rootEntries {
			return nil, ErrTooLarge
		}
		first := uint16(0)
		for j := range need {
			if j == 0 {
				first = clusters
			}
			following := clusters + 1
			if j == need-1 {
				following = 0xfff
			}
			table = set12(table, int(clusters), following)
			clusters++
		}
		alias := padded("FILE"+string(rune('A'+i)), 11)
		root = append(root, long(f.Name, alias)...)
		root = append(root, short(alias, 0x01, first, len(f.Content))...)
		data = append(data, f.Content...)
		data = append(data, make([]byte, need*sectorSize-len(f.Content))...)
	}
	// As many clusters as make the table's entries 12 bits wide and no less
	// than any driver expects.
	const leastSectors = 128
	total := dataAt/sectorSize + max(leastSectors, len(data)/sectorSize)
	out := make([]byte, total*sectorSize)
	copy(out, []byte{0xeb, 0x3c, 0x90})
	copy(out[3:], "LODGE   ")
	le.PutUint16(out[11:], sectorSize)
	out[13] = 1               // sectors of a cluster
	le.PutUint16(out[14:], 1) // sectors before the tables
	out[16] = 2               // tables
	le.PutUint16(out[17:], rootEntries)
	le.PutUint16(out[19:], uint16(total))
	out[21] = 0xf8 // a fixed disk
	le.PutUint16(out[22:], tableBytes/sectorSize)
	le.PutUint16(out[24:], 32) // sectors of a track
	le.PutUint16(out[26:], 64) // heads
	out[36], out[38] = 0x80, 0x29
	le.PutUint32(out[39:], 0x1d6e_c10d) // serial number
	copy(out[43:], padded(label, 11))
	copy(out[54:], "FAT12   ")
	out[510], out[511] = 0x55, 0xaa
	copy(out[sectorSize:], table)
	copy(out[sectorSize+tableBytes:], table)
	copy(out[sectorSize+2*tableBytes:], root)
	copy(out[dataAt:], data)
	return out, nil
}

func padded(s string, n int) []byte {
	return append([]byte(s), bytes.Repeat([]byte{' '}, max(0, n-len(s)))...)[:n]
}

// set12 sets an entry of a table of 12 bits each.
func set12(table []byte, n int, to uint16) []byte {
	at := n * 3 / 2
	for len(table) < at+2 {
		table = append(table, 0)
	}
	if n&1 == 0 {
		table[at], table[at+1] = byte(to), table[at+1]&0xf0|byte(to>>8)
		return table
	}
	table[at], table[at+1] = table[at]&0x0f|byte(to<<4), byte(to>>4)
	return table
}

// day is the first that there is: 1980-01-01.
const day = 1<<5 | 1

func short(name []byte, attributes byte, cluster uint16, size int) []byte {
	e := make([]byte, entrySize)
	copy(e, name)
	e[11] = attributes
	for _, at := range []int{16, 18, 24} {
		binary.LittleEndian.PutUint16(e[at:], day)
	}
	binary.LittleEndian.PutUint16(e[26:], cluster)
	binary.LittleEndian.PutUint32(e[28:], uint32(size))
	return e
}

// longChars is how many characters of a long name an entry holds.
const longChars = 13

func longEntries(name string) int { return (len(name) + longChars - 1) / longChars }

// long is the entries of a long name, which stand before the short one.
func long(name string, alias []byte) (all []byte) {
	sum := byte(0)
	for _, c := range alias {
		sum = sum>>1 | sum<<7
		sum += c
	}
	chars := make([]uint16, longEntries(name)*longChars)
	for i := range chars {
		switch {
		case i < len(name):
			chars[i] = uint16(name[i])
		case i > len(name):
			chars[i] = 0xffff
		}
	}
	for n := longEntries(name); n > 0; n-- {
		e := make([]byte, entrySize)
		e[0], e[11], e[13] = byte(n), isLong, sum
		if n == longEntries(name) {
			e[0] |= 0x40
		}
		piece := chars[(n-1)*longChars:]
		for i, at := range []int{1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30} {
			binary.LittleEndian.PutUint16(e[at:], piece[i])
		}
		all = append(all, e...)
	}
	return all
}
