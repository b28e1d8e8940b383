// Package tool runs the host's own programs that take long, and says in one
// line why one failed.
package tool

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"lodge/internal/base/errs"
)

// Need says Unsupported, with the command that helps, if the host lacks one of
// the programs that op needs; packages maps each to the Debian package it is in.
func Need(op string, packages map[string]string) error {
	var absent []string
	for program, pkg := range packages {
		if _, err := exec.LookPath(program); err != nil && !slices.Contains(absent, pkg) {
			absent = append(absent, pkg)
		}
	}
	if len(absent) == 0 {
		return nil
	}
	slices.Sort(absent)
	list := strings.Join(absent, " ")
	return &errs.Error{
		Op: op, Kind: errs.Unsupported,
		Msg:  "this host lacks what is needed for that: " + list,
		Hint: "apt-get install " + list,
	}
}

// lastLines is how much of what a tool said is kept for the error.
const lastLines = 15

// Run runs a program in a mount and process namespace of its own, so that
// whatever it mounts or starts ends with it, and with this process. line gets
// each line it prints; it may be nil. The error is of op and holds the last
// lines.
func Run(ctx context.Context, op string, env []string, line func(string), name string, args ...string) error {
	// The kernel ends the program with the thread that started it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID, Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL,
	}
	cmd.WaitDelay = 5 * time.Second
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	cmd.Stdout, cmd.Stderr = w, w
	last := make(chan []string)
	go func() { last <- listen(r, line) }()
	err = cmd.Run()
	w.Close()
	said := <-last
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return &errs.Error{
			Op: op, Kind: errs.Unavailable, Msg: name + ": " + complaint(said, err),
			Hint: "the log of lodged has all that it said", Err: fmt.Errorf("%w: %s", err, strings.Join(said, "; ")),
		}
	}
	return nil
}

// complaint finds the line that says what is wrong: the first that apt and
// mmdebstrap mark as an error, or else the last.
func complaint(said []string, err error) string {
	for _, line := range said {
		if text, ok := strings.CutPrefix(line, "E: "); ok {
			return text
		}
	}
	if len(said) == 0 {
		return err.Error()
	}
	return said[len(said)-1]
}

// listen passes lines on until r ends, closes it, and returns the last ones.
func listen(r io.ReadCloser, line func(string)) (last []string) {
	defer r.Close()
	in := bufio.NewReaderSize(r, 64<<10)
	for {
		b, _, err := in.ReadLine()
		if err != nil {
			return last
		}
		text := strings.TrimSpace(string(b))
		if text == "" {
			continue
		}
		if last = append(last, text); len(last) > lastLines {
			last = last[1:]
		}
		if line != nil {
			line(text)
		}
	}
}
