package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
	"lodge/internal/engine"
	"lodge/internal/engine/qemu/qmp"
)

// move is a guest that leaves this QEMU, or comes to it.
type move struct {
	wake chan struct{} // QEMU told something of it

	mu      sync.Mutex
	stopped time.Time // when the guest last stood still
	resumed time.Time // when it last ran on
}

func newMove() *move { return &move{wake: make(chan struct{}, 1)} }

// tell takes in an event that has to do with the move. It does not wait.
func (v *move) tell(e qmp.Event) {
	v.mu.Lock()
	switch e.Name {
	case "STOP":
		v.stopped = e.At
	case "RESUME":
		v.resumed = e.At
	}
	v.mu.Unlock()
	select {
	case v.wake <- struct{}{}:
	default:
	}
}

func (v *move) times() (stopped, resumed time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.stopped, v.resumed
}

// wait returns when QEMU told something or a while has passed. It reports
// whether ctx still lasts.
func (v *move) wait(ctx context.Context) bool {
	const while = 50 * time.Millisecond
	t := time.NewTimer(while)
	defer t.Stop()
	select {
	case <-v.wake:
	case <-t.C:
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}

// toldMove hands an event on to the move that is under way, and reports whether
// there is one.
func (l *link) toldMove(e qmp.Event) bool {
	l.mu.Lock()
	v := l.move
	l.mu.Unlock()
	if v != nil {
		v.tell(e)
	}
	return v != nil
}

// begin says that the guest moves; end, that it does not any more.
func (l *link) beginMove() (v *move, end func()) {
	v = newMove()
	l.note(func() { l.move = v })
	return v, func() { l.note(func() { l.move = nil }) }
}

// still fails while the guest moves: whoever stopped it or let it run on then
// could have it run twice.
func (l *link) still() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.move == nil {
		return nil
	}
	return &errs.Error{Op: "qemu", Kind: errs.Busy, Msg: "it is being moved", Hint: "wait until that is over"}
}

// Describe tells what the QEMU where the guest is to go on must be like.
func (m *Machine) Describe(ctx context.Context) (engine.Description, error) {
	w, err := m.link.machine(ctx)
	if err != nil {
		return engine.Description{}, m.about(err)
	}
	if w.TPM {
		return engine.Description{}, m.about(&errs.Error{Op: "qemu.move", Kind: errs.Unsupported,
			Msg: "a guest with a security module cannot be moved while it runs", Hint: "stop it first"})
	}
	d := engine.Description{Disks: w.written()}
	w.Private = false // it gets all its memory where it goes
	d.Machine, err = json.Marshal(w)
	return d, err
}

// capabilities switches one of QEMU's ways to send a guest on, or none, and all
// others off that Lodge ever uses: an earlier daemon may have left them on.
func capabilities(name string, on bool) map[string]any {
	return ways(map[string]bool{name: on})
}

func ways(on map[string]bool) map[string]any {
	all := make([]map[string]any, 0, 6)
	for _, name := range []string{"x-ignore-shared", "events", "return-path", "postcopy-ram", "pause-before-switchover", "auto-converge"} {
		all = append(all, map[string]any{"capability": name, "state": on[name]})
	}
	return map[string]any{"capabilities": all}
}

// moveWays is what both QEMUs are told. With a path back the sender learns that
// all arrived before it lets go of the guest.
func moveWays(postCopy bool) map[string]bool {
	return map[string]bool{"events": true, "return-path": true, "postcopy-ram": postCopy}
}

const (
	// moveName is what QEMU calls the descriptor that a guest goes through.
	moveName = "move"
	// standStill is how long a guest may stand still if nobody says otherwise.
	standStill = 300 * time.Millisecond
)

// moveLimits is the parameters of a move.
func moveLimits(d engine.Departure) map[string]any {
	most, pause := d.Bandwidth, d.Downtime
	if most == 0 {
		most = noLimit
	}
	switch {
	case pause > 0:
	case d.PostCopy:
		pause = time.Millisecond // QEMU would wait for what it may send while the guest stands still
	default:
		pause = standStill
	}
	return map[string]any{"max-bandwidth": most, "max-postcopy-bandwidth": d.Bandwidth, "downtime-limit": pause.Milliseconds()}
}

