package inside

import (
	"errors"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"lodge/internal/agent"
	"lodge/internal/base/errs"
	"lodge/internal/base/proc"
)

// freezeMax is how long the writable layer stays frozen whatever the host says
// or does not say.
const freezeMax = 30 * time.Second

// Requests of linux/fs.h.
const (
	fifreeze = 0xC0045877
	fithaw   = 0xC0045878
)

// freezer lets one request at a time freeze the writable layer.
type freezer struct{ mu sync.Mutex }

// freeze brings the writable layer to rest until the host hangs up or the time
// is over.
func (a *Agent) freeze(s *stream, r agent.Request) {
	if !a.freezer.mu.TryLock() {
		s.result(agent.Result{}, &errs.Error{Kind: errs.Busy, Msg: "the guest's disk is frozen already", Hint: "try again in a few seconds"})
		return
	}
	defer a.freezer.mu.Unlock()
	d := min(time.Duration(r.Seconds*float64(time.Second)), freezeMax)
	f, err := a.layer()
	if err == nil {
		defer f.Close()
		err = ioctl(f, fifreeze)
	}
	if err != nil {
		s.result(agent.Result{}, &errs.Error{Kind: errs.Unsupported, Msg: "the guest's disk cannot be frozen: " + err.Error(), Err: err})
		return
	}
	defer ioctl(f, fithaw)
	s.result(agent.Result{}, nil)
	s.SetReadDeadline(time.Now().Add(d))
	_, _, _ = s.frames.Next() // the host can only hang up
}

// layer opens the file system that the guest writes to.
func (a *Agent) layer() (*os.File, error) {
	if a.Volume == nil {
		return nil, errors.New("the guest has no writable layer of its own")
	}
	fd, err := unix.Openat(int(a.Volume.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "layer"), nil
}

func ioctl(f *os.File, request uint) error {
	return proc.Control(f, func(fd int) error { return unix.IoctlSetInt(fd, request, 0) })
}
