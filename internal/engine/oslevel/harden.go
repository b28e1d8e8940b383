package oslevel

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"

	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/sys/unix"

	"lodge/internal/launch"
	"lodge/internal/launch/plan"
)

// droppedCapabilities are taken out of every guest's bounding set. A guest has
// capabilities over its own user namespace only, so most of these could do
// nothing anyway; that they are gone lets a guest's init see that they are, and
// skip what needs them. CAP_SYS_BOOT stays: in a pid namespace reboot(2) ends
// the guest and nothing else.
func droppedCapabilities() []int {
	return []int{
		unix.CAP_SYS_MODULE, unix.CAP_SYS_RAWIO, unix.CAP_SYS_TIME, unix.CAP_MAC_ADMIN, unix.CAP_MAC_OVERRIDE,
		unix.CAP_AUDIT_CONTROL, unix.CAP_AUDIT_READ, unix.CAP_WAKE_ALARM, unix.CAP_BLOCK_SUSPEND, unix.CAP_SYSLOG,
		unix.CAP_PERFMON, unix.CAP_BPF, unix.CAP_CHECKPOINT_RESTORE,
	}
}

// refused are the system calls that guests get EPERM for: they reach into the
// kernel as a whole, or past the files that a guest was given.
func refused() []string {
	return []string{
		"acct", "bpf", "create_module", "delete_module", "finit_module", "get_kernel_syms", "init_module", "ioperm", "iopl",
		"kexec_file_load", "kexec_load", "lookup_dcookie", "nfsservctl", "open_by_handle_at", "perf_event_open",
		"query_module", "quotactl", "quotactl_fd", "settimeofday", "stime", "clock_settime", "clock_settime64", "clock_adjtime",
		"clock_adjtime64", "adjtimex", "swapoff", "swapon", "syslog", "sysfs", "_sysctl", "uselib", "userfaultfd", "ustat", "vm86", "vm86old",
		"pciconfig_iobase", "pciconfig_read", "pciconfig_write",
	}
}

// absent are the system calls that guests get ENOSYS for, because programs then
// do without: keyrings and the ring interface have been the way to too many
// kernel faults.
func absent() []string {
	return []string{"add_key", "keyctl", "request_key", "io_uring_setup", "io_uring_enter", "io_uring_register"}
}

// The parts of classic BPF that the filter needs, of linux/filter.h and
// linux/seccomp.h.
const (
	bpfLoad     = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
	bpfEqual    = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	bpfSet      = unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K
	bpfReturn   = unix.BPF_RET | unix.BPF_K
	numberAt    = 0 // offsets in struct seccomp_data
	archAt      = 4
	actionAllow = unix.SECCOMP_RET_ALLOW
	actionErrno = unix.SECCOMP_RET_ERRNO
	actionKill  = unix.SECCOMP_RET_KILL_PROCESS
	actionAsk   = unix.SECCOMP_RET_USER_NOTIF
	x32Bit      = 0x40000000
)

// asked are the machine's own system calls that the keeper answers in guests
// with a quota: the kernel would tell of the whole pool. The 32-bit ancestor's
// keep that.
func asked() []string { return []string{"statfs", "fstatfs"} }

// filters are the seccomp programs of guests.
type filters struct {
	plain  []byte
	asking []byte // asks about what asked names
}

func newFilters(goarch string) (f filters, err error) {
	if f.plain, err = filter(goarch, nil); err == nil {
		f.asking, err = filter(goarch, asked())
	}
	return f, err
}

type instruction struct {
	code   uint16
	jt, jf uint8
	k      uint32
}

// filter assembles the seccomp program for the machine's own system calls and
// those of its 32-bit ancestor; x32 calls do not exist in guests, and a call of
// any other kind kills. It asks about those of the machine's own that ask names.
func filter(goarch string, ask []string) ([]byte, error) {
	var native, compat *arch.Info
	switch goarch {
	case "amd64":
		native, compat = arch.X86_64, arch.I386
	case "arm64":
		native, compat = arch.AARCH64, arch.ARM
	default:
		return nil, fmt.Errorf("no system call table for %s", goarch)
	}
	prog := []instruction{{code: bpfLoad, k: archAt}}
	for _, a := range []*arch.Info{native, compat} {
		body := section(a, goarch == "amd64" && a == native, ask)
		ask = nil
		if len(body) > math.MaxUint8 {
			return nil, fmt.Errorf("the filter for %s is too long to jump over", a.Name)
		}
		prog = append(prog, instruction{code: bpfEqual, jf: uint8(len(body)), k: uint32(a.ID)})
		prog = append(prog, body...)
	}
	prog = append(prog, instruction{code: bpfReturn, k: actionKill})
	var out []byte
	for _, i := range prog {
		out = binary.LittleEndian.AppendUint16(out, i.code)
		out = append(out, i.jt, i.jf)
		out = binary.LittleEndian.AppendUint32(out, i.k)
	}
	return out, nil
}

