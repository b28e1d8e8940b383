package keepd

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"lodge/internal/keeper"
)

// recordDir holds one file for each program, by which the next keeper finds it.
const recordDir = "programs"

func (k *daemon) recordPath(name string) string {
	return filepath.Join(k.dir, recordDir, name+".json")
}

// save remembers a program. It is not flushed: what it tells is worthless after
// the host went down. Failing is no reason to end a guest, so it is logged.
func (k *daemon) save(r keeper.Record) {
	b, err := json.Marshal(r)
	if err == nil {
		tmp := filepath.Join(k.dir, recordDir, "."+r.Name) // no name begins with a dot
		if err = os.WriteFile(tmp, b, 0o600); err == nil {
			err = os.Rename(tmp, k.recordPath(r.Name))
		}
	}
	if err != nil {
		k.log.Error("program could not be remembered", "program", r.Name, "err", err)
	}
}

func (k *daemon) erase(name string) error {
	err := os.Remove(k.recordPath(name))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// recall takes over what a keeper before us left. Consoles come later, from a
// daemon that holds them.
func (k *daemon) recall() error {
	entries, err := os.ReadDir(filepath.Join(k.dir, recordDir))
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(k.dir, recordDir, e.Name())
		name, isRecord := strings.CutSuffix(e.Name(), ".json")
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		var r keeper.Record
		if !isRecord || json.Unmarshal(b, &r) != nil || r.Name != name || keeper.CheckName(name) != nil || r.Boot != k.boot {
			k.log.Warn("left-over is of no use", "path", path)
			if err := os.Remove(path); err != nil {
				return err
			}
			continue
		}
		k.adopt(r, nil)
	}
	return nil
}

// adopt keeps a program that another keeper started. fds are its pidfd and its
// console as a daemon held them, or none; they become ours.
func (k *daemon) adopt(r keeper.Record, fds []int) {
	fds = append(fds, -1, -1)
	pidfd, master := fds[0], fds[1]
	defer func() { keeper.CloseAll([]int{pidfd, master}) }() // what was not used
	keeper.CloseAll(fds[2:])
	k.mu.Lock()
	defer k.mu.Unlock()
	p, known := k.programs[r.Name]
	if !known {
		p = &program{rec: r, pidfd: -1}
		k.programs[r.Name] = p
	}
	if p.starting || p.rec.Pid != r.Pid || p.rec.Ticks != r.Ticks {
		return
	}
	p.rec.Exit = better(p.rec.Exit, r.Exit, pidfd >= 0)
	if p.rec.Exit == nil && p.pidfd < 0 {
		if pidfd < 0 {
			pidfd = openProcess(r)
		}
		p.pidfd, pidfd = pidfd, -1
		k.hold(p)
	}
	if p.rec.Exit == nil && p.console == nil && master >= 0 {
		c, err := k.consoles.add(master, newRotating(r.Log, r.LogMax))
		master = -1
		if err != nil {
			k.log.Error("console is lost", "program", r.Name, "err", err)
		}
		p.console = c
	}
	k.save(p.rec)
	k.tell(packet{m: keeper.Message{Op: keeper.OpHave, Record: copyOf(p.rec)}, p: p})
}

// better chooses between how a program ended as we know it and as we are told.
// With its pidfd at hand we need not be content with not knowing.
func better(ours, told *keeper.Exit, pidfd bool) *keeper.Exit {
	if told != nil && !told.Unknown {
		return told
	}
	if ours != nil && ours.Unknown && pidfd {
		return nil
	}
	return ours
}

// hold waits for the end of an adopted program, or takes note that it is gone.
func (k *daemon) hold(p *program) {
	if p.pidfd < 0 {
		p.rec.Exit = &keeper.Exit{Unknown: true, At: time.Now()}
	} else if err := k.exits.watch(p, p.pidfd); err != nil {
		k.log.Error("end of program will not be noticed", "program", p.rec.Name, "err", err)
	}
}

// openProcess returns the pidfd of the process that r tells of, or -1 when it
// is gone, even if its number is somebody else's now.
func openProcess(r keeper.Record) int {
	fd, err := unix.PidfdOpen(r.Pid, 0)
	if err != nil {
		return -1
	}
	// After it was opened: from here on the number can not change hands
	// without our noticing.
	if s, err := readStat(r.Pid); err != nil || s.ticks != r.Ticks {
		unix.Close(fd)
		return -1
	}
	return fd
}
