package doctor

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"lodge/internal/base/units"
)

func hostChecks() []check {
	return []check{
		{"disk space", "host", func(_ context.Context, o Options) verdict { return judgeDisk(lookDisk(o.DataDir)) }},
		{"memory", "host", func(context.Context, Options) verdict {
			text, _ := os.ReadFile("/proc/meminfo")
			return judgeMemory(parseMeminfo(string(text)))
		}},
		{"clock", "host", func(context.Context, Options) verdict {
			var t unix.Timex
			state, err := unix.Adjtimex(&t)
			return judgeClock(time.Now(), state, t.Status, err)
		}},
		{"open files", "host", func(context.Context, Options) verdict {
			var r unix.Rlimit
			err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r)
			return judgeOpenFiles(r.Max, err)
		}},
	}
}

// disk is the file system under a directory.
type disk struct {
	path                    string
	total, free             uint64
	inodes, inodesFree      uint64
	readOnly, inMemory, bad bool
}

// lookDisk measures the file system under dir, or under its nearest parent
// that exists.
func lookDisk(dir string) disk {
	path := nearest(dir)
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return disk{path: path, bad: true}
	}
	unit := uint64(st.Bsize)
	return disk{path: path, total: st.Blocks * unit, free: st.Bavail * unit, inodes: st.Files, inodesFree: st.Ffree,
		readOnly: st.Flags&unix.ST_RDONLY != 0, inMemory: st.Type == unix.TMPFS_MAGIC}
}

// nearest returns dir, or the closest folder above it that exists.
func nearest(dir string) string {
	for d := filepath.Clean(dir); ; d = filepath.Dir(d) {
		if _, err := os.Stat(d); err == nil || d == filepath.Dir(d) {
			return d
		}
	}
}

func judgeDisk(d disk) verdict {
	const more = "lodge image ls; lodge ls   (and remove what is not needed), or make the disk larger"
	found := fmt.Sprintf("%s of %s free at %s", units.Bytes(d.free), units.Bytes(d.total), d.path)
	switch {
	case d.bad:
		return verdict{state: Fault, found: d.path + " cannot be measured", cause: "nothing can be stored", fix: "df " + d.path}
	case d.readOnly:
		return verdict{state: Fault, found: d.path + " is read-only", cause: "nothing can be stored", fix: "mount -o remount,rw " + d.path}
	case d.free < 1<<30:
		return verdict{state: Fault, found: found, cause: "images cannot be built, and guests' writes fail soon", fix: more}
	case d.inodes > 0 && d.inodesFree < d.inodes/50:
		return verdict{state: Warning, found: fmt.Sprintf("%d of %d inodes free at %s", d.inodesFree, d.inodes, d.path), cause: "no files can be made soon, though there is space", fix: "df -i " + d.path}
	case d.free < 5<<30 || d.free < d.total/20:
		return verdict{state: Warning, found: found, cause: "a few guests fill it", fix: more}
	case d.inMemory:
		return verdict{state: Warning, found: d.path + " is in memory (tmpfs)", cause: "everything is lost with the next boot", fix: "start the daemon with a data directory on a disk"}
	default:
		return good(found)
	}
}

// memory is in bytes.
type memory struct{ total, available, swap uint64 }

// parseMeminfo reads /proc/meminfo, whose unit is the KiB.
func parseMeminfo(text string) memory {
	var m memory
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		n, _ := strconv.ParseUint(f[1], 10, 54)
		switch f[0] {
		case "MemTotal:":
			m.total = n << 10
		case "MemAvailable:":
			m.available = n << 10
		case "SwapTotal:":
			m.swap = n << 10
		}
	}
	return m
}

func judgeMemory(m memory) verdict {
	found := fmt.Sprintf("%s of %s available, %s swap", units.Bytes(m.available), units.Bytes(m.total), units.Bytes(m.swap))
	switch {
	case m.total == 0:
		return verdict{state: Warning, found: "/proc/meminfo says nothing", cause: "nobody can say how many guests fit", fix: "free -m"}
	case m.available < 256<<20:
		return verdict{state: Fault, found: found, cause: "the next guest, or the daemon itself, may be killed for want of memory", fix: "lodge top   (and stop what takes most)"}
	case m.total < 1<<30 && m.swap == 0:
		return verdict{state: Warning, found: found, cause: "there is little memory and no swap: a burst kills instead of slowing down",
			fix: "fallocate -l 1G /swapfile && chmod 600 /swapfile && mkswap /swapfile && swapon /swapfile"}
	default:
		return good(found)
	}
}

// judgeClock takes what adjtimex(2) answered.
func judgeClock(now time.Time, state int, status int32, err error) verdict {
	found := now.UTC().Format("2006-01-02 15:04 UTC")
	const sync = "apt-get install systemd-timesyncd && timedatectl set-ntp true"
	switch {
	case now.Year() < 2025: // before this was written: the clock was never set
		return verdict{state: Fault, found: found, cause: "the clock was never set: certificates are not valid yet, and what happened when is lost", fix: sync}
	case err != nil:
		return verdict{state: Warning, found: found + ", " + err.Error(), cause: "nobody can say whether the clock is right", fix: sync}
	case state == unix.TIME_ERROR || status&unix.STA_UNSYNC != 0:
		return verdict{state: Warning, found: found + ", not synchronised", cause: "logs and certificates drift away from the world's time", fix: sync}
	default:
		return good(found + ", synchronised")
	}
}

// leastFiles is some 20 descriptors for each of a thousand guests, three times.
const leastFiles = 65536

func judgeOpenFiles(hard uint64, err error) verdict {
	switch {
	case err != nil:
		return verdict{state: Warning, found: err.Error(), cause: "the limit of open files is unknown", fix: "ulimit -Hn"}
	case hard < leastFiles:
		return verdict{state: Warning, found: fmt.Sprintf("%d for the daemon, should be %d or more", hard, leastFiles),
			cause: "with some hundred guests the daemon can open no more files", fix: "ulimit -Hn 1048576 before starting lodged, or LimitNOFILE=1048576 in its unit"}
	default:
		return good(strconv.FormatUint(hard, 10))
	}
}
