package inside

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
	"lodge/internal/base/proc"
)

// stop asks the guest's init to power off or to start anew, in whatever way
// this kind of init takes that. An init that has just begun may not hear.
func (a *Agent) stop(reboot bool) error {
	name := firstProgram()
	sig, program := a.ask(name, reboot)
	if program != "" {
		for _, file := range candidates(program, searchPath, "/") {
			if _, err := os.Stat(file); err == nil {
				p, err := spawn(file)
				if err == nil {
					go p.Wait()
				}
				return err
			}
		}
	}
	heard := time.Since(a.born) > settleTime || proc.Hears([]byte(read("/proc/1/status")), sig) || waits(read("/proc/1/syscall"))
	if err := unix.Kill(1, sig); err != nil {
		return err
	}
	if !heard {
		return &errs.Error{Kind: errs.Busy, Msg: "the guest's init may not have heard that it should stop", Hint: "it may be booting: ask again"}
	}
	return nil
}

// ask is how an init is asked: by a signal, or by the program that comes with
// it. systemd and busybox have signals of their own for either, and need no
// further process.
func (a *Agent) ask(name string, reboot bool) (sig unix.Signal, program string) {
	const rtmin = 34 // SIGRTMIN as the C libraries count, which systemd means
	pick := func(off, again unix.Signal) unix.Signal {
		if reboot {
			return again
		}
		return off
	}
	switch {
	case a.Config().Command:
		return pick(unix.SIGTERM, unix.SIGUSR1), ""
	case name == "systemd":
		return pick(rtmin+4, rtmin+5), ""
	case name == "busybox":
		return pick(unix.SIGUSR2, unix.SIGTERM), ""
	case reboot:
		return unix.SIGTERM, "reboot"
	}
	return unix.SIGTERM, "poweroff"
}

// settleTime is how long an init may take before it listens to signals.
const settleTime = 10 * time.Second

// waits reports whether a process with this /proc/PID/syscall waits for
// signals in the one call that does not show in its status.
func waits(syscall string) bool {
	f := strings.Fields(syscall)
	return len(f) > 0 && f[0] == strconv.Itoa(unix.SYS_RT_SIGTIMEDWAIT)
}

// online makes the guest use memory that was plugged in, and cpus of its
// processors; 0: all.
func online(cpus int) error {
	return errors.Join(useProcessors("/sys/devices/system/cpu", cpus),
		switchOn("/sys/devices/system/memory/memory[0-9]*/state", "offline", "online"))
}

// useProcessors switches the first ones of those in dir on and all others off.
// One that has no switch is always on.
func useProcessors(dir string, cpus int) error {
	var numbers []int
	folders, _ := filepath.Glob(filepath.Join(dir, "cpu[0-9]*"))
	for _, f := range folders {
		if n, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(f), "cpu")); err == nil {
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	for i, n := range numbers {
		path, want := filepath.Join(dir, "cpu"+strconv.Itoa(n), "online"), "1"
		if cpus > 0 && i >= cpus {
			want = "0"
		}
		if is := strings.TrimSpace(read(path)); is == "" || is == want {
			continue
		}
		if err := os.WriteFile(path, []byte(want), 0); err != nil {
			return &errs.Error{Kind: errs.Unsupported, Msg: fmt.Sprintf("the guest's kernel does not switch processor %d", n), Err: err}
		}
	}
	return nil
}
