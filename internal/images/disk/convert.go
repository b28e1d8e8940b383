package disk

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"lodge/internal/base/diskfile"
	"lodge/internal/base/errs"
	"lodge/internal/images"
)

// nobody owns the two files while qemu-img works on them, and runs it.
const nobody = 65534

// spare is what converting leaves free on the host's disk at least.
const spare = 256 << 20

// Where the confined program finds its files.
const (
	inFile  = "/proc/self/fd/3"
	outFile = "/proc/self/fd/4"
)

// source names the file to be read, in the format that it was found to be:
// qemu-img guesses nothing, and follows no name that is in it.
func source(f diskfile.Format) string {
	b, err := json.Marshal(map[string]any{"driver": f, "backing": nil, "file": map[string]any{"driver": "file", "filename": inFile, "locking": "off"}})
	if err != nil {
		panic(err) // only strings are put in
	}
	return "json:" + string(b)
}

// convert writes in as a qcow2 to out and returns the size that a guest sees.
func convert(ctx context.Context, in *os.File, h diskfile.Header, out string, told images.Told) (uint64, error) {
	o, err := os.OpenFile(out, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return 0, err
	}
	defer o.Close()
	for _, f := range []*os.File{in, o} {
		if err := f.Chown(nobody, nobody); err != nil {
			return 0, err
		}
	}
	room, err := free(filepath.Dir(out))
	if err != nil {
		return 0, err
	}
	c := confined{files: []*os.File{in, o}, largest: room}
	size, err := c.measure(ctx, h)
	if err != nil {
		return 0, err
	}
	percent := func(line string) {
		if p, ok := progress(line); ok {
			told("converting disk", uint64(p*float64(size)/100), size, "bytes", "")
		}
	}
	told("converting disk", 0, size, "bytes", "")
	if err := c.run(ctx, percent, "convert", "-p", "-O", "qcow2", "-o", "compat=1.1", source(h.Format), outFile); err != nil {
		return 0, err
	}
	st, err := o.Stat()
	if err != nil {
		return 0, err
	}
	made, err := diskfile.Look(o, st.Size())
	if err != nil || made.Format != diskfile.QCOW2 || made.Size != size {
		return 0, fmt.Errorf("converted disk is %+v instead of %d bytes: %w", made, size, err)
	}
	return size, o.Chown(os.Geteuid(), os.Getegid())
}

func free(dir string) (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	room := st.Bavail * uint64(st.Bsize)
	return room - min(room, spare), nil
}

// measure checks the file as qemu-img sees it and returns its size in a guest.
func (c confined) measure(ctx context.Context, h diskfile.Header) (uint64, error) {
	if h.Format == diskfile.QCOW2 || h.Format == diskfile.VDI {
		err := c.run(ctx, nil, "check", "-q", source(h.Format))
		if exit, ok := errors.AsType[*exec.ExitError](err); err != nil && !(ok && exit.ExitCode() == leaks) {
			return 0, err
		}
	}
	var text bytes.Buffer
	keep := limited{&text, mostInfo}
	err := c.run(ctx, func(l string) { _, _ = keep.Write([]byte(l + "\n")) }, "info", "--output=json", source(h.Format))
	if err != nil {
		return 0, err
	}
	var info struct {
		Size uint64 `json:"virtual-size"`
	}
	if err := json.Unmarshal(text.Bytes(), &info); err != nil {
		return 0, fmt.Errorf("qemu-img info: %w", err)
	}
	switch {
	// A VHD may be measured by cylinders, heads and sectors, which round.
	case h.Size != 0 && h.Size != info.Size && h.Format != diskfile.VHD:
		return 0, errs.Bad("file", fmt.Sprintf("its header says %d bytes, but it holds %d", h.Size, info.Size), "make the file anew")
	case info.Size == 0:
		return 0, errs.Bad("file", "it is a disk of no size", "import a disk with something on it")
	case info.Size > mostVirtual:
		return 0, tooLarge()
	}
	return info.Size, nil
}

// leaks is how `qemu-img check` ends for a file that merely wastes room.
const leaks = 3

