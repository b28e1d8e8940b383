package keepd

import (
	"bufio"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The kernel's first real-time signals, which C libraries keep for themselves
// and Go's runtime therefore does not touch.
const (
	firstPrivate = 32
	lastPrivate  = 33
)

// unignore gives back their meaning to the signals that whoever started the
// keeper ignored (nohup does so), since programs inherit what is ignored. The
// keeper itself goes on as if they were: it hears and drops them.
func unignore() error {
	f, err := os.Open("/proc/self/status")
	if err != nil {
		return err
	}
	defer f.Close()
	dropped := make(chan os.Signal, 1)
	for _, s := range ignored(f) {
		if s < firstPrivate || s > lastPrivate {
			signal.Notify(dropped, s)
			continue
		}
		var byDefault [4]uint64 // struct kernel_sigaction of all machines fits; zero is SIG_DFL
		if _, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(s), uintptr(unsafe.Pointer(&byDefault)), 0, 8, 0, 0); errno != 0 {
			return errno
		}
	}
	go func() {
		for range dropped {
		}
	}()
	return nil
}

// ignored reads the signals that are ignored out of proc_pid_status(5).
func ignored(status io.Reader) (all []syscall.Signal) {
	for lines := bufio.NewScanner(status); lines.Scan(); {
		text, ok := strings.CutPrefix(lines.Text(), "SigIgn:")
		if !ok {
			continue
		}
		mask, err := strconv.ParseUint(strings.TrimSpace(text), 16, 64)
		if err != nil {
			return nil
		}
		for n := range 64 {
			if mask>>n&1 == 1 {
				all = append(all, syscall.Signal(n+1))
			}
		}
	}
	return all
}
