package inside

import (
	"encoding/binary"
	"fmt"
	"os"
	"runtime/debug"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"lodge/internal/agent"
	"lodge/internal/base/errs"
)

// balloon is memory that the agent keeps from the guest's programs, so that the
// host can use it: for guests whose kernel cannot give memory back by itself.
type balloon struct {
	mu   sync.Mutex
	held [][]byte
}

const (
	// balloonPiece is how much is taken at a time, as large as a pipe can be:
	// one keeps its pages where they are while the host takes them.
	balloonPiece = 1 << 20
	// balloonRest is what the guest keeps free: more than a program can fill
	// while the agent takes a piece.
	balloonRest = 12 << 20
)

// hold makes the agent hold so many bytes, rounded down to whole pieces, and
// returns how many it does hold. It is Unsupported if the guest needs its memory
// itself: what could be taken is held then.
func (b *balloon) hold(s *stream, bytes uint64) (held uint64, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for uint64(len(b.held))*balloonPiece > bytes {
		if err := unix.Munmap(b.held[len(b.held)-1]); err != nil {
			return b.size(), err
		}
		b.held = b.held[:len(b.held)-1]
	}
	for uint64(len(b.held)+1)*balloonPiece <= bytes {
		piece, err := takePiece(s)
		if err != nil {
			return b.size(), err
		}
		b.held = append(b.held, piece)
	}
	return b.size(), nil
}

// squeeze lets the host have all memory that the guest does not use at the
// moment, and its caches. The guest gets it back the moment that it does.
func (b *balloon) squeeze(s *stream) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	var taken [][]byte
	defer func() {
		for _, piece := range taken {
			_ = unix.Munmap(piece)
		}
	}()
	dropCaches()
	for {
		piece, err := takePiece(s)
		if errs.Is(err, errs.Unsupported) {
			return nil
		}
		if err != nil {
			return err
		}
		taken = append(taken, piece)
	}
}

func errNeeded() error {
	return &errs.Error{Kind: errs.Unsupported, Field: "memory", Msg: "the guest's programs need its memory", Hint: "end some of them and set it again, or restart the guest"}
}

func (b *balloon) size() uint64 { return uint64(len(b.held)) * balloonPiece }

// dropCaches frees what the guest's kernel remembers of its disks, and what the
// agent does not use any more. What is in use is kept.
func dropCaches() {
	_ = os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
	debug.FreeOSMemory()
}

// takePiece takes memory and has the host take it, unless it would leave the
// guest less than it needs meanwhile: its network cards, too, want memory at once.
func takePiece(s *stream) (piece []byte, err error) {
	if keyed("/proc/meminfo")["MemAvailable:"]<<10 < balloonPiece+balloonRest {
		return nil, errNeeded()
	}
	piece, err = unix.Mmap(-1, 0, balloonPiece, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("taking memory: %w", err)
	}
	defer func() {
		if err != nil {
			unix.Munmap(piece)
		}
	}()
	// It has no other pages than its own, all there, and none of them is ever
	// swapped out or seen by a child.
	_ = unix.Madvise(piece, unix.MADV_NOHUGEPAGE)
	_ = unix.Madvise(piece, unix.MADV_DONTFORK)
	if err := unix.Mlock(piece); err != nil {
		return nil, fmt.Errorf("keeping memory: %w", err)
	}
	still, err := pinned(piece)
	if err != nil {
		return nil, err
	}
	defer still()
	pages, err := pagesOf(piece)
	if err != nil {
		return nil, err
	}
	return piece, offer(s, pages)
}

// pinned keeps the kernel from moving the pages of a piece until still is
// called: the host would take another's in their place.
func pinned(piece []byte) (still func(), err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, err
	}
	still = func() { unix.Close(p[0]); unix.Close(p[1]) }
	if _, err := unix.FcntlInt(uintptr(p[1]), unix.F_SETPIPE_SZ, len(piece)); err != nil {
		still()
		return nil, fmt.Errorf("a pipe of %d bytes: %w", len(piece), err)
	}
	for rest := piece; len(rest) > 0; {
		v := unix.Iovec{Base: unsafe.SliceData(rest)}
		v.SetLen(len(rest))
		n, _, errno := unix.Syscall6(unix.SYS_VMSPLICE, uintptr(p[1]), uintptr(unsafe.Pointer(&v)), 1, unix.SPLICE_F_NONBLOCK, 0, 0)
		if errno != 0 {
			still()
			return nil, fmt.Errorf("pinning memory: %w", errno)
		}
		rest = rest[n:]
	}
	return still, nil
}

// Of /proc/PID/pagemap, Documentation/admin-guide/mm/pagemap.rst.
const (
	pagePresent = 1 << 63
	pageNumber  = 1<<55 - 1
)

// pagesOf are the numbers of the pages of a piece.
func pagesOf(piece []byte) ([]uint32, error) {
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size := os.Getpagesize()
	b := make([]byte, len(piece)/size*8)
	at := int64(uintptr(unsafe.Pointer(unsafe.SliceData(piece)))) / int64(size) * 8
	if _, err := f.ReadAt(b, at); err != nil {
		return nil, fmt.Errorf("reading where memory is: %w", err)
	}
	var pages []uint32
	for ; len(b) > 0; b = b[8:] {
		e := binary.LittleEndian.Uint64(b)
		n := e & pageNumber
		if e&pagePresent == 0 || n == 0 || n > 1<<32-1 {
			return nil, &errs.Error{Kind: errs.Unsupported, Msg: "the guest's kernel does not tell where memory is"}
		}
		pages = append(pages, uint32(n))
	}
	return pages, nil
}

// offer tells the host of pages and waits until it has taken them.
func offer(s *stream, pages []uint32) error {
	s.SetDeadline(time.Now().Add(answerTimeout))
	defer s.SetDeadline(time.Time{})
	if err := agent.WriteNumbers(s, agent.KindPages, pages...); err != nil {
		return errHungUp
	}
	if kind, _, err := s.frames.Next(); err != nil || kind != agent.KindPages {
		return errHungUp
	}
	return nil
}
