package launch

import (
	"encoding/binary"
	"testing"

	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/sys/unix"
)

// judge runs a seccomp program on one call.
func judge(t *testing.T, prog []byte, machine, nr uint32, args ...uint32) uint32 {
	t.Helper()
	data := make([]byte, 64) // struct seccomp_data
	binary.LittleEndian.PutUint32(data, nr)
	binary.LittleEndian.PutUint32(data[archAt:], machine)
	for i, a := range args {
		binary.LittleEndian.PutUint32(data[argsAt+8*i:], a)
	}
	var acc uint32
	for pc := 0; pc*8 < len(prog); pc++ {
		i := prog[pc*8:]
		code, jt, jf, k := binary.LittleEndian.Uint16(i), int(i[2]), int(i[3]), binary.LittleEndian.Uint32(i[4:])
		jump := func(yes bool) {
			if yes {
				pc += jt
			} else {
				pc += jf
			}
		}
		switch code {
		case bpfLoad:
			acc = binary.LittleEndian.Uint32(data[k:])
		case bpfEqual:
			jump(acc == k)
		case bpfSet:
			jump(acc&k != 0)
		case bpfReturn:
			return k
		default:
			t.Fatalf("instruction %d is %x", pc, code)
		}
	}
	t.Fatal("the filter has no end")
	return 0
}

func TestFilter(t *testing.T) {
	const allow, kill = unix.SECCOMP_RET_ALLOW, unix.SECCOMP_RET_KILL_PROCESS
	fails := func(e unix.Errno) uint32 { return unix.SECCOMP_RET_ERRNO | uint32(e) }
	for goarch, a := range map[string]*arch.Info{"amd64": arch.X86_64, "arm64": arch.AARCH64} {
		prog, err := Filter(goarch, []Rule{
			{Calls: []string{"mount", "no_such_call"}, Errno: unix.EPERM},
			{Calls: []string{"kill"}, Errno: unix.ESRCH, When: &Argument{Index: 1, Is: Equal, Value: 6}},
			{Calls: []string{"socket"}, Errno: unix.EACCES, When: &Argument{Index: 0, Is: Unequal, Value: 1}},
			{Calls: []string{"clone"}, Errno: unix.EPERM, When: &Argument{Index: 0, Is: AnyOf, Value: 0x70000000}},
			{Calls: []string{"clone"}, Errno: unix.ENOSYS, When: &Argument{Index: 0, Is: Equal, Value: 0x100}},
			{Calls: []string{"bpf"}, Errno: unix.EPERM},
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			call string
			args []uint32
			want uint32
		}{
			{"read", nil, allow}, {"mount", nil, fails(unix.EPERM)}, {"bpf", nil, fails(unix.EPERM)},
			{"kill", []uint32{1, 6}, fails(unix.ESRCH)}, {"kill", []uint32{6, 9}, allow},
			{"socket", []uint32{2}, fails(unix.EACCES)}, {"socket", []uint32{1}, allow},
			{"clone", []uint32{0x10000000}, fails(unix.EPERM)}, {"clone", []uint32{0x100}, fails(unix.ENOSYS)}, {"clone", []uint32{0x200}, allow},
		} {
			if is := judge(t, prog, uint32(a.ID), uint32(a.SyscallNames[c.call]), c.args...); is != c.want {
				t.Errorf("%s: %s%v: %#x, want %#x", goarch, c.call, c.args, is, c.want)
			}
		}
		if is := judge(t, prog, 0x12345, 1); is != kill {
			t.Errorf("%s: a call of another machine: %#x", goarch, is)
		}
		if goarch == "amd64" {
			if is := judge(t, prog, uint32(a.ID), x32Bit|1); is != fails(unix.ENOSYS) {
				t.Errorf("an x32 call: %#x", is)
			}
		}
	}
	if _, err := Filter("mips-of-nobody", nil); err == nil {
		t.Error("a filter for a machine without a table")
	}
}
