package agent

import "sync"

// Window is how much may be on its way to somebody who says what he took.
type Window struct {
	mu     sync.Mutex
	cond   *sync.Cond
	free   int
	size   int
	closed bool
}

// NewWindow is of size bytes.
func NewWindow(size int) *Window {
	w := &Window{free: size, size: size}
	w.cond = sync.NewCond(&w.mu)
	return w
}

// Take waits for room and returns how much it took, at most n; 0 once closed.
func (w *Window) Take(n int) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.free == 0 && !w.closed {
		w.cond.Wait()
	}
	if w.closed {
		return 0
	}
	n = min(n, w.free)
	w.free -= n
	return n
}

// Give returns room. Who gives too much gains nothing.
func (w *Window) Give(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.free = min(w.size, w.free+n)
	w.cond.Broadcast()
}

// Close wakes who waits for room.
func (w *Window) Close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	w.cond.Broadcast()
}

// Inbox holds one of a program's streams until somebody takes it.
type Inbox struct {
	mu    sync.Mutex
	cond  *sync.Cond
	buf   []byte
	ended bool
}

// NewInbox is an empty one.
func NewInbox() *Inbox {
	i := &Inbox{}
	i.cond = sync.NewCond(&i.mu)
	return i
}

// Put adds what arrived; nothing is the end. It is false for more than a
// sender who keeps to ExecWindow can have sent.
func (i *Inbox) Put(p []byte) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	if len(i.buf)+len(p) > ExecWindow {
		return false
	}
	if len(p) == 0 {
		i.ended = true
	} else if !i.ended {
		i.buf = append(i.buf, p...)
	}
	i.cond.Broadcast()
	return true
}

// Get waits for something and takes all of it.
func (i *Inbox) Get() (b []byte, ended bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for len(i.buf) == 0 && !i.ended {
		i.cond.Wait()
	}
	b, i.buf = i.buf, nil
	return b, i.ended
}

// End is the end of what arrives.
func (i *Inbox) End() { i.Put(nil) }

// takenEvery is how many bytes are taken before the sender is told.
const takenEvery = ExecWindow / 4

// Pour writes what arrives to w until it ends or w fails; the rest is thrown
// away. told says to the sender how much more it may send; 0: nothing more is
// wanted.
func (i *Inbox) Pour(w func([]byte) error, told func(n int) error) {
	taken, broken := 0, false
	for {
		b, ended := i.Get()
		if len(b) > 0 && !broken && w(b) != nil {
			broken = true
			if told(0) != nil {
				return
			}
		}
		if taken += len(b); taken >= takenEvery && !broken {
			if told(taken) != nil {
				return
			}
			taken = 0
		}
		if ended {
			return
		}
	}
}
