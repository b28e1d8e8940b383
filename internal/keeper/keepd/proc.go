package keepd

import (
	"bytes"
	"errors"
	"os"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// stat is what we need of /proc/PID/stat.
type stat struct {
	state    byte
	ppid     int
	ticks    uint64 // start time since boot
	exitCode int    // a wait status; of a process that has ended
}

func (s stat) ended() bool { return s.state == 'Z' || s.state == 'X' }

func readStat(pid int) (stat, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return stat{}, err
	}
	return parseStat(b)
}

// parseStat reads a line of proc_pid_stat(5). The program's name in it is
// chosen by the guest and may hold anything, blanks and brackets too, but is
// followed by the last bracket of the line.
func parseStat(line []byte) (stat, error) {
	bad := errors.New("keeper: not a process status")
	end := bytes.LastIndexByte(line, ')')
	if end < 0 {
		return stat{}, bad
	}
	f := bytes.Fields(line[end+1:]) // f[0] is field 3 of the manual
	if len(f) < 50 || len(f[0]) != 1 {
		return stat{}, bad
	}
	s := stat{state: f[0][0]}
	var err [3]error
	s.ppid, err[0] = strconv.Atoi(string(f[4-3]))
	s.ticks, err[1] = strconv.ParseUint(string(f[22-3]), 10, 64)
	s.exitCode, err[2] = strconv.Atoi(string(f[52-3]))
	return s, errors.Join(err[:]...)
}

// pidfdInfo is struct pidfd_info of linux/pidfd.h in its first version, which
// all kernels that know the call understand.
type pidfdInfo struct {
	mask     uint64
	cgroup   uint64
	ids      [11]uint32
	exitCode int32
}

const (
	pidfdGetInfo  = 0xC040FF0B // _IOWR(0xFF, 11, 64 bytes)
	pidfdInfoExit = 1 << 3
)

// pidfdExit returns the wait status of a process that was reaped, if the kernel
// keeps it.
func pidfdExit(pidfd int) (int, bool) {
	if pidfd < 0 {
		return 0, false
	}
	info := pidfdInfo{mask: pidfdInfoExit}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(pidfd), pidfdGetInfo, uintptr(unsafe.Pointer(&info)))
	return int(info.exitCode), errno == 0 && info.mask&pidfdInfoExit != 0
}
