package keepd

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"lodge/internal/keeper"
)

func statLine(name string, state byte, ppid int, ticks uint64, code int) string {
	f := make([]string, 50)
	for i := range f {
		f[i] = "0"
	}
	f[0], f[1], f[19], f[49] = string(state), fmt.Sprint(ppid), fmt.Sprint(ticks), fmt.Sprint(code)
	return fmt.Sprintf("12 (%s) %s\n", name, strings.Join(f, " "))
}

// FuzzStat: a guest chooses its processes' names, and must not be able to
// choose what we read behind them.
func FuzzStat(f *testing.F) {
	f.Add("sleep", 4, uint64(99), 256)
	f.Add(") Z 1 1 1 (x", 4, uint64(99), 256)
	f.Add("", 0, uint64(0), 0)
	f.Fuzz(func(t *testing.T, name string, ppid int, ticks uint64, code int) {
		s, err := parseStat([]byte(statLine(name, 'S', ppid, ticks, code)))
		if err != nil || s != (stat{'S', ppid, ticks, code}) {
			t.Fatalf("%q: %+v, %v", name, s, err)
		}
		_, _ = parseStat([]byte(name))
	})
}

func FuzzAnswer(f *testing.F) {
	for _, s := range []string{"123", "error no image", "error ", "", "-5", "1", "99999999999999999999"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		if pid, err := parseAnswer(line); err == nil && pid <= 1 {
			t.Fatalf("%q became %d", line, pid)
		}
	})
}

// TestLearn: the end of a process that is not our child, before and after its
// parent has reaped it.
func TestLearn(t *testing.T) {
	cmd := exec.Command("/bin/sh", "-c", "exit 23")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pidfd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	if _, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 10_000); err != nil {
		t.Fatal(err)
	}
	s, err := readStat(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	rec := keeper.Record{State: keeper.State{Pid: cmd.Process.Pid}, Ticks: s.ticks}
	if e := learn(pidfd, rec, false); e.Code != 23 || e.Unknown {
		t.Errorf("as a zombie: %+v", e)
	}
	if e := learn(-1, keeper.Record{State: rec.State, Ticks: s.ticks + 1}, false); !e.Unknown {
		t.Errorf("another process of that number: %+v", e)
	}
	_ = cmd.Wait()
	if _, known := pidfdExit(pidfd); !known {
		t.Skip("this kernel does not keep the exit status of a process that was reaped (Linux 6.15 does)")
	}
	if e := learn(pidfd, rec, false); e.Code != 23 || e.Unknown {
		t.Errorf("reaped: %+v", e)
	}
}

func TestRotating(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	r := newRotating(path, 10)
	for _, s := range []string{"abcd", "efgh", "ijkl", "mnopqrstuvwxyz0123456789"} {
		if err := r.write([]byte(s)); err != nil {
			t.Fatal(err)
		}
	}
	r.close()
	newest, _ := os.ReadFile(path)
	before, _ := os.ReadFile(path + ".1")
	if got := append(before, newest...); !bytes.HasSuffix([]byte("abcdefghijklmnopqrstuvwxyz0123456789"), got) || len(before) != 10 || len(newest) > 10 {
		t.Errorf("kept %q and %q", before, newest)
	}
	again := newRotating(path, 10) // the next keeper goes on where this one was
	if err := again.write([]byte("....")); err != nil {
		t.Fatal(err)
	}
	again.close()
	if after, _ := os.ReadFile(path); string(after) != string(newest)+"...." {
		t.Errorf("went on with %q after %q", after, newest)
	}
	if err := (newRotating("", 0)).write([]byte("x")); err != nil {
		t.Errorf("no log: %v", err)
	}
}
