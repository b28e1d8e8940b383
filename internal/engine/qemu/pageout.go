package qemu

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"lodge/internal/base/proc"
)

// What a translated machine holds is mostly translations of code that it ran
// once, while it booted, and QEMU gives none of them back. While the guest is idle
// all its memory goes to compressed swap space, and what is still needed comes
// back by itself, some megabytes.
const (
	idleTick = 10 * time.Second
	// idleTicks is after how many of them with little to do a guest is idle.
	idleTicks = 3
	// idleLoad is how much of a processor is little. A Debian that does nothing
	// takes 0.003 to 0.007.
	idleLoad = 0.1
	// grownBy is by how much a guest must have grown since it was paged out last
	// to be worth the time again: a second of a processor for some 200 MiB.
	grownBy = 16 << 20
)

// idleness decides when an idle guest is paged out.
type idleness struct {
	quiet int     // ticks
	cpu   float64 // seconds, at the last tick
	least uint64  // memory that it had after it was paged out last; 0: it never was
}

// tick takes what a guest has used of processors since it started, in seconds,
// and what it has of memory now. It reports whether its memory is to be paged
// out, after which pagedOut is to be called.
func (r *idleness) tick(cpu float64, memory uint64) bool {
	took := cpu - r.cpu
	r.cpu = cpu
	if took > idleLoad*idleTick.Seconds() {
		r.quiet = 0
		return false
	}
	r.quiet++
	return r.quiet >= idleTicks && (r.least == 0 || memory >= r.least+grownBy)
}

// pagedOut notes what memory is left.
func (r *idleness) pagedOut(memory uint64) { r.least, r.quiet = memory, 0 }

// pageOut pages a translated guest's memory out whenever it is idle, until it
// ends. group is its control group.
func (l *link) pageOut(group string) {
	l.sleep(idleTick) // it may not be QEMU yet, which says what machine it is
	if w, err := l.asStarted(); err != nil || w.Accel != "tcg" {
		return
	}
	for r := (idleness{}); l.life.Err() == nil; l.sleep(idleTick) {
		cpu, memory, err := l.e.uses(group)
		if err != nil {
			continue
		}
		if !l.settled() {
			r.quiet = 0
			continue
		}
		if !r.tick(cpu, memory) || !l.e.o.Compresses() {
			continue
		}
		if err := pageOut(l.life, l.held.Pidfd(), l.key.pid); err != nil && l.life.Err() == nil {
			l.e.o.Log.Debug("an idle guest keeps its memory", "guest", l.id, "err", err)
		}
		if _, memory, err = l.e.uses(group); err == nil {
			r.pagedOut(memory)
		}
	}
}

// settled reports whether the guest runs and is not on the move. One that stands
// ready, paused, is to answer at once.
func (l *link) settled() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.status == "running" && l.move == nil
}

// uses tells the processors' time that a group has used, and the memory that it
// has now without the host's cache.
func (e *Engine) uses(group string) (cpu float64, memory uint64, err error) {
	u, err := e.o.Tree.Usage(group)
	return u.CPUSeconds, u.Own(), err
}

// pageOut pages out all that is QEMU's alone.
func pageOut(ctx context.Context, pidfd, pid int) error {
	all, err := mappings(fmt.Sprintf("/proc/%d/maps", pid), mapping.writable)
	if err != nil {
		return err
	}
	pages, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", pid))
	if err != nil {
		return err
	}
	defer pages.Close()
	for _, a := range all {
		out := func(r proc.Range) error { return proc.PageOut(ctx, pidfd, r) }
		if a.shares() {
			err = a.own(ctx, pages, out)
		} else {
			err = out(a.Range)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// writable says that a mapping is of memory that only this process has: of no
// file, of the guest's own file in memory, or of a file whose changes are its own.
func (a mapping) writable() bool {
	return strings.HasPrefix(a.rights, "rw") && (strings.HasSuffix(a.rights, "p") || a.inMemory())
}

// inMemory says that a mapping is of a file in memory. The kernel names one of
// memfd_create(2) after that, and the guest's own after its name in a file system
// that is mounted nowhere.
func (a mapping) inMemory() bool {
	return strings.HasPrefix(a.name, "/memfd:") || a.name == "/"+ramName
}

// shares reports whether pages of a mapping may be those of a file on a disk,
// which other guests use, or the next one will.
func (a mapping) shares() bool {
	return strings.HasPrefix(a.name, "/") && !a.inMemory()
}
