package zram

import (
	"os"
	"path"
	"strconv"
	"strings"
)

// area is one of the host's swap spaces.
type area struct {
	device     string
	size, used uint64 // KiB
	priority   int
}

func areas() ([]area, error) {
	text, err := os.ReadFile(swaps)
	return parse(string(text)), err
}

// parse reads /proc/swaps, whose first line is a heading.
func parse(text string) (all []area) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) != 5 {
			continue
		}
		size, err := strconv.ParseUint(f[2], 10, 64)
		if err != nil {
			continue
		}
		used, _ := strconv.ParseUint(f[3], 10, 64)
		priority, _ := strconv.Atoi(f[4])
		all = append(all, area{f[0], size, used, priority})
	}
	return all
}

// foremost is the one that the kernel fills first.
func foremost(all []area) (first area, ok bool) {
	for _, a := range all {
		if !ok || a.priority > first.priority {
			first, ok = a, true
		}
	}
	return first, ok
}

func (a area) compressed() bool {
	ok, err := path.Match("/dev/zram*", a.device)
	return ok && err == nil
}

// labelled reports whether the space carries a label.
func (a area) labelled(label string) bool {
	f, err := os.Open(a.device)
	if err != nil {
		return false
	}
	defer f.Close()
	var name [labelSize]byte
	_, err = f.ReadAt(name[:], labelAt)
	return err == nil && strings.TrimRight(string(name[:]), "\x00") == label
}
