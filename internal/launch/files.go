package launch

import (
	"encoding/binary"
	"os"

	"golang.org/x/sys/unix"

	"lodge/internal/launch/plan"
)

// File is something that a jailed program finds open: an Open, Kept, Pair,
// Memory or Tap.
type File interface {
	count() int // of descriptors
	// open writes the plan that opens it and puts the descriptors into fds.
	open(s Script, fds []plan.Reg)
}

// Open is a file of the host, opened as root.
type Open struct {
	Path  string
	Flags int // of open(2)
}

func (Open) count() int { return 1 }

func (o Open) open(s Script, fds []plan.Reg) { s.Set(fds[0], s.Open(o.Path, o.Flags)) }

// Kept is a file of the host that is the program's to change and outlives it.
// One that is not there yet begins as a copy of another.
type Kept struct {
	Path string
	From string
}

func (Kept) count() int { return 1 }

func (k Kept) open(s Script, fds []plan.Reg) {
	what, made, ok := "keep "+k.Path, s.Mark(), s.Mark()
	s.Set(fds[0], s.Try(unix.SYS_OPENAT, Cwd, s.Text(k.Path), plan.Imm(unix.O_RDWR|unix.O_CLOEXEC), Zero))
	s.JumpUnless(fds[0], No(unix.ENOENT), made)
	fresh := k.Path + ".new"
	to := s.Sys(what, unix.SYS_OPENAT, Cwd, s.Text(fresh), plan.Imm(unix.O_RDWR|unix.O_CREAT|unix.O_TRUNC|unix.O_CLOEXEC), plan.Imm(0o600))
	s.append(k.From, to)
	s.Do(what, unix.SYS_FSYNC, to)
	s.Do(what, unix.SYS_RENAME, s.Text(fresh), s.Text(k.Path))
	s.Set(fds[0], to)
	s.Here(made)
	s.JumpBelow(plan.Imm(-1), fds[0], ok)
	s.Fail(what, fds[0])
	s.Here(ok)
}

// append copies a file of the host to the end of what was written to another.
func (s Script) append(path string, to plan.Reg) {
	from, again := s.Open(path, unix.O_RDONLY), s.Mark()
	s.Here(again)
	n := s.Sys("copy "+path, unix.SYS_SENDFILE, to, from, Zero, plan.Imm(copyMost))
	s.JumpUnless(n, Zero, again)
	s.Close(from)
}

// Pair is a channel between the program and the host: two descriptors of one
// stream socket pair. The second is the host's end. The program merely holds
// it, so that the channel outlives whoever of the host speaks through it: who
// wants to, Takes it.
type Pair struct{}

func (Pair) count() int { return 2 }

func (Pair) open(s Script, fds []plan.Reg) {
	at := s.Space(8)
	s.Do("make a channel", unix.SYS_SOCKETPAIR, plan.Imm(unix.AF_UNIX), plan.Imm(unix.SOCK_STREAM|unix.SOCK_CLOEXEC), Zero, at)
	s.LoadTo(fds[0], at)
	s.LoadTo(fds[1], at+4)
}

// Memory is a file that exists in memory only, which the program's control
// group pays for: the parts one after the other, then zeros up to Size.
type Memory struct {
	Name  string // as /proc/PID/maps shows it
	From  string // file of the host that it is a copy of, with the same holes; instead of Parts
	Parts []Part
	Size  uint64 // at least; 0: that of the parts
	Seal  int    // F_SEAL_ flags of what nobody may do to it any more
	// Huge asks for pages of 2 MiB where the program advises it (MADV_HUGEPAGE),
	// whatever the host's setting for memory files is. HugeFiles says where that
	// can be asked for. Such a file cannot be sealed.
	Huge bool
}

