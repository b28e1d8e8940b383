// Package blockdev finds the disk that a directory lies on.
package blockdev

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Of returns the "major:minor" of the whole disk below dir, as control groups
// name it, or "" when there is none (tmpfs, overlay, a network file system).
func Of(dir string) (string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	defer f.Close()
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return "", err
	}
	source := sourceOf(f, real)
	if !strings.HasPrefix(source, "/") {
		return "", nil
	}
	var st unix.Stat_t
	if err := unix.Stat(source, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return "", nil
	}
	return wholeDisk(uint64(st.Rdev)), nil
}

// wholeDisk returns the disk that holds partition dev, or dev itself.
func wholeDisk(dev uint64) string {
	name := fmt.Sprintf("%d:%d", unix.Major(dev), unix.Minor(dev))
	sys := "/sys/dev/block/" + name
	if _, err := os.Stat(sys + "/partition"); err != nil {
		return name
	}
	target, err := filepath.EvalSymlinks(sys)
	if err != nil {
		return name
	}
	parent, err := os.ReadFile(filepath.Join(filepath.Dir(target), "dev"))
	if err != nil {
		return name
	}
	return strings.TrimSpace(string(parent))
}

// sourceOf returns the source of the mount that path is on: the one with the
// longest mount point above it, and of several there the last, which hides the
// others. The format is proc_pid_mountinfo(5).
func sourceOf(mountinfo io.Reader, path string) string {
	best, source := "", ""
	lines := bufio.NewScanner(mountinfo)
	for lines.Scan() {
		left, right, ok := strings.Cut(lines.Text(), " - ")
		fields, tail := strings.Fields(left), strings.Fields(right)
		if !ok || len(fields) < 5 || len(tail) < 2 {
			continue
		}
		point := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(fields[4])
		above := point == "/" || path == point || strings.HasPrefix(path, point+"/")
		if above && len(point) >= len(best) {
			best, source = point, tail[1]
		}
	}
	return source
}
