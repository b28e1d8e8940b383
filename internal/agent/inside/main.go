package inside

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"lodge/internal/agent"
	"lodge/internal/base/proc"
)

// Name is what the agent calls itself. Inits that end all processes when the
// guest stops spare one whose name begins so (systemd.io/ROOT_STORAGE_DAEMONS).
const Name = "@lodge-agent"

// Descriptors that the agent is started with, beside the usual ones.
const (
	configFD = iota + 3 // Config as JSON
	volumeFD            // a folder of the writable layer
	notifyFD            // where an init says that it is up
	bornFD              // ends when process 1 is the guest's init
)

// configMax bounds the guest's description.
const configMax = 4 << 20

// Main is the agent's second life, which /init starts. It never returns.
func Main() {
	c, err := readConfig(os.NewFile(configFD, "config"))
	if err != nil {
		say("the agent has no configuration: %v", err)
		os.Exit(1)
	}
	c.HostKeys = nil // they are where they belong
	// Inits that stop ask everybody to end, before the answer that they were
	// told to stop is on its way. What is heard is not handed down to programs,
	// what is ignored would be.
	signal.Notify(make(chan os.Signal, 1), unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT, unix.SIGPWR)
	unix.Umask(0o022)
	a := New(c)
	a.calm()
	if a.starter.oom, err = os.OpenFile("/proc/self/oom_score_adj", os.O_WRONLY, 0); err == nil {
		_, _ = a.starter.oom.WriteAt([]byte(oomAgent), 0)
	}
	a.Volume = os.NewFile(volumeFD, "volume")
	if c.Mailbox != "" {
		if a.Mailbox, err = openMailbox(c.Mailbox); err != nil {
			say("no mailbox: %v", err)
		}
	}
	go a.awaitReady(os.NewFile(notifyFD, "notify"), os.NewFile(bornFD, "born"))
	go a.followAddresses()
	for wait := time.Millisecond; ; wait = min(2*wait, time.Second) {
		f, err := openChannel(c.Channel)
		if err == nil {
			wait = time.Millisecond
			err = a.Converse(f, c.Credit)
		}
		time.Sleep(wait)
		_ = err // the host is gone or the port not there yet: there is nobody to tell
	}
}

func readConfig(f *os.File) (c agent.Config, err error) {
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, configMax))
	if err != nil {
		return c, err
	}
	return c, agent.Decode(b, &c)
}

// say writes a line on the console.
func say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "lodge-agent: "+format+"\n", args...)
}

// openChannel opens the host's line, as it is: no byte means anything to the
// terminal, if it is one.
func openChannel(where string) (*os.File, error) {
	path := where
	if name, ok := strings.CutPrefix(where, "port:"); ok {
		path = port(name)
	}
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	_ = proc.Control(f, func(fd int) error {
		t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
		if err != nil {
			return err
		}
		t.Iflag, t.Oflag, t.Lflag = 0, 0, 0
		t.Cflag = t.Cflag&^(unix.CSIZE|unix.PARENB|unix.HUPCL) | unix.CS8 | unix.CLOCAL | unix.CREAD
		t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
		return unix.IoctlSetTermios(fd, unix.TCSETS, t)
	})
	return f, nil
}

// port is the device of the virtio serial port with a name.
func port(name string) string {
	found, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
	for _, f := range found {
		if strings.TrimSpace(read(f)) == name {
			return "/dev/" + filepath.Base(filepath.Dir(f))
		}
	}
	return "/dev/no-such-port"
}

// deviceTime is how long a device may take to appear.
const deviceTime = 30 * time.Second

// device waits for the disk that where names: a path, or "serial:" and the
// serial number of a virtio disk.
func device(where string) (string, error) {
	end := time.Now().Add(deviceTime)
	for {
		path := where
		if serial, ok := strings.CutPrefix(where, "serial:"); ok {
			path = ""
			found, _ := filepath.Glob("/sys/block/*/serial")
			for _, f := range found {
				if strings.TrimSpace(read(f)) == serial {
					path = "/dev/" + filepath.Base(filepath.Dir(f))
				}
			}
		}
		if path != "" {
			if fi, err := os.Stat(path); err == nil && fi.Mode()&os.ModeDevice != 0 {
				return path, nil
			}
		}
		if time.Now().After(end) {
			return "", fmt.Errorf("the disk %s did not appear", where)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// openMailbox opens the device that is shared with the host, past the cache.
func openMailbox(where string) (*agent.Mailbox, error) {
	path, err := device(where)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return nil, err
	}
	return agent.NewMailbox(f)
}

// awaitReady finds out when the guest is up. systemd says so on the socket; an
// init that is none is believed to be up as soon as it runs, because it has no
// way to say more.
func (a *Agent) awaitReady(notify, born *os.File) {
	command := a.Config().Command // whose process 1 stays what it is
	if !command {
		_, _ = born.Read(make([]byte, 1)) // ends with the program that /init was
	}
	born.Close()
	if command || firstProgram() != "systemd" {
		a.Ready()
	}
	b := make([]byte, 4096)
	for {
		n, err := unix.Read(int(notify.Fd()), b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return
		}
		for line := range strings.Lines(string(b[:n])) {
			if strings.TrimSpace(line) == "READY=1" && !a.isReady() {
				a.rehearse()
				a.Ready()
			}
		}
	}
}

// firstProgram is the base name of the guest's process 1, past all links.
func firstProgram() string {
	exe, err := os.Readlink("/proc/1/exe")
	if err != nil {
		return ""
	}
	return filepath.Base(strings.TrimSuffix(exe, " (deleted)"))
}

// followAddresses reports the guest's addresses whenever they change.
func (a *Agent) followAddresses() {
	a.LookUp()
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return
	}
	groups := uint32(1<<(unix.RTNLGRP_LINK-1) | 1<<(unix.RTNLGRP_IPV4_IFADDR-1) | 1<<(unix.RTNLGRP_IPV6_IFADDR-1))
	if unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}) != nil {
		return
	}
	b := make([]byte, 16<<10)
	for {
		a.LookUp()
		if _, err := unix.Read(fd, b); err != nil && err != unix.ENOBUFS && err != unix.EINTR {
			return
		}
		time.Sleep(settle) // also for who makes the changes
	}
}

// settle is how long several changes of addresses count as one.
const settle = 50 * time.Millisecond