// HugeFiles reports whether this kernel has huge pages for files in memory.
func HugeFiles() bool {
	_, err := os.Stat("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
	return err == nil
}

// Part is a file of the host, or bytes.
type Part struct {
	Path  string
	Bytes []byte
}

func (Memory) count() int { return 1 }

// copyMost is how much sendfile(2) copies in one call at most.
const copyMost = 1 << 30

func (m Memory) open(s Script, fds []plan.Reg) {
	what := "memory for " + m.Name
	fd := m.create(s, what)
	if m.Size > 0 {
		s.Do(what, unix.SYS_FTRUNCATE, fd, plan.Imm(int64(m.Size)))
	}
	if m.From != "" {
		m.copySparse(s, fd)
	}
	for _, p := range m.Parts {
		if p.Path == "" {
			s.Do(what, unix.SYS_WRITE, fd, s.Bytes(p.Bytes), plan.Imm(len(p.Bytes)))
			continue
		}
		s.append(p.Path, fd)
	}
	s.Do(what, unix.SYS_LSEEK, fd, Zero, plan.Imm(unix.SEEK_SET))
	if m.Seal != 0 {
		s.Do("seal "+m.Name, unix.SYS_FCNTL, fd, plan.Imm(unix.F_ADD_SEALS), plan.Imm(m.Seal))
	}
	s.Set(fds[0], fd)
}

// create makes the empty file: of memfd_create(2), or the only one of a memory file
// system of its own, which is mounted nowhere and ends with it. Its size is no
// matter of that file system's, and its program opens it anew as somebody who is
// not root.
func (m Memory) create(s Script, what string) plan.Reg {
	if !m.Huge {
		return s.Sys(what, unix.SYS_MEMFD_CREATE, s.Text(m.Name), plan.Imm(unix.MFD_CLOEXEC|unix.MFD_NOEXEC_SEAL))
	}
	const kind = "tmpfs"
	mount := s.Create(kind, s.Filesystem(kind, Opt("huge", "advise"), Opt("size", "0")), unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	fd := s.Sys(what, unix.SYS_OPENAT, mount, s.Text(m.Name), plan.Imm(unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC), plan.Imm(0o666))
	s.Close(mount)
	return fd
}

// piece is how much of a file with holes is copied at a time.
const piece = 1 << 20

// copySparse copies From without its holes. Both files' positions move
// together; that of From finds the next data.
func (m Memory) copySparse(s Script, fd plan.Reg) {
	what := "copy " + m.From
	from, again, done := s.Open(m.From, unix.O_RDONLY), s.Mark(), s.Mark()
	s.Here(again)
	at := s.Sys(what, unix.SYS_LSEEK, from, Zero, plan.Imm(unix.SEEK_CUR))
	data := s.Try(unix.SYS_LSEEK, from, at, plan.Imm(unix.SEEK_DATA))
	s.JumpIf(data, No(unix.ENXIO), done)
	s.Do(what, unix.SYS_LSEEK, fd, data, plan.Imm(unix.SEEK_SET))
	n := s.Sys(what, unix.SYS_SENDFILE, fd, from, Zero, plan.Imm(piece))
	s.JumpUnless(n, Zero, again)
	s.Here(done)
	s.Close(from)
}

// Tap is a network card's host end, made in the host's network and a port of
// its bridge. It is there as long as the program has it open. The address of
// the guest's end is the program's affair.
//
// The zero Tap is a door to the host's network with no card behind it yet: who
// Takes it can put one there.
type Tap struct {
	Device  string // at most 15 characters
	Master  string // bridge, or ""
	MTU     int    // 0 is the kernel's own
	Header  bool   // packets come with the virtio header
	Offload int    // TUN_F_ flags of what the guest's end takes unfinished; with Header only
}

func (Tap) count() int { return 1 }

func (t Tap) open(s Script, fds []plan.Reg) {
	if t.Device == "" {
		s.Set(fds[0], s.Open("/dev/net/tun", unix.O_RDWR))
		return
	}
	w := s.NewWire()
	w.Remove(t.Device)
	fd := s.Open("/dev/net/tun", unix.O_RDWR)
	flags := uint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if t.Header {
		flags |= unix.IFF_VNET_HDR
	}
	request := make([]byte, 40) // struct ifreq
	copy(request, t.Device)
	binary.LittleEndian.PutUint16(request[unix.IFNAMSIZ:], flags)
	what := "make network card " + t.Device
	s.Do(what, unix.SYS_IOCTL, fd, plan.Imm(unix.TUNSETIFF), s.Bytes(request))
	s.Do(what, unix.SYS_IOCTL, fd, plan.Imm(unix.TUNSETOFFLOAD), plan.Imm(t.Offload))
	w.Mute(t.Device)
	w.join(t.Device, t.Master, t.MTU)
	s.Set(fds[0], fd)
}

// join makes an interface a port of a bridge and switches it on.
func (w Wire) join(name, master string, mtu int) {
	m := NewMessage(unix.RTM_NEWLINK, 0, IfInfo(0, unix.IFF_UP))
	if mtu > 0 {
		m.Number(unix.IFLA_MTU, uint32(mtu))
	}
	masterAt := 0
	if master != "" {
		masterAt = m.Number(unix.IFLA_MASTER, 0)
	}
	b := m.Bytes()
	at := w.s.Bytes(b)
	w.s.Store32(at+LinkIndexAt, w.Index(name))
	if master != "" {
		w.s.Store32(at+plan.At(masterAt), w.Index(master))
	}
	w.Ask("switch on "+name, at, len(b))
}
