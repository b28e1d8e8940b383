package uml

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
	"lodge/internal/base/proc"
	"lodge/internal/base/units"
	"lodge/internal/keeper"
	"lodge/internal/launch"
	"lodge/internal/model/guest"
)

// The guest's kernel is told at its start how much memory it has, and cannot
// give any of it back by itself. So its agent holds what the guest is to have
// less, and says which pages those are; the host makes holes in the file that
// the guest's memory is. What the agent holds no more the guest can use again,
// and the file grows as it does.

// holdTime is how long the agent may take to hold or let go of memory.
const holdTime = 2 * time.Minute

// Resize changes the guest's limits while it runs: its memory to less than it
// was started with, and back.
func (m *Machine) Resize(ctx context.Context, spec guest.Spec) error {
	wanted, has := memoryOf(spec), m.line.memory
	if wanted > has {
		spec.Memory = has
		return errors.Join(m.limit(spec), m.refuseGrowth(has))
	}
	if err := m.runs(); err != nil {
		if m.line.holds() == has-wanted { // a paused guest has all its limits but the memory changed
			spec.Memory = wanted
			return m.limit(spec)
		}
		spec.Memory = has
		return errors.Join(m.limit(spec), err)
	}
	spec.Memory = has // until it is sure what is held
	if err := m.limit(spec); err != nil {
		return err
	}
	held, err := m.hold(ctx, has-wanted)
	m.line.mu.Lock()
	m.line.held = held
	m.line.mu.Unlock()
	spec.Memory = has - held
	return errors.Join(m.limit(spec), err)
}

// holds is how much memory is taken from the guest.
func (l *line) holds() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.held
}

func (m *Machine) limit(spec guest.Spec) error {
	if err := m.e.o.Tree.Set(m.parts.Cgroup, overhead().Limits(spec, m.parts.Root.Disk)); err != nil {
		return fmt.Errorf("limits of %s: %w", m.g.Name, err)
	}
	return nil
}

func (m *Machine) refuseGrowth(has uint64) error {
	return &errs.Error{Op: "uml.resize", Kind: errs.Unsupported, Ref: m.g.Key().String(), Field: "memory",
		Msg:  "a paravirtual guest that runs can have no more memory than it was started with, which is " + units.Bytes(has),
		Hint: "it has the new size from its next start on: lodge restart " + m.g.Name}
}

// hold takes so many bytes from the guest's programs and returns how many it
// took. Where there is no agent to ask nothing is held.
func (m *Machine) hold(ctx context.Context, bytes uint64) (held uint64, err error) {
	if bytes == 0 && !m.line.State().Connected {
		return 0, nil
	}
	ctx, cancel := context.WithTimeout(ctx, holdTime)
	defer cancel()
	file, err := physical(m.held, m.line.memory)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	held, err = m.line.Hold(ctx, bytes, puncher(file))
	return min(held, bytes), err
}

// physical is the file that the guest's memory is: one that its kernel made and
// removed the name of. The kernel may lie about which one it is; it has none
// open but its own.
func physical(held keeper.Held, memory uint64) (*os.File, error) {
	dir := "/proc/" + strconv.Itoa(held.State().Pid) + "/fd"
	all, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, f := range all {
		at := filepath.Join(dir, f.Name())
		name, err := os.Readlink(at)
		if err != nil || !isMemory(name) {
			continue
		}
		fi, err := os.Stat(at)
		if n, e := strconv.Atoi(f.Name()); err == nil && e == nil && fi.Size() >= int64(memory) {
			return launch.Take(held, n)
		}
	}
	return nil, &errs.Error{Op: "uml.resize", Kind: errs.Unsupported, Field: "memory", Msg: "the guest's memory was not found", Hint: "restart the guest"}
}

// isMemory recognizes the name of such a file (arch/um/os-Linux/mem.c), which
// never had one or, in older versions, lost it.
func isMemory(name string) bool {
	return strings.HasPrefix(name, "/tmp/") && strings.HasSuffix(name, " (deleted)")
}

// puncher makes holes where pages of the guest's memory were.
func puncher(file *os.File) func(pages []uint32) error {
	return func(pages []uint32) error {
		return proc.Control(file, func(fd int) error { return punch(fd, pages) })
	}
}

// pageSize is that of guests' kernels.
const pageSize = 4096

// punch takes pages out of a file, as far as it has them.
func punch(fd int, pages []uint32) error {
	for len(pages) > 0 {
		n := 1
		for n < len(pages) && pages[n] == pages[0]+uint32(n) {
			n++
		}
		err := unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(pages[0])*pageSize, int64(n)*pageSize)
		if err != nil {
			return fmt.Errorf("taking memory: %w", err)
		}
		pages = pages[n:]
	}
	return nil
}
