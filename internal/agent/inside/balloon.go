package inside

import (
	"encoding/binary"
	"fmt"
	"os"
	"runtime/debug"
	"slices"
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
		if keyed("/proc/meminfo")["MemAvailable:"]<<10 < balloonPiece+balloonRest {
			return b.size(), errNeeded()
		}
		piece, err := takePiece(s, unix.Mlock)
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
	dropCaches()
	if !hasToSpare() {
		return nil
	}
	if err := squeezeFixed(s); err != nil {
		return err
	}
	var taken [][]byte
	defer func() {
		for _, piece := range taken {
			_ = unix.Munmap(piece)
		}
	}()
	for hasToSpare() {
		piece, err := takePiece(s, populate)
		if err != nil {
			return err
		}
		taken = append(taken, piece)
		// If programs need memory now, the kernel takes what it needs of it.
		_ = unix.Madvise(piece, unix.MADV_FREE)
	}
	return nil
}

// squeezeFixed lets the host have what the guest is to keep free while the rest
// is taken. The kernel has memory that it used itself apart and gives it to
// programs last, so that would be it; but it gives it first to files that it
// cannot move. Nor can it take it from those if programs need it: they are
// small, and gone in a moment.
func squeezeFixed(s *stream) error {
	all, err := mapFixed(int(min(balloonRest, memoryFree()/4/balloonPiece*balloonPiece)))
	if err != nil {
		return fmt.Errorf("memory that is not moved: %w", err)
	}
	defer unix.Munmap(all)
	for piece := range slices.Chunk(all, balloonPiece) {
		if !hasToSpare() {
			return nil
		}
		if err := offerPiece(s, piece, populate); err != nil {
			return err
		}
	}
	return nil
}

// mapFixed maps a new file of a file system whose files are memory that the
// kernel does not move.
func mapFixed(size int) ([]byte, error) {
	fs, err := unix.Fsopen("ramfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, err
	}
	dir, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(dir)
	file, err := unix.Openat(dir, "memory", unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	defer unix.Close(file)
	if err := unix.Ftruncate(file, int64(size)); err != nil {
		return nil, err
	}
	return unix.Mmap(file, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
}

// populate makes all pages of mapped memory be there.
func populate(piece []byte) error { return unix.Madvise(piece, unix.MADV_POPULATE_WRITE) }

// hasToSpare reports whether a piece can be taken and leaves enough: network
// cards, too, want memory at once.
func hasToSpare() bool { return memoryFree() >= balloonPiece+balloonRest }

func memoryFree() uint64 {
	var info unix.Sysinfo_t
	_ = unix.Sysinfo(&info)
	return info.Freeram * uint64(info.Unit)
}

func errNeeded() error {
	return &errs.Error{Kind: errs.Unsupported, Field: "memory", Msg: "the guest's programs need its memory", Hint: "end some of them and set it again, or restart the guest"}
}

func (b *balloon) size() uint64 { return uint64(len(b.held)) * balloonPiece }

// dropCaches frees what the guest's kernel remembers of its disks, of programs
// that run too, and what the agent does not use any more.
func dropCaches() {
	_ = os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
	if fd, err := unix.Open("/sys/fs/cgroup/memory.reclaim", unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err == nil {
		memory := keyed("/proc/meminfo")
		// It answers EAGAIN if it found less, which package os would wait after.
		_, _ = unix.Write(fd, fmt.Appendf(nil, "%dK swappiness=0", memory["Active(file):"]+memory["Inactive(file):"]))
		_ = unix.Close(fd)
	}
	debug.FreeOSMemory()
}

// takePiece takes memory, which fill makes be there, and has the host take it.
func takePiece(s *stream, fill func(piece []byte) error) ([]byte, error) {
	piece, err := unix.Mmap(-1, 0, balloonPiece, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("taking memory: %w", err)
	}
	// It has no other pages than its own, and none of them is ever seen by a
	// child.
	_ = unix.Madvise(piece, unix.MADV_NOHUGEPAGE)
	_ = unix.Madvise(piece, unix.MADV_DONTFORK)
	if err := offerPiece(s, piece, fill); err != nil {
		unix.Munmap(piece)
		return nil, err
	}
	return piece, nil
}

func offerPiece(s *stream, piece []byte, fill func(piece []byte) error) error {
	if err := fill(piece); err != nil {
		return fmt.Errorf("filling memory: %w", err)
	}
	still, err := pinned(piece)
	if err != nil {
		return err
	}
	defer still()
	pages, err := pagesOf(piece)
	if err != nil {
		return err
	}
	return offer(s, pages)
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
