package keepd

import (
	"errors"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
	"lodge/internal/keeper"
)

// watches waits for what processes ask by their seccomp filters, with one
// thread for all. Answers are given by goroutines that exist only as long as
// there is something to answer, one at a time for each program.
type watches struct {
	epoll int
	log   *slog.Logger
	over  func(*watch) // nobody can ask there any more

	mu   sync.Mutex
	last int32
	byID map[int32]*watch
}

// watch is one listener that is answered.
type watch struct {
	id    int32
	name  string // of the listener, as clients know it
	p     *program
	quota *keeper.Quota
	root  uint64      // device number of the root file system that the quota is of
	turn  *sync.Mutex // of the program: held while an answer is given
	stale bool        // a keeper before us may have died over a question; guarded by turn

	mu sync.Mutex
	fd int // -1 once it is closed, which takes turn and mu
}

func newWatches(log *slog.Logger, over func(*watch)) (*watches, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	return &watches{epoll: epoll, log: log, over: over, byID: map[int32]*watch{}}, nil
}

// add begins to answer at w.fd.
func (ws *watches) add(w *watch) error {
	// A hint that asker and answerer do not run at the same time; older
	// kernels do without.
	_ = unix.IoctlSetInt(w.fd, notifySetFlags, unix.SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP)
	ws.mu.Lock()
	defer ws.mu.Unlock()
	ws.last++
	w.id = ws.last
	ws.byID[w.id] = w
	return unix.EpollCtl(ws.epoll, unix.EPOLL_CTL_ADD, w.fd, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLONESHOT, Fd: w.id})
}

func (ws *watches) run() {
	events := make([]unix.EpollEvent, 64)
	for {
		n, err := unix.EpollWait(ws.epoll, events, -1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			panic(err) // the descriptor is ours: this cannot be
		}
		for _, event := range events[:max(n, 0)] {
			ws.mu.Lock()
			w := ws.byID[event.Fd]
			ws.mu.Unlock()
			if w != nil {
				go ws.serve(w)
			}
		}
	}
}

// serve answers all that is asked by now.
func (ws *watches) serve(w *watch) {
	w.turn.Lock()
	err := error(nil)
	for err == nil && w.fd >= 0 {
		err = w.reply()
	}
	if errors.Is(err, errQuiet) {
		err = unix.EpollCtl(ws.epoll, unix.EPOLL_CTL_MOD, w.fd, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLONESHOT, Fd: w.id})
	}
	w.turn.Unlock()
	if err == nil {
		return
	}
	if !errors.Is(err, errOver) {
		ws.log.Error("questions of a program are not answered any more", "err", err)
	}
	ws.over(w)
}

var (
	errQuiet = errors.New("keeper: nobody asks")
	errOver  = errors.New("keeper: nobody can ask any more")
)

// asked fails with errQuiet or errOver when there is no question. One that is
// there only we take, so that taking it does not wait. Callers hold turn.
func (w *watch) asked() error {
	p := []unix.PollFd{{Fd: int32(w.fd), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(p, 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		case p[0].Revents&unix.POLLIN != 0:
			return nil
		case p[0].Revents&unix.POLLHUP != 0:
			return errOver
		}
		return errQuiet
	}
}

// drop ends a watch; it waits for an answer that is under way.
func (ws *watches) drop(w *watch) {
	w.turn.Lock()
	defer w.turn.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fd < 0 {
		return
	}
	ws.mu.Lock()
	delete(ws.byID, w.id)
	ws.mu.Unlock()
	// Closing alone would leave it in the epoll set while the daemon holds a
	// duplicate.
	_ = unix.EpollCtl(ws.epoll, unix.EPOLL_CTL_DEL, w.fd, nil)
	unix.Close(w.fd)
	w.fd = -1
}

// duplicate returns a descriptor of the listener that is the caller's, or -1
// when it is closed.
func (w *watch) duplicate() (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fd < 0 {
		return -1, nil
	}
	return unix.FcntlInt(uintptr(w.fd), unix.F_DUPFD_CLOEXEC, 0)
}

// watch answers at fd, which becomes ours, for p from now on and tells
// everyone. stale says that another keeper did so before. Callers hold mu.
func (k *daemon) watch(p *program, name string, fd int, stale bool) {
	if p.watches[name] != nil {
		unix.Close(fd)
		return
	}
	w := &watch{name: name, p: p, quota: p.rec.Quota, root: p.rec.RootDev, turn: &p.turn, stale: stale, fd: fd}
	if err := k.watches.add(w); err != nil {
		k.log.Error("questions of a program are not answered", "program", p.rec.Name, "err", err)
		go k.watches.drop(w)
		return
	}
	if p.watches == nil {
		p.watches = map[string]*watch{}
	}
	p.watches[name] = w
	k.tell(packet{m: keeper.Message{Op: keeper.OpWatched, Name: p.rec.Name, Watch: name}, w: w})
}

// watchMore carries out OpWatch; fds become ours.
func (k *daemon) watchMore(name, id string, fds []int) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	p, err := k.find(name)
	switch {
	case err != nil:
	case len(fds) != 1:
		err = errs.Bad("watch", "needs one descriptor", "")
	case p.rec.Exit != nil:
		err = &errs.Error{Kind: errs.Conflict, Ref: name, Msg: "the program has ended"}
	default:
		k.watch(p, id, fds[0], true)
		return nil
	}
	keeper.CloseAll(fds)
	return err
}

// unwatch ends a watch at which nobody can ask any more.
func (k *daemon) unwatch(w *watch) {
	k.mu.Lock()
	if w.p.watches[w.name] == w {
		delete(w.p.watches, w.name)
		k.tell(packet{m: keeper.Message{Op: keeper.OpUnwatched, Name: w.p.rec.Name, Watch: w.name}})
	}
	k.mu.Unlock()
	k.watches.drop(w)
}

// unwatchAll ends the watches of a program that has ended. Callers hold mu.
func (k *daemon) unwatchAll(p *program) {
	for _, w := range p.watches {
		go k.watches.drop(w)
	}
	p.watches = nil
}

// answerTime is how long an upgrade waits for an answer that is under way. One
// takes microseconds; one that hangs is made good by the next version.
const answerTime = time.Second

// hush waits until no answer to p is under way, and returns what lets answers
// be given again.
func (p *program) hush() (goOn func()) {
	for end := time.Now().Add(answerTime); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if p.turn.TryLock() {
			return p.turn.Unlock
		}
	}
	return func() {}
}
