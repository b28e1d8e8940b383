package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// group reads a control file of a guest, wherever this host's layout has it:
// the first of names that exists.
func (s *server) group(id string, names ...string) string {
	s.t.Helper()
	for _, name := range names {
		files, _ := filepath.Glob("/sys/fs/cgroup/*/" + s.flag("--cgroup") + "/" + id + "/" + name)
		files = append(files, "/sys/fs/cgroup/"+s.flag("--cgroup")+"/"+id+"/"+name)
		for _, f := range files {
			if text, err := os.ReadFile(f); err == nil {
				return strings.TrimSpace(string(text))
			}
		}
	}
	s.t.Fatalf("no group of %s has any of %v", id, names)
	return ""
}

// TestLimits sees that what is asked for is enforced, and follows changes.
func TestLimits(t *testing.T) {
	s := newServer(t)
	s.busybox()
	s.lodge("launch", "busybox", "g", "--memory", "64MiB", "--cpus", "0.5", "--processes", "64", "--disk", "32MiB")
	g := s.guest("g")
	memory := func() string { return s.group(g.ID, "memory.limit_in_bytes", "memory.max") }
	if m := memory(); m != fmt.Sprint(64<<20) {
		t.Errorf("memory: %s", m)
	}

	t.Run("memory", func(t *testing.T) {
		r := s.try("exec", "g", "--", "sh", "-c", "dd if=/dev/zero of=/dev/null bs=128M count=1")
		if r.code == 0 {
			t.Error("it took 128 MiB of its 64")
		}
		s.lodge("set", "g", "--memory", "256MiB")
		if m := memory(); m != fmt.Sprint(256<<20) {
			t.Errorf("after set: %s", m)
		}
		if p := s.guest("g").Pid; p != g.Pid {
			t.Errorf("set restarted it: pid %d, was %d", p, g.Pid)
		}
		s.lodge("exec", "g", "--", "sh", "-c", "dd if=/dev/zero of=/dev/null bs=128M count=1")
		if free := s.lodge("exec", "g", "--", "sh", "-c", "grep MemTotal /proc/meminfo; free -m"); free != "" {
			t.Logf("inside: %s", free)
		}
		s.lodge("set", "g", "--memory", "64MiB")
	})
	t.Run("disk traffic", func(t *testing.T) {
		writes := func() string { return s.group(g.ID, "blkio.throttle.write_bps_device", "io.max") }
		if w := writes(); w != "" {
			t.Errorf("at first: %q", w)
		}
		s.lodge("set", "g", "--io-write", "8MiB")
		if w := writes(); !strings.Contains(w, fmt.Sprint(8<<20)) {
			t.Errorf("after set: %q", w)
		}
		before := time.Now()
		s.lodge("exec", "g", "--", "dd", "if=/dev/zero", "of=/root/slow", "bs=1M", "count=16", "oflag=direct", "conv=fsync")
		t.Logf("16 MiB at 8 MiB a second took %v", time.Since(before).Round(time.Millisecond))
		s.lodge("set", "g", "--io-write", "0")
		if w := writes(); w != "" {
			t.Errorf("after it was taken away: %q", w)
		}
		s.lodge("exec", "g", "--", "rm", "/root/slow")
	})
	t.Run("processors", func(t *testing.T) {
		quota := func() float64 {
			fields := strings.Fields(s.group(g.ID, "cpu.cfs_quota_us", "cpu.max"))
			period := 100000.0
			if len(fields) == 1 {
				period, _ = strconv.ParseFloat(s.group(g.ID, "cpu.cfs_period_us"), 64)
			} else {
				period, _ = strconv.ParseFloat(fields[1], 64)
			}
			q, _ := strconv.ParseFloat(fields[0], 64)
			return q / period
		}
		if q := quota(); q != 0.5 {
			t.Errorf("quota: %v", q)
		}
		s.lodge("set", "g", "--cpus", "1.5", "--cpu-weight", "200")
		if q := quota(); q != 1.5 {
			t.Errorf("after set: %v", q)
		}
		if w := s.group(g.ID, "cpu.shares", "cpu.weight"); w != "2048" && w != "200" {
			t.Errorf("weight: %s", w)
		}
	})
	t.Run("processes", func(t *testing.T) {
		// It forks until it may no more, and is still there to be stopped.
		s.try("exec", "g", "--", "sh", "-c", "i=0; while [ $i -lt 200 ]; do sleep 100 & i=$((i+1)); done")
		until(t, "the bomb is at its limit", func() error {
			// The shell ends at its first fork that fails.
			if n, _ := strconv.Atoi(s.group(g.ID, "pids.current")); n < 60 || n > 64 {
				return fmt.Errorf("%d processes", n)
			}
			return nil
		})
		s.lodge("set", "g", "--processes", "100")
		if n := s.group(g.ID, "pids.max"); n != "100" {
			t.Errorf("after set: %s", n)
		}
		s.lodge("exec", "g", "--", "killall", "sleep")
	})
	t.Run("disk", func(t *testing.T) {
		quota := ""
		for _, p := range list[struct{ Quota string }](s, "pool", "ls") {
			quota = p.Quota
		}
		if !strings.HasPrefix(quota, "enforced") {
			t.Skipf("quota is %s here", quota)
		}
		r := s.try("exec", "g", "--", "sh", "-c", "dd if=/dev/urandom of=/root/big bs=1M count=64; sync")
		if r.code == 0 && !strings.Contains(r.err, "quota") && !strings.Contains(r.err, "No space") {
			t.Errorf("64 MiB on 32: %+v", r)
		}
		if df := s.lodge("exec", "g", "--", "df", "-m", "/"); !strings.Contains(df, " 32 ") {
			t.Errorf("df does not know the quota: %s", df)
		}
		s.lodge("exec", "g", "--", "rm", "/root/big")
		s.lodge("set", "g", "--disk", "128MiB")
		s.lodge("exec", "g", "--", "sh", "-c", "dd if=/dev/urandom of=/root/big bs=1M count=64 && sync")
		if df := s.lodge("exec", "g", "--", "df", "-m", "/"); !strings.Contains(df, " 128 ") {
			t.Errorf("df does not know the new quota: %s", df)
		}
		s.lodge("exec", "g", "--", "rm", "/root/big")
	})
	s.lodge("rm", "-f", "g")
	s.noLeaks()
}