// Send has the guest go on at the other end of d.Stream.
func (m *Machine) Send(ctx context.Context, d engine.Departure) (engine.Moved, error) {
	l := m.link
	l.device.Lock()
	defer l.device.Unlock()
	status := l.state()
	if status != "running" && !paused(status) {
		return engine.Moved{}, m.about(&errs.Error{Op: "qemu.move", Kind: errs.Conflict, Msg: "it cannot be moved as it is: " + status})
	}
	v, end := l.beginMove()
	defer end()
	s := &sender{m: m, l: l, v: v, d: d, ran: status == "running", began: time.Now()}
	err := s.send(ctx)
	s.moved.Total = time.Since(s.began)
	s.moved.Stopped, _ = v.times()
	return s.moved, m.about(err)
}

// sender is one guest's way out.
type sender struct {
	m     *Machine
	l     *link
	v     *move
	d     engine.Departure
	ran   bool // when it began
	began time.Time

	mirrors []mirror
	moved   engine.Moved
	last    migration
	at      time.Time // when last changed
	handed  bool      // the disks are the other program's
	split   bool      // the guest runs there, with part of its memory here
}

// send carries the guest over. After an error the guest runs as it did before,
// unless it is split.
func (s *sender) send(ctx context.Context) error {
	err := s.outward(ctx)
	if err == nil {
		err = s.d.Landed(context.WithoutCancel(ctx))
	}
	if err == nil {
		var now migration // which it has not counted yet when it says that it is complete
		if s.l.do(context.WithoutCancel(ctx), "query-migrate", nil, &now) == nil {
			s.moved.Downtime, s.moved.After = time.Duration(now.Downtime)*time.Millisecond, now.RAM.After
		}
		return s.m.Kill(ctx)
	}
	if s.split {
		return &errs.Error{Op: "qemu.move", Kind: errs.Conflict, Msg: "the guest ran at its new place already when that was lost, with part of its memory: it cannot go on",
			Hint: "start it again; its disks are as the guest left them", Err: err}
	}
	return errors.Join(err, s.takeBack(context.WithoutCancel(ctx)))
}

// outward is all of it until QEMU says that everything arrived.
func (s *sender) outward(ctx context.Context) error {
	if err := s.begin(ctx); err != nil {
		return err
	}
	return s.follow(ctx)
}

// begin has QEMU send the guest. Without copies of disks it needs nobody from then
// on.
func (s *sender) begin(ctx context.Context) error {
	if err := s.clear(ctx); err != nil {
		return err
	}
	if err := s.mirrorAll(ctx); err != nil {
		return err
	}
	on := moveWays(s.d.PostCopy)
	on["auto-converge"] = !s.d.PostCopy
	on["pause-before-switchover"] = len(s.mirrors) > 0
	return s.l.with(ctx, func(ctx context.Context, c *qmp.Client) error {
		if err := c.Do(ctx, "migrate-set-capabilities", ways(on), nil); err != nil {
			return err
		}
		if err := c.Do(ctx, "migrate-set-parameters", moveLimits(s.d), nil); err != nil {
			return err
		}
		if err := c.PassFile(ctx, moveName, s.d.Stream); err != nil {
			return err
		}
		if err := c.Do(ctx, "migrate", map[string]any{"uri": "fd:" + moveName}, nil); err != nil || !s.d.PostCopy {
			return err
		}
		// At once, and not after a pass: a guest that QEMU 7.2 had sent whole
		// before it was told to split it was damaged where it arrived.
		return c.Do(ctx, "migrate-start-postcopy", nil, nil)
	})
}

// migration is what QEMU tells of a move.
type migration struct {
	Status   string `json:"status"`
	Why      string `json:"error-desc"`
	Downtime int64  `json:"downtime"` // ms
	RAM      struct {
		Sent  uint64 `json:"transferred"`
		Left  uint64 `json:"remaining"`
		Syncs int    `json:"dirty-sync-count"`
		After uint64 `json:"postcopy-bytes"`
	} `json:"ram"`
}

// Longest that nothing of a split guest's memory may be sent: what it runs on
// needs it.
const stallTime = 30 * time.Second

