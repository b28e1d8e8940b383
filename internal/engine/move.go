package engine

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
)

// Mover is a machine whose guest can go on in another program of the same
// engine, here or on another host, while it runs. Who moves a guest starts that
// program with Parts.Arriving, has it Receive what this one Sends, and carries
// bytes between them where they are on two hosts. Move does it on one.
type Mover interface {
	// Describe tells what the program where the guest is to go on must be like.
	// It holds until the guest's devices change.
	Describe(ctx context.Context) (Description, error)
	// Send has the guest go on at the other end of d.Stream. When it returns nil
	// the guest runs there and this program has been killed. When it returns an
	// error the guest goes on here as if nothing had happened, and what was begun
	// at the other end is to be killed; but for one of kind Conflict after
	// Departure.PostCopy took effect, which says that the guest is lost.
	Send(ctx context.Context, d Departure) (Moved, error)
	// Receive makes a machine that was started with Parts.Arriving ready for its
	// guest, which may be sent when it returned.
	Receive(ctx context.Context, a Arrival) (Landing, error)
}

// Description is a running guest's machine.
type Description struct {
	Machine []byte   // for Parts.Arriving; the engine's own business
	Disks   []string // that the guest writes to; what the other program does not share must be Served there
}

// Arriving says that a program is started for a guest that runs elsewhere.
type Arriving struct {
	Machine  []byte // Description.Machine of where it runs
	PostCopy bool   // it may come before its memory does: Departure.PostCopy
}

// Departure is how a guest is sent.
type Departure struct {
	Stream *os.File            // socket to the other program; stays the caller's
	Disks  map[string]*os.File // by the disk's name: sockets to where its copy is served. Disks that are not here are shared
	// PostCopy lets the guest run there at once, and sends its memory as it is
	// asked for: a guest that writes faster than memory is sent arrives, and
	// stands still for the shortest time. From then on it needs both programs: if
	// either ends, or the stream does, the guest is lost.
	PostCopy  bool
	Bandwidth uint64           // bytes a second at most, for memory and for each disk; 0: no limit
	Downtime  time.Duration    // that the guest may stand still, as far as that can be foreseen; 0: 300 ms
	Progress  func(p Progress) // called now and then; may be nil

	// Release is called while the guest stands still and its disks' copies are
	// complete: the other side must stop serving them (Landing.Release).
	Release func(ctx context.Context) error
	// Landed is called when all was sent. It waits until the guest runs at the
	// other end, and may only fail if it certainly does not and never will: then
	// it goes on here.
	Landed func(ctx context.Context) error
}

// Progress is how far a guest has come, in bytes. Memory that changes is sent
// again, so what is left may grow.
type Progress struct {
	Memory, MemoryLeft uint64
	Disk, DiskLeft     uint64
	Pass               int // through the memory, from 1
}

// Moved is what a guest's move was like.
type Moved struct {
	Progress
	Mirrored time.Duration // until the copies of disks were complete
	Total    time.Duration
	After    uint64        // bytes of memory that followed when the guest ran there already
	Downtime time.Duration // as the engine counts it
	Stopped  time.Time     // when the guest stood still
	Paused   time.Duration // between Stopped and when it ran on; by Move only
}

// Arrival is how a guest is received.
type Arrival struct {
	Stream   *os.File // socket to the program that sends; stays the caller's
	PostCopy bool     // as the sender has it
	// Disks are served to who connects to Listen until Landing.Release: the
	// sender fills them. Their files must have the size of the sender's.
	Disks  []string
	Listen *os.File // listening stream socket; stays the caller's; nil without Disks
}

// Landing is a machine whose guest comes.
type Landing interface {
	// Release ends what Arrival.Disks began: the disks are the guest's now.
	Release(ctx context.Context) error
	// Wait returns when the guest runs, or is paused as it was, here, and when
	// that began. It is an error of kind Conflict that it will not: the
	// program has ended.
	Wait(ctx context.Context) (time.Time, error)
	// Abort makes sure that the guest does not run here, now or later.
	Abort(ctx context.Context) error
}

// Moving is what a person may say about a move.
type Moving struct {
	Mirror    []string // disks whose content is copied because the other program has files of its own for them
	PostCopy  bool
	Bandwidth uint64
	Downtime  time.Duration
	Progress  func(p Progress)
}

