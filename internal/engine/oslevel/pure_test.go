package oslevel

import (
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/sys/unix"

	accounts "lodge/internal/base/account"
	"lodge/internal/base/errs"
	"lodge/internal/launch"
)

const (
	passwd = "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000:Ann:/home/ann:/bin/sh\nodd:x:1:1::relative:\nbroken\n:x:5:5::/:/\nbig:x:99999999:0::/:/\n2000:x:77:77::/n:/bin/sh\n"
	group  = "root:x:0:\nann:x:1000:\naudio:x:29:ann,bob\nvideo:x:44:ann\nbad:x:y:ann\n"
)

func TestLookup(t *testing.T) {
	for _, c := range []struct {
		who  string
		want account
		kind errs.Kind
	}{
		{"", account{name: "root", groups: []uint32{0}, home: "/root", shell: "/bin/sh"}, 0},
		{"ann", account{name: "ann", uid: 1000, gid: 1000, groups: []uint32{1000, 29, 44}, home: "/home/ann", shell: "/bin/sh"}, 0},
		{"1000", account{name: "ann", uid: 1000, gid: 1000, groups: []uint32{1000, 29, 44}, home: "/home/ann", shell: "/bin/sh"}, 0},
		{"ann:video", account{name: "ann", uid: 1000, gid: 44, home: "/home/ann", shell: "/bin/sh"}, 0},
		{"ann:7", account{name: "ann", uid: 1000, gid: 7, home: "/home/ann", shell: "/bin/sh"}, 0},
		{"odd", account{name: "odd", uid: 1, gid: 1, groups: []uint32{1}, home: "/", shell: "/bin/sh"}, 0},
		{"2000", account{name: "2000", uid: 77, gid: 77, groups: []uint32{77}, home: "/n", shell: "/bin/sh"}, 0},
		{"3000", account{name: "3000", uid: 3000, home: "/", shell: "/bin/sh"}, 0},
		{"bob", account{}, errs.NotFound},
		{"big", account{}, errs.NotFound},
		{"70000", account{}, errs.NotFound},
		{"ann:nogroup", account{}, errs.NotFound},
	} {
		a, err := lookup(c.who, strings.NewReader(passwd), strings.NewReader(group))
		if c.kind != 0 {
			if !errs.Is(err, c.kind) {
				t.Errorf("%q: %v", c.who, err)
			}
			continue
		}
		if err != nil || a.name != c.want.name || a.uid != c.want.uid || a.gid != c.want.gid || a.home != c.want.home || a.shell != c.want.shell || !slices.Equal(a.groups, c.want.groups) {
			t.Errorf("%q: %+v, %v", c.who, a, err)
		}
	}
	if a, err := lookup("", strings.NewReader(""), strings.NewReader("")); err != nil || a.home != "/root" {
		t.Errorf("a guest without files: %+v, %v", a, err)
	}
}

// FuzzLookup holds the reader of guests' account files to what the kernel and
// the plan need, whatever is in them.
func FuzzLookup(f *testing.F) {
	f.Add("ann", passwd, group)
	f.Add("0:0", "root:x:0:0:::", "::0:")
	f.Add("a:b", "a:x:1:2:\x00:/x:/y", "b:x:65535:a,a,a")
	f.Fuzz(func(t *testing.T, who, passwd, group string) {
		a, err := lookup(who, strings.NewReader(passwd), strings.NewReader(group))
		if err != nil {
			return
		}
		if a.uid >= idCount || a.gid >= idCount || len(a.groups) > accounts.GroupsMax+1 {
			t.Fatalf("%+v", a)
		}
		for _, g := range a.groups {
			if g >= idCount {
				t.Fatalf("%+v", a)
			}
		}
		if !strings.HasPrefix(a.home, "/") || !strings.HasPrefix(a.shell, "/") || strings.ContainsRune(a.home+a.shell, 0) {
			t.Fatalf("%+v", a)
		}
	})
}

const netDev = `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       2    0    0    0     0          0         0      100       2    0    0    0     0       0          0
  eth0: 1234567    8901    0    0    0     0          0         0  7654321    1098    0    0    0     0       0          0
`

