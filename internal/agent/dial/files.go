package dial

import (
	"context"
	"fmt"
	"io"
	"path"
	"time"

	"lodge/internal/agent"
	"lodge/internal/base/errs"
)

// stallTime is how long a transfer may go without a byte, where it is the
// guest's turn.
const stallTime = 2 * time.Minute

// slotsEach is how many slots of the mailbox one transfer uses at most.
const slotsEach = 4

// slots are those of the mailbox that are nobody's.
type slots chan int

func newSlots(n int) slots {
	s := make(slots, n)
	for i := range n {
		s <- i
	}
	return s
}

// take is some slots, or none if all are in use: the line must do then.
func (s slots) take() []int {
	var out []int
	for len(out) < slotsEach {
		select {
		case i := <-s:
			out = append(out, i)
		default:
			return out
		}
	}
	return out
}

// Of a program's input: it may be there for long, and files are not to wait for
// it.
const (
	spareEach = 2
	spareLeft = slotsEach // that are left for others
)

// spare is some slots if there are more than enough, or none.
func (s slots) spare() (out []int) {
	for len(out) < spareEach && len(s) > spareLeft {
		select {
		case i := <-s:
			out = append(out, i)
		default:
			return out
		}
	}
	return out
}

// give returns slots. The guest may still write to them; what another transfer
// of the same guest then reads is the guest's own doing.
func (s slots) give(mine []int) {
	for _, i := range mine {
		s <- i
	}
}

// Pack writes a file or tree of the guest as a tar stream.
func (l *Link) Pack(ctx context.Context, file string, w io.Writer) error {
	c, mine, err := l.transfer(ctx, agent.OpPack, file)
	if err != nil {
		return err
	}
	defer l.slots.give(mine)
	defer c.end()
	in := agent.NewInflow(c, c.frames, agent.KindOut, l.mail, mine)
	if _, err := io.Copy(plainWriter{w}, impatient{in, c}); err != nil {
		if in.Failed() {
			return l.trouble(ctx, err)
		}
		return err
	}
	if r := in.Result(); r != nil {
		if err := r.Error.Err(); err != nil {
			return err
		}
		return l.trouble(ctx, errMisbehaves)
	}
	_, err = c.answer(ctx, answerTimeout)
	return err
}

// Unpack makes what the tar stream r holds below the guest's dir.
func (l *Link) Unpack(ctx context.Context, dir string, r io.Reader) error {
	c, mine, err := l.transfer(ctx, agent.OpUnpack, dir)
	if err != nil {
		return err
	}
	defer l.slots.give(mine)
	defer c.end()
	out := agent.NewOutflow(c, agent.KindIn, l.mail, mine)
	type verdict struct {
		r   agent.Result
		err error
	}
	said := make(chan verdict, 1)
	go func() {
		r, err := listen(c.frames, out)
		said <- verdict{r, err}
		out.Abort(errStopped)
	}()
	sent := make(chan error, 1)
	go func() {
		_, err := io.Copy(plainWriter{out}, r)
		if err == nil {
			err = out.Finish()
		}
		sent <- err
	}()
	var v verdict
	select {
	case v = <-said: // the agent takes no more; who feeds us may be waiting for something that never comes
	case err := <-sent:
		if err != nil && err != errStopped {
			return err
		}
		select {
		case v = <-said:
		case <-time.After(stallTime):
			return l.trouble(ctx, errStalled)
		}
	}
	if v.err != nil {
		return l.trouble(ctx, v.err)
	}
	return v.r.Error.Err()
}

var (
	errStopped = fmt.Errorf("the agent takes no more")
	errStalled = fmt.Errorf("the agent stopped in the middle")
)

// listen hears of emptied slots until the result comes.
func listen(frames *agent.Frames, out *agent.Outflow) (agent.Result, error) {
	for {
		kind, payload, err := frames.Next()
		if err != nil {
			return agent.Result{}, err
		}
		switch kind {
		case agent.KindFree:
			if err := out.Freed(payload); err != nil {
				return agent.Result{}, err
			}
		case agent.KindResult:
			return agent.ParseResult(payload)
		default:
			return agent.Result{}, errMisbehaves
		}
	}
}

func (l *Link) transfer(ctx context.Context, op agent.Op, where string) (*call, []int, error) {
	if !path.IsAbs(where) {
		return nil, nil, errs.Bad("path", fmt.Sprintf("%q is not an absolute path", where), "start it with /")
	}
	var mine []int
	if l.mail != nil {
		mine = l.slots.take()
	}
	c, err := l.begin(ctx, agent.Request{Op: op, Path: where, Slots: mine})
	if err != nil {
		l.slots.give(mine)
		return nil, nil, err
	}
	return c, mine, nil
}

// impatient gives the agent a bounded time for each piece.
type impatient struct {
	r io.Reader
	c *call
}

func (i impatient) Read(p []byte) (int, error) {
	i.c.SetReadDeadline(time.Now().Add(stallTime))
	return i.r.Read(p)
}

// plainWriter hides what would make io.Copy read in pieces of its own choice.
type plainWriter struct{ io.Writer }
