package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// commandLimit ends a command that hangs. It is far above every promise.
const commandLimit = 2 * time.Minute

// command runs a program to its end; its error holds what the program said.
func command(ctx context.Context, env []string, argv ...string) (string, error) {
	return within(ctx, commandLimit, env, argv...)
}

// within is command with a limit of its own.
func within(ctx context.Context, limit time.Duration, env []string, argv ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), env...)
	var out, talk bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &talk
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, strings.TrimSpace(talk.String()))
	}
	return out.String(), nil
}

// lookAround describes the machine.
func lookAround() Machine {
	m := Machine{CPUs: runtime.NumCPU(), LoadBefore: load(), MemoryMB: int(memory()["MemTotal"] / 1024)}
	text, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			m.CPU = strings.TrimSpace(value)
			break
		}
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	return m
}

func load() string {
	text, _ := os.ReadFile("/proc/loadavg")
	if f := strings.Fields(string(text)); len(f) > 0 {
		return f[0]
	}
	return "?"
}

// memory reads /proc/meminfo, in KiB.
func memory() map[string]float64 { return keyed("/proc/meminfo") }

// keyed reads a file of "Key: number ..." lines.
func keyed(path string) map[string]float64 {
	all := map[string]float64{}
	text, _ := os.ReadFile(path)
	for line := range strings.Lines(string(text)) {
		key, rest, ok := strings.Cut(line, ":")
		if f := strings.Fields(rest); ok && len(f) > 0 {
			all[key], _ = strconv.ParseFloat(f[0], 64)
		}
	}
	return all
}

// processorTime returns what a process has used of all processors.
func processorTime(pid int) (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	f := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	user, err := strconv.Atoi(f[11])
	system, err2 := strconv.Atoi(f[12])
	return time.Duration(user+system) * 10 * time.Millisecond, errors.Join(err, err2) // USER_HZ is 100 everywhere
}

// processes lists the pids in this namespace whose command line f accepts.
func processes(f func(argv []string) bool) (pids []int) {
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		text, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if f(strings.Split(strings.TrimRight(string(text), "\x00"), "\x00")) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// until waits for f to succeed, at most limit.
func until(ctx context.Context, what string, limit time.Duration, f func() error) error {
	deadline := time.Now().Add(limit)
	for {
		err := f()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil || time.Now().After(deadline) {
			return fmt.Errorf("%s: not within %v: %w", what, limit, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// service is a program that runs until it is ended.
type service struct {
	cmd   *exec.Cmd
	ended chan struct{}
	log   string
}

// serve starts a program whose output goes to the file log.
func serve(log string, env []string, argv ...string) (*service, error) {
	f, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	s := &service{cmd: exec.Command(argv[0], argv[1:]...), ended: make(chan struct{}), log: log}
	s.cmd.Env = append(os.Environ(), env...)
	s.cmd.Stdout, s.cmd.Stderr = f, f
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { s.cmd.Wait(); close(s.ended) }()
	return s, nil
}

// failed returns an error with the end of its log once the service has ended.
func (s *service) failed() error {
	select {
	case <-s.ended:
		text, _ := os.ReadFile(s.log)
		return fmt.Errorf("%s ended: %s", s.cmd.Path, text[max(0, len(text)-2000):])
	default:
		return nil
	}
}

// end asks the service to end, and insists after a while.
func (s *service) end() {
	s.cmd.Process.Signal(unix.SIGTERM)
	select {
	case <-s.ended:
	case <-time.After(20 * time.Second):
		s.cmd.Process.Kill()
		<-s.ended
	}
}