// follow takes the steps that QEMU waits for, until all arrived or it is
// certain that it will not. Once the guest is split there is no way back, and
// ctx counts no more.
func (s *sender) follow(ctx context.Context) error {
	alive := context.WithoutCancel(ctx)
	for {
		var now migration
		if err := s.l.do(alive, "query-migrate", nil, &now); err != nil {
			return err
		}
		s.progress(now)
		done, err := s.step(ctx, now)
		switch {
		case done || s.split && err != nil:
			return err
		case s.split:
			s.v.wait(alive)
		case err == nil && !s.v.wait(ctx):
			err = ctx.Err()
		}
		if err != nil {
			return s.cancel(alive, err)
		}
	}
}

// step does what is to be done in a state.
func (s *sender) step(ctx context.Context, now migration) (done bool, err error) {
	switch now.Status {
	case "completed":
		return true, nil
	case "failed", "cancelled":
		return false, &errs.Error{Op: "qemu.move", Kind: errs.Unavailable, Msg: "the guest could not be sent: " + orElse(now.Why, now.Status)}
	case "postcopy-paused", "postcopy-recover":
		s.split = true
		return false, errors.New("the other end is gone")
	case "postcopy-active":
		s.split = true
		if time.Since(s.at) > stallTime {
			return false, errors.New("the other end takes nothing any more")
		}
	case "pre-switchover":
		if s.handed { // QEMU says so until it has begun to go on
			return false, nil
		}
		s.handed = true
		if err := s.handOver(ctx); err != nil {
			return false, err
		}
		return false, s.l.do(ctx, "migrate-continue", map[string]any{"state": "pre-switchover"}, nil)
	}
	return false, nil
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// handOver makes the disks' copies the disks, while the guest stands still.
func (s *sender) handOver(ctx context.Context) error {
	if err := s.finishMirrors(ctx); err != nil {
		return err
	}
	return s.d.Release(ctx)
}

func (s *sender) progress(now migration) {
	if now.Status != s.last.Status || now.RAM != s.last.RAM {
		s.at = time.Now()
	}
	s.last = now
	s.moved.Memory, s.moved.MemoryLeft, s.moved.Pass = now.RAM.Sent, now.RAM.Left, now.RAM.Syncs
	s.report()
}

func (s *sender) report() {
	if s.d.Progress != nil {
		s.d.Progress(s.moved.Progress)
	}
}

// cancelTime is how long QEMU may take to give a move up before its stream is
// cut.
const cancelTime = 5 * time.Second

// cancel gives the move up because of why. If QEMU was faster, all arrived and
// it is nil.
func (s *sender) cancel(ctx context.Context, why error) error {
	if err := s.l.do(ctx, "migrate_cancel", nil, nil); err != nil {
		return errors.Join(why, err)
	}
	for cut := time.Now().Add(cancelTime); ; s.v.wait(ctx) {
		var now migration
		if err := s.l.do(ctx, "query-migrate", nil, &now); err != nil {
			return errors.Join(why, err)
		}
		s.progress(now)
		switch now.Status {
		case "completed":
			return nil
		case "cancelled", "failed", "none", "":
			return why
		}
		if time.Now().After(cut) {
			sever(s.d.Stream)
		}
	}
}

// sever ends a connection for all who hold it.
func sever(f *os.File) {
	raw, err := f.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_RDWR) })
}

// takeBack makes the guest run here again as if it had never begun to leave.
func (s *sender) takeBack(ctx context.Context) error {
	err := errors.Join(s.dropMirrors(ctx), s.l.do(ctx, "migrate-set-capabilities", ways(nil), nil))
	var now struct{ Status string }
	if e := s.l.do(ctx, "query-status", nil, &now); e != nil {
		return errors.Join(err, e)
	}
	if s.ran && now.Status != "running" {
		if e := s.l.do(ctx, "cont", nil, nil); e != nil {
			return errors.Join(err, e)
		}
		now.Status = "running"
	}
	s.l.note(func() { s.l.status = now.Status })
	if err != nil {
		return fmt.Errorf("the guest goes on, but: %w", err)
	}
	return nil
}
