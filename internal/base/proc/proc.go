// Package proc is what has to be known of processes, and of the descriptors that
// they share with others.
package proc

import (
	"errors"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Control calls do with the file's descriptor. The file stays able to be closed
// under who waits for it, and what shares it non-blocking, which asking the file
// for its number would end.
func Control(f *os.File, do func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = raw.Control(func(fd uintptr) { inner = do(int(fd)) })
	return errors.Join(err, inner)
}

// Hears reports whether a process with this /proc/PID/status handles sig, or
// blocks it to read it from a signalfd. The kernel drops for process 1 what it
// does neither with, such as what comes before an init has set itself up. One
// that sits in sigwait hears too, and does not show it.
func Hears(status []byte, sig unix.Signal) bool {
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		if name != "SigCgt" && name != "SigBlk" {
			continue
		}
		mask, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		if err == nil && mask&(1<<(sig-1)) != 0 {
			return true
		}
	}
	return false
}
