package engine

import (
	"os"
	"strings"
	"syscall"
	"testing"

	"lodge/internal/keeper"
)

func TestLastWords(t *testing.T) {
	const before = "[    0.0] Linux version 6.1\r\n[    9.9] reboot: Power down\r\n[    0.0] Linux version 6.1\r\nhello\r\n"
	for _, c := range []struct {
		name, old, now string
		known          bool
		signal         syscall.Signal
		code           int
		last           string
	}{
		{"reboot", "", before + "[   12.1] reboot: Restarting system\r\n", true, syscall.SIGHUP, 0, ""},
		{"power off", "", before + "[   12.1] reboot: Power down\r\n", true, syscall.SIGINT, 0, ""},
		{"halt", "", before + "reboot: System halted", true, syscall.SIGINT, 0, ""},
		{"panic", "", before + "[ 1] Kernel panic - not syncing: sysrq triggered crash\r\n" + strings.Repeat("[ 1] trace\r\n", 60) + "[ 2] Rebooting in 1 seconds..\r\n[ 3] reboot: Restarting system\r\n", true, 0, 1, "Kernel panic - not syncing: sysrq triggered crash"},
		{"a program that ended", "", before + "no file\r\nlodge-agent: the first program ended with status 3\r\n[ 1] reboot: Power down\r\n", true, 0, 3, "no file"},
		{"of the run before only", "", before, false, 0, 7, "hello"},
		{"a log just rotated", before + "reboot: Restar", "ting system\r\n", true, syscall.SIGHUP, 0, ""},
		{"no log", "", "", false, 0, 7, ""},
		{"a flood", "", before + strings.Repeat("y\r\n", tailMax) + "reboot: Power down\r\n", true, syscall.SIGINT, 0, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			parts := Parts{Dir: t.TempDir()}
			for file, text := range map[string]string{"": c.now, ".1": c.old} {
				if text == "" {
					continue
				}
				if err := os.WriteFile(ConsoleLog(parts.Dir)+file, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			is, last, known := LastWords(parts, keeper.Exit{Code: 7})
			if known != c.known || is.Signal != c.signal || is.Code != c.code || !strings.Contains(last, c.last) || strings.Count(last, "\n") >= lastMax {
				t.Errorf("%v: %+v, %q", known, is, last)
			}
		})
	}
}
