package uml

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"lodge/internal/base/proc"
	"lodge/internal/keeper"
	"lodge/internal/launch"
)

// A guest that has booted used memory for that which it does not use any more,
// but its kernel gives nothing back by itself.
const (
	slimAfter = 5 * time.Second // of little to do
	slimTries = 60
	slimIdle  = 0.1 // of a processor is little
	// slimAgain is when it is done once more if the guest has more by so much: what
	// systems do that are up for a minute may take memory, too. It costs a guest
	// of 128 MiB a fifth of a second of a processor.
	slimAgain = time.Minute
	slimMore  = 8 << 20
	// slimVain is after how many offers that brought nothing no more are heard: a
	// guest gives what it used first, and then what it never did.
	slimVain = 16
)

// slim frees what a guest needed only to boot: the archive that it booted from
// and, in moments when it has little to do, the memory that it does not use.
func (e *Engine) slim(l *line, group string, held keeper.Held) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		select {
		case <-l.Done():
			cancel()
		case <-ctx.Done():
		}
	}()
	if l.Await(ctx) != nil {
		return
	}
	if err := empty(held, initrdFile); err != nil {
		e.o.Log.Debug("the archive that a guest booted from stays", "guest", held.State().Name, "err", err)
	}
	e.squeezeResting(ctx, l, group, held)
	least, err := e.charged(group)
	if err != nil {
		return
	}
	select {
	case <-time.After(slimAgain):
	case <-ctx.Done():
		return
	}
	if now, err := e.charged(group); err == nil && now >= least+slimMore {
		e.squeezeResting(ctx, l, group, held)
	}
}

// charged is the memory of the guest that is not the host's cache.
func (e *Engine) charged(group string) (uint64, error) {
	u, err := e.o.Tree.Usage(group)
	return u.Own(), err
}

func (e *Engine) squeezeResting(ctx context.Context, l *line, group string, held keeper.Held) {
	for range slimTries {
		idle, err := e.rests(ctx, group)
		if err != nil {
			return
		}
		if idle {
			if err := squeeze(ctx, l, held); err != nil && ctx.Err() == nil {
				e.o.Log.Debug("a guest keeps memory that it does not use", "guest", held.State().Name, "err", err)
			}
			return
		}
	}
}

// rests watches whether the guest has little to do.
func (e *Engine) rests(ctx context.Context, group string) (bool, error) {
	before, err := e.o.Tree.Usage(group)
	if err != nil {
		return false, err
	}
	select {
	case <-time.After(slimAfter):
	case <-ctx.Done():
		return false, ctx.Err()
	}
	after, err := e.o.Tree.Usage(group)
	return after.CPUSeconds-before.CPUSeconds < slimIdle*slimAfter.Seconds(), err
}

func squeeze(ctx context.Context, l *line, held keeper.Held) error {
	ctx, cancel := context.WithTimeout(ctx, holdTime)
	defer cancel()
	file, err := physical(held, l.memory)
	if err != nil {
		return err
	}
	defer file.Close()
	take := puncher(file)
	size, err := blocks(file)
	if err != nil {
		return err
	}
	y := yield{least: size}
	err = l.Squeeze(ctx, func(pages []uint32) error {
		if err := take(pages); err != nil {
			return err
		}
		size, err := blocks(file)
		if err == nil && !y.goesOn(size) {
			err = errEnough
		}
		return err
	})
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

// errEnough ends a squeeze that brings no more.
var errEnough = errors.New("the guest has given what it can")

// yield is what a squeeze brought: the least that the memory's file was large,
// and how many offers were in vain since.
type yield struct {
	least int64
	vain  int
}

// goesOn reports whether another offer is worth its while, after one that left
// the file so large.
func (y *yield) goesOn(size int64) bool {
	y.vain++
	if size < y.least {
		*y = yield{least: size}
	}
	return y.vain < slimVain
}

// blocks is how much of a file is there, in the host's units.
func blocks(f *os.File) (int64, error) {
	var st unix.Stat_t
	err := proc.Control(f, func(fd int) error { return unix.Fstat(fd, &st) })
	return st.Blocks, err
}

// empty makes one of the files that the jail made in memory empty.
func empty(held keeper.Held, file int) error {
	f, err := launch.Take(held, launch.Jail{Files: fixedFiles()}.Descriptor(file))
	if err != nil {
		return err
	}
	defer f.Close()
	return proc.Control(f, func(fd int) error { return unix.Ftruncate(fd, 0) })
}
