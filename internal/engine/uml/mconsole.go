package uml

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
)

// umid is what the kernel is to call itself; it is alone in its jail.
const umid = "m"

// Of the kernel's management console, arch/um/drivers/mconsole.h.
const (
	consoleMagic   = 0xcafebabe
	consoleVersion = 2
	consoleMost    = 512 // bytes of a request or a part of a reply
	consoleHead    = 12
	consoleParts   = "4096" // of an answer that may wait to be read
)

// replyMost bounds what a guest may answer: a list of tasks with their stacks.
const replyMost = 1 << 20

// patience is how long the kernel may take to answer. It does so in an
// interrupt, once the host lets it run.
const patience = 15 * time.Second

// manage sends a command to the kernel's management console and returns what it
// answers. The kernel may lie; it cannot make the host wait or read for ever.
func (m *Machine) manage(ctx context.Context, command string) (string, error) {
	if len(command) > consoleMost {
		return "", &errs.Error{Op: "uml.console", Kind: errs.Invalid, Msg: "the command is too long"}
	}
	type answer struct {
		text string
		err  error
	}
	done := make(chan answer, 1)
	go func() {
		// The kernel can only answer an address of its own network
		// namespace. The thread that goes there never comes back.
		runtime.LockOSThread()
		text, err := converse(m.held.Pidfd(), m.held.State().Pid, command)
		done <- answer{text, err}
	}()
	select {
	case a := <-done:
		if a.err != nil && m.held.State().Exit != nil {
			return a.text, notRunning(m.g)
		}
		return a.text, a.err
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

func converse(pidfd, pid int, command string) (string, error) {
	at, err := unix.Open("/proc/"+strconv.Itoa(pid)+"/root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(at)
	// Only now is it sure that the number was still the guest's.
	if err := unix.PidfdSendSignal(pidfd, 0, nil, 0); err != nil {
		return "", err
	}
	socket, err := unix.Openat2(at, "tmp/"+umid+"/mconsole", &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS})
	if err != nil {
		return "", &errs.Error{Op: "uml.console", Kind: errs.Busy, Msg: "the guest's kernel cannot be spoken to yet", Err: err}
	}
	defer unix.Close(socket)
	to := &unix.SockaddrUnix{Name: "/proc/thread-self/fd/" + strconv.Itoa(socket)}
	if err := unix.Setns(pidfd, unix.CLONE_NEWNET); err != nil {
		return "", err
	}
	// The parts of an answer that find no room are lost, and with the last of
	// them its end. How many there is room for is settled when a socket is
	// made, for each network namespace; short answers fit whatever it is.
	_ = os.WriteFile("/proc/sys/net/unix/max_dgram_qlen", []byte(consoleParts), 0)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	limit := unix.NsecToTimeval(patience.Nanoseconds())
	err = errors.Join(unix.Bind(fd, &unix.SockaddrUnix{}), // any name that is free
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit))
	if err != nil {
		return "", err
	}
	if err := unix.Sendto(fd, consoleRequest(command), 0, to); err != nil {
		return "", fmt.Errorf("the guest's kernel: %w", err)
	}
	return hear(func(b []byte) (int, error) {
		n, _, err := unix.Recvfrom(fd, b, 0)
		return n, err
	}, time.Now().Add(patience))
}

func consoleRequest(command string) []byte {
	b := make([]byte, consoleHead+consoleMost)
	binary.LittleEndian.PutUint32(b, consoleMagic)
	binary.LittleEndian.PutUint32(b[4:], consoleVersion)
	binary.LittleEndian.PutUint32(b[8:], uint32(len(command)))
	copy(b[consoleHead:], command)
	return b
}

// hear puts an answer together from its parts.
func hear(receive func(b []byte) (int, error), until time.Time) (string, error) {
	var text strings.Builder
	b := make([]byte, consoleHead+consoleMost)
	for {
		n, err := receive(b)
		if err != nil {
			return text.String(), &errs.Error{Op: "uml.console", Kind: errs.Busy, Msg: "the guest's kernel does not answer", Hint: "try again, or look at its console: lodge logs", Err: err}
		}
		part, failed, more, err := consolePart(b[:n])
		if err != nil {
			return text.String(), err
		}
		text.WriteString(part)
		switch {
		case failed:
			return text.String(), &errs.Error{Op: "uml.console", Kind: errs.Conflict, Msg: "the guest's kernel refused: " + strings.TrimSpace(text.String())}
		case !more:
			return text.String(), nil
		case text.Len() > replyMost || time.Now().After(until):
			return text.String(), &errs.Error{Op: "uml.console", Kind: errs.Internal, Msg: "the guest's kernel says too much"}
		}
	}
}

// consolePart reads a part of an answer.
func consolePart(b []byte) (text string, failed, more bool, err error) {
	if len(b) < consoleHead {
		return "", false, false, errors.New("the guest's kernel gave half an answer")
	}
	n := int(min(binary.LittleEndian.Uint32(b[8:]), uint32(len(b)-consoleHead)))
	return strings.TrimRight(string(b[consoleHead:consoleHead+n]), "\x00"), binary.LittleEndian.Uint32(b) != 0, binary.LittleEndian.Uint32(b[4:]) != 0, nil
}