// Target is a machine that was started with Parts.Arriving.
type Target interface {
	Mover
	Kill(ctx context.Context) error // as Machine has it
}

// Move has the guest of one machine go on in another of this host. dir is a
// folder that only root may enter. After an error the guest runs where it did, if
// Send says so, and the other program has been killed.
func Move(ctx context.Context, from Mover, to Target, how Moving, dir string) (Moved, error) {
	here, there, err := socketPair()
	if err != nil {
		return Moved{}, errors.Join(err, to.Kill(context.WithoutCancel(ctx)))
	}
	defer here.Close()
	defer there.Close()
	a := Arrival{Stream: there, PostCopy: how.PostCopy, Disks: how.Mirror}
	d := Departure{Stream: here, PostCopy: how.PostCopy, Bandwidth: how.Bandwidth, Downtime: how.Downtime, Progress: how.Progress}
	var dial func() (*os.File, error)
	if len(how.Mirror) > 0 {
		var end func()
		if a.Listen, dial, end, err = listen(dir); err != nil {
			return Moved{}, errors.Join(err, to.Kill(context.WithoutCancel(ctx)))
		}
		defer end()
	}
	landing, err := to.Receive(ctx, a)
	if err != nil {
		return Moved{}, errors.Join(err, to.Kill(context.WithoutCancel(ctx)))
	}
	there.Close() // the program has its own: when it ends, the sender is to see it
	moved, err := send(ctx, from, landing, d, how.Mirror, dial)
	if err != nil {
		return moved, errors.Join(err, landing.Abort(context.WithoutCancel(ctx)))
	}
	return moved, nil
}

// landTime is how long a guest that was sent whole may take to run on. It takes
// milliseconds.
const landTime = time.Minute

func send(ctx context.Context, from Mover, landing Landing, d Departure, mirror []string, dial func() (*os.File, error)) (Moved, error) {
	d.Disks = map[string]*os.File{}
	for _, name := range mirror {
		f, err := dial()
		if err != nil {
			return Moved{}, fmt.Errorf("connecting to where disk %s is served: %w", name, err)
		}
		defer f.Close()
		d.Disks[name] = f
	}
	var began time.Time
	d.Release = landing.Release
	d.Landed = func(ctx context.Context) error {
		wait, cancel := context.WithTimeout(ctx, landTime)
		defer cancel()
		var err error
		if began, err = landing.Wait(wait); err != nil {
			return errors.Join(err, landing.Abort(ctx))
		}
		return nil
	}
	moved, err := from.Send(ctx, d)
	if err == nil && !moved.Stopped.IsZero() {
		moved.Paused = began.Sub(moved.Stopped)
	}
	return moved, err
}

func socketPair() (a, b *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	return os.NewFile(uintptr(fds[0]), "sender"), os.NewFile(uintptr(fds[1]), "receiver"), nil
}

// listen makes a socket that nobody else can connect to, and how to. end takes
// it back.
func listen(dir string) (l *os.File, dial func() (*os.File, error), end func(), err error) {
	path := filepath.Join(dir, "move.sock")
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, nil, nil, err
	}
	// By way of an open folder, because a socket's path must be short.
	at, err := os.Open(dir)
	if err != nil {
		return nil, nil, nil, err
	}
	short := &net.UnixAddr{Net: "unix", Name: fmt.Sprintf("/proc/self/fd/%d/%s", at.Fd(), filepath.Base(path))}
	s, err := net.ListenUnix("unix", short)
	if err != nil {
		at.Close()
		return nil, nil, nil, &errs.Error{Op: "engine.move", Kind: errs.Internal, Msg: "no socket can be made in " + dir, Err: err}
	}
	s.SetUnlinkOnClose(false)
	l, err = s.File()
	s.Close()
	end = func() {
		_ = os.Remove(path)
		at.Close()
		if l != nil {
			l.Close()
		}
	}
	if err != nil {
		end()
		return nil, nil, nil, err
	}
	dial = func() (*os.File, error) {
		c, err := net.DialUnix("unix", nil, short)
		if err != nil {
			return nil, err
		}
		defer c.Close()
		return c.File()
	}
	return l, dial, end, nil
}
