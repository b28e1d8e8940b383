package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// terminal is a real pseudo terminal with a program on it.
type terminal struct {
	t    testing.TB
	ours *os.File
	cmd  *exec.Cmd
	done chan struct{}
	code int

	mu     sync.Mutex
	screen strings.Builder
}

// terminal runs the command line on a terminal of 40 rows and 100 columns.
func (s *server) terminal(args ...string) *terminal {
	s.t.Helper()
	ours, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		s.t.Skipf("no pseudo terminals here: %v", err)
	}
	fd := int(ours.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		s.t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		s.t.Fatal(err)
	}
	theirs, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	defer theirs.Close()
	m := &terminal{t: s.t, ours: ours, done: make(chan struct{})}
	m.resize(40, 100)
	m.cmd = exec.Command(binary(s.t, "lodge"), args...)
	m.cmd.Env = append(os.Environ(), "LODGE_HOST=unix://"+s.path("run/lodged.sock"), "TERM=xterm")
	m.cmd.Stdin, m.cmd.Stdout, m.cmd.Stderr = theirs, theirs, theirs
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := m.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	go m.read()
	go func() { m.cmd.Wait(); m.code = m.cmd.ProcessState.ExitCode(); close(m.done) }()
	s.t.Cleanup(func() { m.cmd.Process.Kill(); <-m.done; ours.Close() })
	return m
}

func (m *terminal) read() {
	buf := make([]byte, 4096)
	for {
		n, err := m.ours.Read(buf)
		m.mu.Lock()
		m.screen.Write(buf[:n])
		m.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (m *terminal) resize(rows, cols uint16) {
	m.t.Helper()
	if err := unix.IoctlSetWinsize(int(m.ours.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols}); err != nil {
		m.t.Fatal(err)
	}
}

func (m *terminal) text() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.screen.String()
}

// say types text.
func (m *terminal) say(text string) {
	m.t.Helper()
	if _, err := m.ours.WriteString(text); err != nil {
		m.t.Fatal(err)
	}
}

// see waits until the screen has shown text since the start.
func (m *terminal) see(text string) {
	m.t.Helper()
	until(m.t, fmt.Sprintf("%q is on the screen", text), func() error {
		if shown := m.text(); !strings.Contains(shown, text) {
			return fmt.Errorf("there is %q", shown)
		}
		return nil
	})
}

// ends waits for the program's end and returns its exit status.
func (m *terminal) ends() int {
	m.t.Helper()
	until(m.t, "the program ends", func() error {
		select {
		case <-m.done:
			return nil
		default:
			return errors.New("it runs; the screen: " + m.text())
		}
	})
	return m.code
}
