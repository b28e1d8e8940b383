package keepd

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"slices"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
	"lodge/internal/keeper"
)

// handed is what one version of the keeper hands to the next across execve, as
// JSON in memory. It may only grow.
type handed struct {
	Instance string          `json:"instance"`
	Listener int             `json:"listener"`
	Lock     int             `json:"lock"`
	Programs []handedProgram `json:"programs"`
}

type handedProgram struct {
	Record  keeper.Record `json:"record"`
	Pidfd   int           `json:"pidfd"`
	Child   bool          `json:"child"`
	Master  int           `json:"master"`
	Viewers []int         `json:"viewers,omitempty"`

	Watches map[string]int `json:"watches,omitempty"` // listeners by name
}

// upgrade replaces this program by another in the same process, so that it
// stays the parent of all that runs. It returns only when it did not work, and
// then nothing has changed.
func (k *daemon) upgrade(binary string) error {
	k.gate.Lock() // starts and ends that are under way go through first
	defer k.gate.Unlock()
	k.mu.Lock()
	defer k.mu.Unlock()
	listener, err := k.listener.File()
	if err != nil {
		return err
	}
	defer listener.Close()
	h := handed{Instance: k.instance, Listener: int(listener.Fd()), Lock: int(k.lock.Fd())}
	for _, p := range k.programs {
		hp := handedProgram{Record: p.rec, Pidfd: p.pidfd, Child: p.child, Master: -1}
		if c := p.console; c != nil {
			c.mu.Lock() // nothing is read any more that we could not carry on
			defer c.mu.Unlock()
			hp.Master = c.master
			for _, v := range c.viewers {
				hp.Viewers = append(hp.Viewers, v.fd)
			}
		}
		for name, w := range p.watches {
			if hp.Watches == nil {
				defer p.hush()()
				hp.Watches = map[string]int{}
			}
			hp.Watches[name] = w.fd
		}
		h.Programs = append(h.Programs, hp)
	}
	return k.become(binary, h)
}

// become executes binary with what is handed over open.
func (k *daemon) become(binary string, h handed) error {
	b, err := json.Marshal(h)
	if err != nil {
		return err
	}
	fd, err := unix.MemfdCreate("lodge-keeper", 0)
	if err != nil {
		return err
	}
	memory := os.NewFile(uintptr(fd), "handed")
	defer memory.Close()
	if _, err := memory.WriteAt(b, 0); err != nil {
		return err
	}
	if err := h.keepOpen(0); err != nil {
		return errors.Join(err, h.keepOpen(unix.FD_CLOEXEC))
	}
	err = syscall.Exec(binary, []string{binary, "-dir", k.dir, "-resume", strconv.Itoa(fd)}, os.Environ())
	return &errs.Error{Kind: errs.Internal, Ref: binary, Msg: "the new keeper cannot be run", Err: errors.Join(err, h.keepOpen(unix.FD_CLOEXEC))}
}

// files returns all descriptors that are handed over.
func (h handed) files() []int {
	fds := []int{h.Listener, h.Lock}
	for _, p := range h.Programs {
		fds = append(fds, p.Pidfd, p.Master)
		fds = append(fds, p.Viewers...)
		fds = slices.AppendSeq(fds, maps.Values(p.Watches))
	}
	return fds
}

// keepOpen sets the flag that decides whether execve closes what is handed
// over: 0 or FD_CLOEXEC.
func (h handed) keepOpen(flag int) error {
	for _, fd := range h.files() {
		if fd < 0 {
			continue
		}
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, flag); err != nil {
			return err
		}
	}
	return nil
}

// takeOver makes a keeper out of what the version before us handed over.
func takeOver(dir string, fd int, log *slog.Logger) (*daemon, error) {
	memory := os.NewFile(uintptr(fd), "handed")
	defer memory.Close()
	info, err := memory.Stat()
	if err != nil {
		return nil, err
	}
	b := make([]byte, info.Size())
	if _, err := memory.ReadAt(b, 0); err != nil {
		return nil, err
	}
	var h handed
	if err := json.Unmarshal(b, &h); err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(h.Listener), "listener")
	l, err := net.FileListener(file)
	if err != nil {
		return nil, err
	}
	file.Close()
	unixListener, ok := l.(*net.UnixListener)
	if !ok {
		return nil, fmt.Errorf("descriptor %d is not our socket", h.Listener)
	}
	k, err := newDaemon(dir, h.Instance, unixListener, os.NewFile(uintptr(h.Lock), "lock"), log)
	if err != nil {
		return nil, err
	}
	for _, hp := range h.Programs {
		if err := k.takeOne(hp); err != nil {
			return nil, fmt.Errorf("program %s: %w", hp.Record.Name, err)
		}
	}
	return k, nil
}

func (k *daemon) takeOne(hp handedProgram) error {
	p := &program{rec: hp.Record, pidfd: hp.Pidfd, child: hp.Child}
	k.programs[p.rec.Name] = p
	if hp.Master >= 0 {
		var err error
		if p.console, err = k.consoles.add(hp.Master, newRotating(p.rec.Log, p.rec.LogMax)); err != nil {
			return err
		}
		for _, fd := range hp.Viewers {
			if err := k.consoles.attach(p.console, fd); err != nil {
				return err
			}
		}
	}
	for name, fd := range hp.Watches {
		if fd >= 0 {
			k.watch(p, name, fd, true)
		}
	}
	if p.pidfd < 0 {
		return nil
	}
	return k.exits.watch(p, p.pidfd)
}