func TestParseNetDev(t *testing.T) {
	got := parseNetDev(netDev)
	if want := (traffic{1234567, 8901, 7654321, 1098}); got["eth0"] != want || len(got) != 2 {
		t.Errorf("%+v", got)
	}
}

func FuzzParseNetDev(f *testing.F) {
	f.Add(netDev)
	f.Add(": 1 2 3 4 5 6 7 8 9 10")
	f.Fuzz(func(t *testing.T, text string) {
		for name := range parseNetDev(text) {
			if strings.ContainsAny(name, ":\n") {
				t.Fatalf("%q", name)
			}
		}
	})
}

// judge runs the seccomp program on one call.
func judge(t *testing.T, prog []byte, a arch.AuditArch, nr uint32) uint32 {
	t.Helper()
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
		switch {
		case code == bpfLoad && k == archAt:
			acc = uint32(a)
		case code == bpfLoad && k == numberAt:
			acc = nr
		case code == bpfEqual:
			jump(acc == k)
		case code == bpfSet:
			jump(acc&k != 0)
		case code == bpfReturn:
			return k
		default:
			t.Fatalf("instruction %d is %x %d", pc, code, k)
		}
	}
	t.Fatal("the filter has no end")
	return 0
}

func TestFilter(t *testing.T) {
	perm, nosys := uint32(actionErrno|uint32(unix.EPERM)), uint32(actionErrno|uint32(unix.ENOSYS))
	for goarch, natives := range map[string][]*arch.Info{"amd64": {arch.X86_64, arch.I386}, "arm64": {arch.AARCH64, arch.ARM}} {
		f, err := newFilters(goarch)
		if err != nil {
			t.Fatal(err)
		}
		prog := f.plain
		if len(prog)/8 > 4096 {
			t.Fatalf("%d instructions are more than the kernel takes", len(prog)/8)
		}
		for _, a := range natives {
			for nr, name := range a.SyscallNumbers {
				want := uint32(actionAllow)
				if slices.Contains(refused(), name) {
					want = perm
				} else if slices.Contains(absent(), name) {
					want = nosys
				}
				if is := judge(t, prog, a.ID, uint32(nr)); is != want {
					t.Errorf("%s %s: %#x, want %#x", a.Name, name, is, want)
				}
				if a == natives[0] && slices.Contains(asked(), name) {
					want = actionAsk
				}
				if is := judge(t, f.asking, a.ID, uint32(nr)); is != want {
					t.Errorf("%s %s: %#x, want %#x, when it asks", a.Name, name, is, want)
				}
			}
		}
		if is := judge(t, prog, arch.AuditArch(0x12345), 1); is != actionKill {
			t.Errorf("a call of another machine: %#x", is)
		}
	}
	prog, err := filter("amd64", nil)
	if err != nil {
		t.Fatal(err)
	}
	if is := judge(t, prog, arch.X86_64.ID, x32Bit|1); is != nosys {
		t.Errorf("an x32 call: %#x", is)
	}
	if _, err := filter("mips", nil); err == nil {
		t.Error("a filter for a machine without a table")
	}
}

// TestRefusedExist checks that no name is misspelt, which would refuse nothing.
func TestRefusedExist(t *testing.T) {
	for _, n := range slices.Concat(refused(), absent(), asked()) {
		known := false
		for _, a := range []*arch.Info{arch.X86_64, arch.I386, arch.AARCH64, arch.ARM} {
			_, ok := a.SyscallNames[n]
			known = known || ok
		}
		if !known {
			t.Errorf("no machine has a call named %s", n)
		}
	}
}

func TestStopSignal(t *testing.T) {
	for name, want := range map[string]unix.Signal{"systemd": 37, "init": unix.SIGUSR2, "busybox": unix.SIGUSR2, "tini": unix.SIGTERM, "postgres": unix.SIGTERM} {
		if is := stopSignal(name); is != want {
			t.Errorf("%s: %v", name, is)
		}
	}
}

func TestCandidates(t *testing.T) {
	path := []string{"/a", "", "relative", "/b"}
	if got := launch.Candidates("ls", path); !slices.Equal(got, []string{"/a/ls", "/b/ls"}) {
		t.Error(got)
	}
	if got := launch.Candidates("./ls", path); !slices.Equal(got, []string{"./ls"}) {
		t.Error(got)
	}
}
