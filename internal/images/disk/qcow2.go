package disk

import (
	"encoding/binary"
	"fmt"
	"io"
)

// qcow2 reads the content of a qcow2 that qemu-img has just made here: neither
// compressed nor encrypted, alone in its file. (The format: QEMU's
// docs/interop/qcow2.txt.)
type qcow2 struct {
	file io.ReaderAt
	size int64
	bits uint     // of a place in a cluster
	l1   []uint64 // places of the tables of clusters' places
}

// Of a place in a table.
const (
	placeMask  = 0x00ff_ffff_ffff_fe00
	compressed = 1 << 62
	zeros      = 1
)

// mostL1 bounds the first table: for the largest disk that there may be, with
// qemu-img's clusters of 64 KiB, it has 32,768 entries.
const mostL1 = mostVirtual >> (16 + 13)

func openQCOW2(file io.ReaderAt) (*qcow2, error) {
	head := make([]byte, 104)
	if _, err := file.ReadAt(head, 0); err != nil {
		return nil, err
	}
	be := binary.BigEndian
	q := &qcow2{file: file, size: int64(be.Uint64(head[24:])), bits: uint(be.Uint32(head[20:]))}
	n := be.Uint32(head[36:])
	if q.bits < 9 || q.bits > 21 || n > mostL1 {
		return nil, fmt.Errorf("a qcow2 with clusters of 2^%d bytes and %d tables is not what qemu-img makes", q.bits, n)
	}
	table := make([]byte, 8*n)
	if _, err := file.ReadAt(table, int64(be.Uint64(head[40:]))); err != nil {
		return nil, err
	}
	for i := range int(n) {
		q.l1 = append(q.l1, be.Uint64(table[8*i:])&placeMask)
	}
	return q, nil
}

// ReadAt reads what a guest would.
func (q *qcow2) ReadAt(b []byte, at int64) (n int, err error) {
	for n < len(b) {
		here := at + int64(n)
		if here >= q.size {
			return n, io.EOF
		}
		in := here & (1<<q.bits - 1)
		piece := b[n:min(len(b), n+int(min(1<<q.bits-in, q.size-here)))]
		if err := q.read(piece, here>>q.bits, in); err != nil {
			return n, err
		}
		n += len(piece)
	}
	return n, nil
}

// read reads within one cluster.
func (q *qcow2) read(b []byte, cluster, in int64) error {
	clear(b)
	per := q.bits - 3
	i := cluster >> per
	if i >= int64(len(q.l1)) || q.l1[i] == 0 {
		return nil
	}
	var place [8]byte
	if _, err := q.file.ReadAt(place[:], int64(q.l1[i])+8*(cluster&(1<<per-1))); err != nil {
		return err
	}
	p := binary.BigEndian.Uint64(place[:])
	switch {
	case p&compressed != 0:
		return fmt.Errorf("cluster %d is compressed, as qemu-img was not asked to", cluster)
	case p&zeros != 0, p&placeMask == 0:
		return nil
	}
	_, err := q.file.ReadAt(b, int64(p&placeMask)+in)
	return err
}
