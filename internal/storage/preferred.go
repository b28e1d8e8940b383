package storage

import (
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Btrfs is the file system type number statfs(2) gives for btrfs.
const Btrfs = 0x9123683e

// Host is what decides which driver the default pool gets.
type Host struct {
	OnBtrfs      bool   // the data directory itself lies on btrfs
	BtrfsMissing string // Info.Missing of the btrfs driver: empty where it works
}

// LookAt finds out whether dataDir, or the nearest parent of it that exists,
// lies on btrfs. btrfs is the Info of that driver.
func LookAt(dataDir string, btrfs Info) Host {
	h := Host{BtrfsMissing: btrfs.Missing}
	for d := filepath.Clean(dataDir); ; d = filepath.Dir(d) {
		var st unix.Statfs_t
		if err := unix.Statfs(d, &st); err == nil {
			h.OnBtrfs = st.Type == Btrfs
			return h
		}
		if d == filepath.Dir(d) {
			return h
		}
	}
}

// Preferred names the driver of the default pool and why: quotas that hold are
// worth a file system of our own, and on btrfs that costs nothing.
func Preferred(h Host) (driver, why string) {
	switch {
	case h.OnBtrfs: // nothing is formatted there, so no tool is needed
		return "btrfs", "the data directory is on btrfs"
	case h.BtrfsMissing == "":
		return "btrfs", "quotas are enforced; the pool is a file in the data directory"
	default:
		return "dir", "btrfs cannot be used: " + h.BtrfsMissing
	}
}

// SafeName reports whether s may be the name of a volume or pool on disk: 1 to
// 64 letters, digits, "-", "_" and ".", not starting with a "." or "-".
func SafeName(s string) bool {
	if len(s) == 0 || len(s) > 64 || s[0] == '.' || s[0] == '-' {
		return false
	}
	for _, c := range []byte(s) {
		ok := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.'
		if !ok {
			return false
		}
	}
	return true
}
