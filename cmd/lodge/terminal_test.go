package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"lodge/internal/cli/clitest"
)

// terminal is a real pseudo terminal with a program on it.
type terminal struct {
	t      *testing.T
	ours   *os.File // the person's side
	theirs *os.File
	host   string

	mu     sync.Mutex
	screen strings.Builder
	more   *sync.Cond
}

func newTerminal(t *testing.T, host string) *terminal {
	ours, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no pseudo terminals here: %v", err)
	}
	t.Cleanup(func() { ours.Close() })
	fd := int(ours.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { theirs.Close() })
	term := &terminal{t: t, ours: ours, theirs: theirs, host: host}
	term.more = sync.NewCond(&term.mu)
	term.resize(33, 101)
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := ours.Read(buf)
			term.mu.Lock()
			term.screen.Write(buf[:n])
			term.more.Broadcast()
			term.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return term
}

func (m *terminal) resize(rows, cols uint16) {
	if err := unix.IoctlSetWinsize(int(m.ours.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols}); err != nil {
		m.t.Fatal(err)
	}
}

func (m *terminal) settings() unix.Termios {
	s, err := unix.IoctlGetTermios(int(m.theirs.Fd()), unix.TCGETS)
	if err != nil {
		m.t.Fatal(err)
	}
	return *s
}

// start runs lodge in a session of its own on the terminal.
func (m *terminal) start(args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	// testscript's Main takes the program's name for the command's.
	cmd.Args[0] = "lodge"
	cmd.Env = append(os.Environ(), "LODGE_HOST="+m.host, "TERM=xterm-test")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = m.theirs, m.theirs, m.theirs
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { cmd.Process.Kill() })
	return cmd
}

// see waits until the text is on the screen.
func (m *terminal) see(text string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for !strings.Contains(m.screen.String(), text) {
		m.more.Wait()
	}
}

func (m *terminal) keys(s string) {
	if _, err := m.ours.WriteString(s); err != nil {
		m.t.Fatal(err)
	}
}

func ended(t *testing.T, cmd *exec.Cmd, want int) {
	t.Helper()
	cmd.Wait()
	if got := cmd.ProcessState.ExitCode(); got != want {
		t.Errorf("%v: exit code %d, want %d", cmd.Args, got, want)
	}
}

// TestTerminal runs what needs a terminal on a real one: whatever happens, the
// terminal is afterwards as it was.
func TestTerminal(t *testing.T) {
	host, server, stop, err := clitest.Start(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	check := func(name string, do func(t *testing.T, m *terminal)) {
		t.Run(name, func(t *testing.T) {
			m := newTerminal(t, host)
			before := m.settings()
			do(t, m)
			if after := m.settings(); after != before {
				t.Errorf("the terminal was left as %+v, it was %+v", after, before)
			}
		})
	}
	check("launch", func(t *testing.T, m *terminal) {
		ended(t, m.start("launch", "busybox", "web1"), 0)
		m.see("web1 runs 10.67.0.2")
	})
	check("exec is a terminal by itself", func(t *testing.T, m *terminal) {
		ended(t, m.start("exec", "web1", "env"), 0)
		m.see("env=TERM=xterm-test tty=true")
	})
	check("window size", func(t *testing.T, m *terminal) {
		ended(t, m.start("exec", "web1", "size"), 0)
		m.see("33x101")
	})
	check("window changes", func(t *testing.T, m *terminal) {
		cmd := m.start("exec", "web1", "watch")
		m.see("ready")
		m.resize(50, 132)
		m.see("resized 50x132")
		ended(t, cmd, 0)
	})
	check("exit status", func(t *testing.T, m *terminal) {
		ended(t, m.start("exec", "web1", "fail", "9"), 9)
	})
	check("killed by a signal of ours", func(t *testing.T, m *terminal) {
		cmd := m.start("exec", "web1", "trap")
		m.see("ready")
		cmd.Process.Signal(syscall.SIGTERM)
		m.see("got TERM")
		ended(t, cmd, 0)
	})
	check("console", func(t *testing.T, m *terminal) {
		cmd := m.start("console", "web1")
		m.see("login: ")
		m.keys("x\x03")
		m.see("<x")
		m.see("\x03>") // ^C is the guest's
		m.keys("\x1d")
		ended(t, cmd, 0)
		m.see("left the console of web1")
	})
	check("top", func(t *testing.T, m *terminal) {
		cmd := m.start("top")
		m.see("1 guests run")
		m.keys("m")
		m.keys("q")
		ended(t, cmd, 0)
		m.see("\x1b[?1049l")
	})
	check("password", func(t *testing.T, m *terminal) {
		cmd := m.start("password", "web1")
		m.see("New password for root of web1: ")
		m.keys("hidden words\r")
		m.see("Again: ")
		m.keys("hidden words\r")
		ended(t, cmd, 0)
		cmd = m.start("password", "web1")
		m.keys("one\rother\r")
		ended(t, cmd, 1)
		m.see("these are not the same")
		m.mu.Lock()
		defer m.mu.Unlock()
		if strings.Contains(m.screen.String(), "hidden") {
			t.Error("the password was shown")
		}
	})
	check("password and ^C", func(t *testing.T, m *terminal) {
		cmd := m.start("password", "web1")
		m.see("New password for root of web1: ")
		m.keys("hid\x03")
		ended(t, cmd, 130)
	})
	check("progress and ^C", func(t *testing.T, m *terminal) {
		cmd := m.start("launch", "busybox", "slow1")
		m.see("working")
		m.keys("\x03")
		ended(t, cmd, 130)
		m.see("lodge: hint: follow it with: lodge op wait op2")
		server.Release()
	})
}
