package images

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"lodge/internal/base/errs"
)

// Need says Unsupported, with the command that helps, if the host lacks one of
// the programs; packages maps each to the Debian package it is in.
func Need(packages map[string]string) error {
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
		Op: "image.build", Kind: errs.Unsupported,
		Msg:  "this host lacks what builds images: " + list,
		Hint: "apt-get install " + list,
	}
}

// lastLines is how much of what a tool said is kept for the error.
const lastLines = 15

// RunTool runs a program in a mount and process namespace of its own, so that
// whatever it mounts or starts ends with it, and with this process. line gets
// each line it prints; it may be nil. The error holds the last lines.
func RunTool(ctx context.Context, env []string, line func(string), name string, args ...string) error {
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
			Op: "image.build", Kind: errs.Unavailable, Msg: name + ": " + complaint(said, err),
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

// volume is the UUID of every image: with a random one, equal trees would not
// give equal files.
const volume = "6c6f6467-6500-4000-8000-000000000000"

// WriteEROFS packs the folder tree into the EROFS file out, compressed with
// lz4 (measured on Debian: 38 % smaller and faster to write and to read cold
// than plain; see the decisions). Times later than epoch become epoch, so that
// equal trees give equal files however long ago they were made.
func WriteEROFS(ctx context.Context, tree, out string, epoch time.Time, told Told) error {
	total := treeSize(tree)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(250 * time.Millisecond)
		defer tick.Stop()
		for {
			written := uint64(0)
			if fi, err := os.Stat(out); err == nil {
				written = uint64(fi.Size())
			}
			told("writing image", min(written, total), total, "bytes", "")
			select {
			case <-tick.C:
			case <-stop:
				return
			}
		}
	}()
	err := RunTool(ctx, []string{fmt.Sprintf("SOURCE_DATE_EPOCH=%d", max(0, epoch.Unix()))}, nil,
		"mkfs.erofs", "--quiet", "-zlz4", "-U", volume, out, tree)
	close(stop)
	<-stopped
	if err == nil {
		told("writing image", total, total, "bytes", "")
	}
	return err
}

// treeSize is the sum of the sizes of all files in a tree. What can't be read
// counts nothing: it is for progress only.
func treeSize(tree string) (total uint64) {
	_ = filepath.WalkDir(tree, func(_ string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if fi, err := d.Info(); err == nil {
				total += uint64(fi.Size())
			}
		}
		return nil
	})
	return total
}