// section decides a call of one architecture. It always ends in a return.
func section(a *arch.Info, x32 bool, ask []string) []instruction {
	numbers := func(names []string) []uint32 {
		var out []uint32
		for _, n := range names {
			if nr, ok := a.SyscallNames[n]; ok {
				out = append(out, uint32(nr))
			}
		}
		slices.Sort(out)
		return out
	}
	perm, nosys, notify := numbers(refused()), numbers(absent()), numbers(ask)
	body := []instruction{{code: bpfLoad, k: numberAt}}
	left := len(perm) + len(nosys) + len(notify) // tests still to come; behind them stand allow, EPERM, ENOSYS and ask
	if x32 {
		body = append(body, instruction{code: bpfSet, jt: uint8(left + 2), k: x32Bit})
	}
	for _, nr := range perm {
		left--
		body = append(body, instruction{code: bpfEqual, jt: uint8(left + 1), k: nr})
	}
	for _, nr := range nosys {
		left--
		body = append(body, instruction{code: bpfEqual, jt: uint8(left + 2), k: nr})
	}
	for _, nr := range notify {
		left--
		body = append(body, instruction{code: bpfEqual, jt: uint8(left + 3), k: nr})
	}
	return append(body,
		instruction{code: bpfReturn, k: actionAllow},
		instruction{code: bpfReturn, k: actionErrno | uint32(unix.EPERM)},
		instruction{code: bpfReturn, k: actionErrno | uint32(unix.ENOSYS)},
		instruction{code: bpfReturn, k: actionAsk})
}

// confine gives up what no program of a guest may have. It runs inside the
// guest as its root, before the program's own user is taken on. With ask, the
// filter's listener goes to whoever runs the helper.
func (s script) confine(f filters, ask bool) {
	for _, c := range droppedCapabilities() {
		// A kernel that does not know a capability cannot grant it either.
		s.Ignore(unix.SYS_PRCTL, plan.Imm(unix.PR_CAPBSET_DROP), plan.Imm(c), zero, zero, zero)
	}
	const mode = plan.Imm(unix.SECCOMP_SET_MODE_FILTER)
	done := s.Mark()
	if ask {
		got, plain, prog := s.Mark(), s.Mark(), s.SockFilter(f.asking)
		const flags = unix.SECCOMP_FILTER_FLAG_NEW_LISTENER
		listener := s.Try(unix.SYS_SECCOMP, mode, plan.Imm(flags|unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV), prog)
		s.JumpUnless(listener, launch.No(unix.EINVAL), got) // it is from before Linux 5.19
		s.Set(listener, s.Try(unix.SYS_SECCOMP, mode, plan.Imm(flags), prog))
		s.Here(got)
		// There can be but one listener: within a guest whose calls somebody
		// answers already there is none for us.
		s.JumpBelow(listener, zero, plain)
		s.Pass(listener, "listener")
		s.Close(listener)
		s.Jump(done)
		s.Here(plain)
	}
	s.Do("seccomp filter", unix.SYS_SECCOMP, mode, zero, s.SockFilter(f.plain))
	s.Here(done)
}

// tidy gives the program of a guest a clean start: no descriptors but the first
// three, nothing blocked, the usual mask.
func (s script) tidy() {
	set := s.Space(8)
	s.Do("signal mask", unix.SYS_RT_SIGPROCMASK, plan.Imm(unix.SIG_SETMASK), set, zero, plan.Imm(8))
	s.Do("umask", unix.SYS_UMASK, plan.Imm(0o022))
	s.Do("close descriptors", unix.SYS_CLOSE_RANGE, plan.Imm(3), plan.Imm(math.MaxUint32),
		plan.Imm(unix.CLOSE_RANGE_UNSHARE|unix.CLOSE_RANGE_CLOEXEC))
}

// resources sets the process limits that a guest's programs begin with. The
// host's side must do it: raising them takes CAP_SYS_RESOURCE over the host.
// Where the daemon itself lacks that, guests begin with the daemon's own.
func (s script) resources() {
	const infinity = math.MaxUint64
	for _, l := range []struct {
		resource  int
		soft, top uint64
	}{
		{unix.RLIMIT_NOFILE, 1024, 1 << 20}, // the soft limit that select(2) can bear, the hard one that servers raise it to
		{unix.RLIMIT_CORE, 0, infinity},
		{unix.RLIMIT_NPROC, infinity, infinity}, // the control group counts
		{unix.RLIMIT_MEMLOCK, 8 << 20, 64 << 20},
		{unix.RLIMIT_STACK, 8 << 20, infinity},
	} {
		at := s.Bytes(binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, l.soft), l.top))
		s.Ignore(unix.SYS_PRLIMIT64, zero, plan.Imm(l.resource), at, zero)
	}
	s.Knob("/proc/self/oom_score_adj", "0")
}