// TestOutOfMemory ends a guest whose first process needs too much.
func TestOutOfMemory(t *testing.T) {
	s := newServer(t)
	s.busybox()
	s.try("launch", "busybox", "hungry", "--memory", "16MiB", "--", "/bin/sh", "-c", "sleep 0.2; exec dd if=/dev/zero of=/dev/null bs=64M count=2")
	until(t, "it is ended", func() error {
		if g := s.guest("hungry"); g.Exit == nil || !g.Exit.OOM || g.Phase != "stopped" {
			return fmt.Errorf("%s, %+v", g.Phase, g.Exit)
		}
		return nil
	})
	if out := s.lodge("show", "hungry"); !strings.Contains(strings.ToLower(out), "memory") {
		t.Errorf("show does not say why it ended:\n%s", out)
	}
}

// TestRestarts lets guests end, and sees what their policies make of it.
func TestRestarts(t *testing.T) {
	s := newServer(t)
	s.busybox()
	launch := func(name, policy, script string) {
		s.lodge("launch", "busybox", name, "--memory", "32MiB", "--restart", policy, "--no-wait", "--", "/bin/sh", "-c", script)
	}
	launch("never", "never", "exit 3")
	launch("fails", "on-failure", "[ -e /root/second ] && exec sleep 1000; touch /root/second; exit 3")
	launch("well", "on-failure", "exit 0")
	launch("always", "always", "exit 0")
	until(t, "the policies are followed", func() error {
		all := s.guests()
		for name, phase := range map[string]string{"never": "stopped", "fails": "running", "well": "stopped"} {
			if g := all[name]; g.Phase != phase {
				return fmt.Errorf("%s is %s", name, g.Phase)
			}
		}
		if g := all["always"]; g.Restarts < 3 {
			return fmt.Errorf("always was restarted %d times", g.Restarts)
		}
		return nil
	})
	if g := s.guest("never"); g.Exit == nil || g.Exit.Code != 3 || g.Restarts != 0 {
		t.Errorf("never: %+v, %d restarts", g.Exit, g.Restarts)
	}
	s.lodge("stop", "always")
	n := s.guest("always").Restarts
	time.Sleep(300 * time.Millisecond)
	if g := s.guest("always"); g.Phase != "stopped" || g.Restarts != n {
		t.Errorf("a stopped guest came back: %s, %d restarts", g.Phase, g.Restarts)
	}
	s.lodge("launch", "busybox", "short", "--memory", "32MiB", "--ephemeral")
	s.lodge("stop", "short")
	until(t, "an ephemeral guest is gone", func() error {
		if _, there := s.guests()["short"]; there {
			return fmt.Errorf("it is there")
		}
		return nil
	})
	s.lodge("rm", "-f", "--all")
	s.noLeaks()
}

// TestStopTimeout stops a guest that does not want to.
func TestStopTimeout(t *testing.T) {
	s := newServer(t)
	s.busybox()
	s.lodge("launch", "busybox", "stubborn", "--memory", "32MiB", "--", "/bin/sh", "-c", "trap '' TERM PWR INT HUP; while :; do sleep 0.1; done")
	s.lodge("stop", "--timeout", "1s", "stubborn")
	if g := s.guest("stubborn"); g.Phase != "stopped" {
		t.Errorf("after stop: %s", g.Phase)
	}
	s.lodge("start", "stubborn")
	s.lodge("pause", "stubborn")
	s.lodge("stop", "--force", "stubborn")
	s.lodge("start", "stubborn")
	s.lodge("restart", "--force", "stubborn")
	s.lodge("exec", "stubborn", "--", "true")
	s.lodge("rm", "-f", "stubborn")
	s.noLeaks()
}
