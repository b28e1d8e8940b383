package engine

import (
	"os"
	"strings"
	"syscall"
	"testing"

	"lodge/internal/keeper"
	"lodge/internal/model"
	"lodge/internal/model/guest"
)

func TestLastWords(t *testing.T) {
	const (
		before = "[    0.0] Linux version 6.1\r\n[    9.9] Kernel panic - not syncing: long ago\r\nreboot: Power down\r\n"
		begins = "|" // here the run does
		hello  = before + begins + "hello\r\n"
	)
	for _, c := range []struct {
		name, old, now string
		known          bool
		signal         syscall.Signal
		code           int
		last           string
	}{
		{"reboot", "", hello + "[   12.1] reboot: Restarting system\r\n", true, syscall.SIGHUP, 0, ""},
		{"power off", "", hello + "[   12.1] reboot: Power down\r\n", true, syscall.SIGINT, 0, ""},
		{"halt", "", hello + "reboot: System halted", true, syscall.SIGINT, 0, ""},
		{"panic", "", hello + "[ 1] Kernel panic - not syncing: sysrq triggered crash\r\n" + strings.Repeat("[ 1] trace\r\n", 60) + "[ 2] Rebooting in 1 seconds..\r\n[ 3] reboot: Restarting system\r\n", true, 0, 1, "Kernel panic - not syncing: sysrq triggered crash"},
		{"a program that ended", "", hello + "no file\r\nlodge-agent: the first program ended with status 3\r\n[ 1] reboot: Power down\r\n", true, 0, 3, "no file"},
		{"of the run before only", "", hello, false, 0, 7, "hello"},
		{"a log just rotated", hello + "reboot: Restar", "ting system\r\n", true, syscall.SIGHUP, 0, ""},
		{"a log rotated long ago", before, "no file\r\nlodge-agent: the first program ended with status 3\r\n", true, 0, 3, "no file"},
		{"of the run before, rotated since", before, begins + "hello\r\n", false, 0, 7, "hello"},
		{"nothing was said", "", before + begins, false, 0, 7, ""},
		{"no log", "", "", false, 0, 7, ""},
		{"a flood", "", hello + strings.Repeat("y\r\n", tailMax) + "reboot: Power down\r\n", true, syscall.SIGINT, 0, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			parts := Parts{Dir: t.TempDir()}
			for file, text := range map[string]string{"": c.now, ".1": c.old} {
				if text != "" {
					keep(t, ConsoleLog(parts.Dir)+file, text, begins)
				}
			}
			is, last, known := LastWords(parts, keeper.Exit{Code: 7})
			if known != c.known || is.Signal != c.signal || is.Code != c.code || !strings.Contains(last, c.last) || strings.Count(last, "\n") >= lastMax {
				t.Errorf("%v: %+v, %q", known, is, last)
			}
		})
	}
}

// keep writes a file of a console's log as a keeper does; a run begins behind
// begins.
func keep(t *testing.T, path, text, begins string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	before, after, marked := strings.Cut(text, begins)
	if _, err = f.WriteString(before); err == nil && marked {
		err = keeper.MarkRun(f)
	}
	if err == nil {
		_, err = f.WriteString(after)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestBeforeNow(t *testing.T) {
	deaf, other := &model.Problem{Message: AgentSilent}, &model.Problem{Message: "something else"}
	for _, c := range []struct {
		s          guest.Status
		up, silent bool
	}{
		{guest.Status{Pid: 7}, false, false},
		{guest.Status{Pid: 7, Ready: true}, true, false},
		{guest.Status{Pid: 7, Ready: true, Problem: other}, true, false},
		{guest.Status{Pid: 7, Problem: deaf}, true, true},
		{guest.Status{Pid: 6, Ready: true, Problem: deaf}, false, false},
	} {
		if up, silent := BeforeNow(guest.Guest{Status: c.s}, 7); up != c.up || silent != c.silent {
			t.Errorf("%+v: %v, %v", c.s, up, silent)
		}
	}
}
