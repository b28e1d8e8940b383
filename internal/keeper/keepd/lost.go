package keepd

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// lostTime is how long what a launcher killed may take to be dead.
const lostTime = 100 * time.Millisecond

// reapLost reaps what launchers made and then gave up: it is our child, but
// nobody told us its pid. The caller's own program is still starting. While
// others start too it does nothing, since their processes are not known yet
// either; the last one to fail sees to all.
func (k *daemon) reapLost() {
	for deadline := time.Now().Add(lostTime); ; time.Sleep(time.Millisecond) {
		if living := k.reapUnknown(); !living || time.Now().After(deadline) {
			return
		}
	}
}

// reapUnknown reaps the dead children of ours that no program is, and reports
// whether there are living ones.
func (k *daemon) reapUnknown() (living bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	known, starting := map[int]bool{}, 0
	for _, p := range k.programs {
		known[p.rec.Pid] = true
		if p.starting {
			starting++
		}
	}
	if starting > 1 {
		return false
	}
	for _, pid := range children() {
		if known[pid] {
			continue
		}
		st, err := readStat(pid)
		if err != nil {
			continue
		}
		if !st.ended() {
			living = true
			continue
		}
		_, _ = unix.Wait4(pid, nil, unix.WALL|unix.WNOHANG, nil)
	}
	return living
}

// children lists the pids of our children, as far as this kernel tells.
func children() (pids []int) {
	lists, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		return nil
	}
	for _, list := range lists {
		text, _ := os.ReadFile(list) // a thread that is gone has none
		for _, f := range strings.Fields(string(text)) {
			if pid, err := strconv.Atoi(f); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}