// progress reads "(12.34/100%)".
func progress(line string) (percent float64, ok bool) {
	text, _, ok := strings.Cut(strings.TrimPrefix(line, "("), "/100%)")
	if !ok {
		return 0, false
	}
	p, err := strconv.ParseFloat(text, 64)
	return p, err == nil && p >= 0 && p <= 100
}

// confined runs qemu-img on files that may be hostile: as nobody, without a
// network and without a way to gain rights, within bounds of time and memory.
// The files are open already, as descriptors 3, 4...
type confined struct {
	files   []*os.File
	largest uint64 // bytes of a file that it writes
}

const (
	mostMemory = 4 << 30 // of addresses: each thread reserves some
	mostTime   = 3600    // seconds of a processor
)

func (c confined) run(ctx context.Context, line func(string), args ...string) error {
	// The kernel ends the program with the thread that started it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	id := strconv.Itoa(nobody)
	jail := []string{"--reuid", id, "--regid", id, "--clear-groups", "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all", "--pdeathsig", "KILL",
		"prlimit", fmt.Sprintf("--as=%d", mostMemory), fmt.Sprintf("--cpu=%d", mostTime), fmt.Sprintf("--fsize=%d", c.largest), "--core=0", "--nofile=64",
		"qemu-img"}
	cmd := exec.CommandContext(ctx, "setpriv", append(jail, args...)...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C.UTF-8"}
	cmd.Dir = "/"
	cmd.ExtraFiles = c.files
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS, Unshareflags: unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL,
	}
	cmd.WaitDelay = 5 * time.Second
	var complaint bytes.Buffer
	cmd.Stderr = &limited{&complaint, mostComplaint}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	lines := bufio.NewScanner(out)
	lines.Split(splitReturns)
	for lines.Scan() {
		if text := strings.TrimSpace(lines.Text()); text != "" && line != nil {
			line(text)
		}
	}
	_, _ = io.Copy(io.Discard, out) // it must not wait for us after a line that is too long
	err = cmd.Wait()
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return failure(args[0], complaint.String(), err)
	}
	return lines.Err()
}

// failure says what qemu-img could not do. That the host's disk is full is no
// fault of the file.
func failure(verb, said string, err error) error {
	if strings.Contains(said, "No space left") || strings.Contains(said, "File too large") {
		return &errs.Error{Op: "image.import", Kind: errs.NoSpace, Msg: "the disk of the data directory has no room for what is in the file",
			Hint: "free some space there, then import it again", Err: fmt.Errorf("%w: %s", err, said)}
	}
	first, _, _ := strings.Cut(strings.TrimSpace(said), "\n")
	for _, noise := range []string{"qemu-img: ", "Could not open 'json:"} {
		first = strings.TrimPrefix(first, noise)
	}
	if _, after, ok := strings.Cut(first, "}}': "); ok {
		first = after
	}
	if first == "" {
		first = err.Error()
	}
	return &errs.Error{Op: "image.import", Kind: errs.Invalid, Field: "file", Msg: fmt.Sprintf("the disk is damaged: qemu-img %s: %.200s", verb, first),
		Hint: "look at it with `qemu-img check`, make it anew and import it again", Err: fmt.Errorf("%w: %s", err, said)}
}

// Bounds of what is kept of qemu-img's words, in bytes. Its description of a disk
// lists snapshots, of which there may be many.
const (
	mostComplaint = 4 << 10
	mostInfo      = 1 << 20
)

// limited keeps the beginning of what is written.
type limited struct {
	b    *bytes.Buffer
	most int
}

func (l *limited) Write(p []byte) (int, error) {
	l.b.Write(p[:min(len(p), max(0, l.most-l.b.Len()))])
	return len(p), nil
}

// splitReturns is bufio.ScanLines for what also ends lines with a return.
func splitReturns(data []byte, atEOF bool) (advance int, token []byte, err error) {
	if i := bytes.IndexAny(data, "\r\n"); i >= 0 {
		return i + 1, data[:i], nil
	}
	if atEOF && len(data) > 0 {
		return len(data), data, nil
	}
	return 0, nil, nil
}
