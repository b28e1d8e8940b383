package launch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Run runs a jail as a child of this process, with out as its standard output
// and error, until it ends or ctx does, which kills it. It is for what is over
// soon: guests are the keeper's.
func (j Jail) Run(ctx context.Context, out *os.File) error {
	p, err := j.Program()
	if err != nil {
		return err
	}
	fd, err := unix.MemfdCreate("plan", unix.MFD_CLOEXEC|unix.MFD_NOEXEC_SEAL)
	if err != nil {
		return err
	}
	input := os.NewFile(uintptr(fd), "plan")
	defer input.Close()
	if _, err := input.WriteAt(p.Input, 0); err != nil {
		return err
	}
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	defer read.Close()
	cmd := exec.Command(p.Argv[0])
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = []string{}, p.Dir, out, out
	cmd.ExtraFiles = []*os.File{input, write}
	err = cmd.Start()
	write.Close()
	if err != nil {
		return err
	}
	var answer [512]byte
	n, _ := read.Read(answer[:]) // it says something, or ends
	_ = cmd.Wait()               // how the helper ended adds nothing to what it said
	said := strings.TrimSpace(string(answer[:n]))
	pid, err := strconv.Atoi(said)
	if err != nil {
		return fmt.Errorf("the launch helper: %q", said)
	}
	return reap(ctx, pid)
}

// reap waits for a child that the helper made us.
func reap(ctx context.Context, pid int) error {
	pidfd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(pidfd), "jail")
	defer f.Close()
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	kill := func() { _ = raw.Control(func(fd uintptr) { _ = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0) }) }
	stop := context.AfterFunc(ctx, kill)
	defer stop()
	var status unix.WaitStatus
	var inner error
	err = raw.Read(func(uintptr) bool {
		var got int
		got, inner = unix.Wait4(pid, &status, unix.WNOHANG|unix.WALL, nil)
		return inner != nil && !errors.Is(inner, unix.EINTR) || got == pid
	})
	return errors.Join(err, inner, ctx.Err())
}
