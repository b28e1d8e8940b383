// Package keepd is the keeper: the small program that parents all guests of a
// host and outlives the daemon. See package keeper for its contract.
package keepd

import (
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"lodge/internal/keeper"
)

// oomScore makes the kernel take the keeper last when memory runs out. What it
// starts gets plain 0.
const oomScore = -900

// Main runs the keeper until it is told to end, and returns its exit status.
func Main(args []string) int {
	flags := flag.NewFlagSet("lodge-keeper", flag.ContinueOnError)
	dir := flags.String("dir", "", "the keeper's own directory")
	resume := flags.Int("resume", -1, "descriptor that holds what a former version handed over")
	if flags.Parse(args) != nil || *dir == "" || flags.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "usage: lodge-keeper -dir DIRECTORY")
		return 2
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	// What was open in who started us, or was handed over, is not for guests.
	if err := unix.CloseRange(3, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		log.Error("keeper ends", "err", err)
		return 1
	}
	debug.SetGCPercent(50) // memory matters more here than speed
	// A handler, not SIG_IGN, which the guests would inherit.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP, syscall.SIGINT)
	k, err := setUp(*dir, *resume, log)
	if errors.Is(err, errOther) {
		return 0
	}
	if err == nil {
		err = k.serve()
	}
	if err != nil {
		log.Error("keeper ends", "err", err)
		return 1
	}
	return 0
}

// errOther says that another keeper has the directory.
var errOther = errors.New("another keeper runs")

// setUp makes a keeper that listens, anew or out of what a former version
// handed over.
func setUp(dir string, resume int, log *slog.Logger) (*daemon, error) {
	if err := unignore(); err != nil {
		return nil, err
	}
	spared := setOOM(oomScore)
	if spared != nil {
		log.Warn("keeper may be killed when memory runs out", "err", spared)
		_ = setOOM(0) // what we inherited is not for guests; a score may always be raised
	}
	k, err := begin(dir, resume, log)
	if err == nil {
		k.spared = spared == nil
	}
	return k, err
}

// begin makes the keeper that setUp returns.
func begin(dir string, resume int, log *slog.Logger) (*daemon, error) {
	if resume >= 0 {
		return takeOver(dir, resume, log)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "keeper.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			sayReady()
			return nil, errOther
		}
		return nil, err
	}
	path := filepath.Join(dir, keeper.Socket)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	unix.Umask(0o177) // until the socket is there: it is root's alone from the first moment
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	unix.Umask(0o022)
	if err != nil {
		return nil, err
	}
	k, err := newDaemon(dir, newInstance(), l, lock, log)
	if err != nil {
		return nil, err
	}
	if err := k.recall(); err != nil {
		return nil, err
	}
	sayReady()
	return k, nil
}

// sayReady tells who started us that there is a keeper. Started by hand, there
// is nobody to tell.
func sayReady() {
	ready := os.NewFile(3, "ready")
	_, _ = ready.WriteString(keeper.ReadyWord)
	_ = ready.Close()
}

func newInstance() string {
	var b [8]byte
	_, _ = unix.Getrandom(b[:], 0) // does not fail once the host is up
	return fmt.Sprintf("%x", b)
}

func setOOM(score int) error {
	return os.WriteFile("/proc/self/oom_score_adj", []byte(strconv.Itoa(score)), 0)
}
