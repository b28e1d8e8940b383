// Package sandbox runs a program in network, mount and process namespaces
// of its own, so that whatever the tests start - daemons, guests, bridges,
// mounts - cannot reach or disturb anything outside, and is gone when they end,
// however they end.
package sandbox

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const stage = "LODGE_SANDBOX_STAGE"

// Main is TestMain for packages whose tests need the sandbox. Without root it
// runs the tests as they are; those that need it must skip.
func Main(m *testing.M) { os.Exit(Run(m.Run)) }

// Run calls f inside the sandbox, by running this program anew with the same
// arguments, and returns what f returned. It comes before anything else in
// main. Without root it just calls f.
func Run(f func() int) int {
	switch {
	case os.Geteuid() != 0:
		return f()
	case os.Getenv(stage) == "":
		return enter()
	case os.Getenv(stage) == "init":
		return beInit()
	}
	return f()
}

// enter runs this binary as the first process of new namespaces.
func enter() int {
	socket, closeIt, err := offerProxy()
	if err != nil {
		return code(err)
	}
	defer closeIt()
	cmd := again("init")
	cmd.Env = append(cmd.Env, proxySocket+"="+socket)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID,
		Pdeathsig:  syscall.SIGKILL,
	}
	return code(cmd.Run())
}

// beInit makes the namespaces habitable, runs the tests, and meanwhile reaps
// what they orphan, as init must.
func beInit() int {
	if err := habitable(); err != nil {
		fmt.Fprintln(os.Stderr, "sandbox:", err)
		return 1
	}
	signal.Ignore(unix.SIGINT, unix.SIGTERM, unix.SIGQUIT) // the tests get them too and end by themselves
	cmd := again("tests")
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "sandbox:", err)
		return 1
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case err == unix.EINTR:
		case err != nil:
			fmt.Fprintln(os.Stderr, "sandbox: wait:", err)
			return 1
		case pid == cmd.Process.Pid && status.Exited():
			return status.ExitStatus()
		case pid == cmd.Process.Pid && status.Signaled():
			return 128 + int(status.Signal())
		}
	}
}

func habitable() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mounting /proc: %w", err)
	}
	return loopbackUp()
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
}

func again(as string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), stage+"="+as)
	return cmd
}

func code(err error) int {
	if err == nil {
		return 0
	}
	if e, ok := err.(*exec.ExitError); ok && e.ExitCode() >= 0 {
		return e.ExitCode()
	}
	fmt.Fprintln(os.Stderr, "sandbox:", err)
	return 1
}
