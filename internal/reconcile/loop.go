package reconcile

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"lodge/internal/base/errs"
)

// loop is one reconciler at work. An id is in at most one of four states: not
// here (at rest), waiting in the queue, running, or sleeping on a timer.
type loop struct {
	name    string
	rec     Reconciler
	log     *slog.Logger
	workers int

	mu      sync.Mutex
	ctx     context.Context // nil before the start
	work    *sync.WaitGroup
	stopped bool
	items   map[string]*item
	queue   []*item
	running int
}

type item struct {
	id       string
	queued   bool
	running  bool
	again    bool        // woken while running
	againOwn bool        // woken while running by what it wrote itself
	fails    int         // in a row
	timer    *time.Timer // nil when it does not sleep
}

func newLoop(rec Reconciler, log *slog.Logger, workers int) *loop {
	return &loop{name: rec.Name(), rec: rec, log: log, workers: workers, items: map[string]*item{}}
}

// start begins to work on what was woken before and after.
func (l *loop) start(ctx context.Context, work *sync.WaitGroup) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ctx, l.work = ctx, work
	l.dispatch()
}

// stop begins no more work; what runs is told by its context.
func (l *loop) stop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stopped = true
	l.queue = nil
	for _, it := range l.items {
		it.sleep(nil)
	}
}

// sleep replaces the item's timer.
func (it *item) sleep(t *time.Timer) {
	if it.timer != nil {
		it.timer.Stop()
	}
	it.timer = t
}

// wake queues an id. A wake by the reconciler's own writing does not hasten the
// next attempt of an id that fails.
func (l *loop) wake(id string, own bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	it := l.items[id]
	if it == nil {
		it = &item{id: id}
		l.items[id] = it
	}
	switch {
	case it.running && own:
		it.againOwn = true
	case it.running:
		it.again = true
	case own && it.fails > 0:
	default:
		l.enqueue(it)
	}
}

// enqueue is called with the loop locked and an item that does not run.
func (l *loop) enqueue(it *item) {
	it.sleep(nil)
	if it.queued || l.stopped {
		return
	}
	it.queued = true
	l.queue = append(l.queue, it)
	l.dispatch()
}

// dispatch starts work while there is any and hands are free. Called with the
// loop locked.
func (l *loop) dispatch() {
	for l.ctx != nil && !l.stopped && l.running < l.workers && len(l.queue) > 0 {
		it := l.queue[0]
		l.queue[0] = nil
		l.queue = l.queue[1:]
		it.queued, it.running = false, true
		l.running++
		l.work.Go(func() { l.run(it) })
	}
}

func (l *loop) run(it *item) {
	log := l.log.With("id", it.id)
	again, err := l.reconcile(l.ctx, log, it.id)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.running--
	it.running = false
	l.settle(it, log, again, err)
	l.dispatch()
}

// settle decides when the item runs next. Called with the loop locked.
func (l *loop) settle(it *item, log *slog.Logger, again time.Duration, err error) {
	woken := it.again || it.againOwn && err == nil
	it.again, it.againOwn = false, false
	if l.stopped || l.ctx.Err() != nil {
		return
	}
	if err != nil {
		it.fails++
		again = delay(it.fails, errs.KindOf(err))
		level := slog.LevelWarn
		if errs.Is(err, errs.Busy) && it.fails <= quietAttempts {
			level = slog.LevelDebug // it waits for another record, which is usual at start
		}
		log.Log(l.ctx, level, "reconcile failed", "error", err, "attempts", it.fails, "again", again)
	} else {
		it.fails = 0
	}
	switch {
	case woken:
		l.enqueue(it)
	case again > 0:
		it.sleep(time.AfterFunc(again, func() { l.rouse(it) }))
	default:
		delete(l.items, it.id)
	}
}

// rouse queues an item whose time has come.
func (l *loop) rouse(it *item) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.items[it.id] == it && !it.running {
		l.enqueue(it)
	}
}

// delay returns how long to wait after so many failures in a row. What nobody
// foresaw is tried again soon: it may have been a moment's, and a receipt that
// waited for it has ended already.
func delay(fails int, kind errs.Kind) time.Duration {
	if !kind.Retry() && kind != errs.Internal {
		return slowRetry
	}
	d := firstRetry
	for i := 1; i < fails && d < lastRetry; i++ {
		d *= 2
	}
	return min(d, lastRetry)
}

// reconcile calls the reconciler and turns a panic into an error.
func (l *loop) reconcile(ctx context.Context, log *slog.Logger, id string) (again time.Duration, err error) {
	defer l.caught("reconcile", id, &err)
	return l.rec.Reconcile(ctx, log, id)
}

// caught is deferred around what a reconciler does: its panic is logged and
// becomes an error of kind Internal in err, if that is not nil.
func (l *loop) caught(op, id string, err *error) {
	p := recover()
	if p == nil {
		return
	}
	l.log.Error("panic", "in", op, "id", id, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
	if err != nil {
		*err = &errs.Error{Op: op, Kind: errs.Internal, Ref: l.name + "/" + id, Msg: fmt.Sprintf("panic: %v", p)}
	}
}

// wakeAll queues every id that the reconciler looks after, as if it had written
// to it: what fails keeps its pace.
func (l *loop) wakeAll() {
	for _, id := range l.all() {
		l.wake(id, true)
	}
}

func (l *loop) all() []string {
	defer l.caught("all", "", nil)
	return l.rec.All()
}
