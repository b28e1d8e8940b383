package daemon

import (
	"path/filepath"

	"golang.org/x/sys/unix"

	"lodge/internal/storage"
)

// poolFacts is what decides which driver the default pool gets.
type poolFacts struct {
	onBtrfs      bool   // the data directory itself lies on btrfs
	btrfsMissing string // Info.Missing of the btrfs driver: empty where it works
}

// lookAt finds out whether dataDir, or the nearest parent of it that exists,
// lies on btrfs. btrfs is the Info of that driver.
func lookAt(dataDir string, btrfs storage.Info) poolFacts {
	h := poolFacts{btrfsMissing: btrfs.Missing}
	for d := filepath.Clean(dataDir); ; d = filepath.Dir(d) {
		var st unix.Statfs_t
		if err := unix.Statfs(d, &st); err == nil {
			h.onBtrfs = st.Type == unix.BTRFS_SUPER_MAGIC
			return h
		}
		if d == filepath.Dir(d) {
			return h
		}
	}
}

// preferred names the driver of the default pool and why: quotas that hold are
// worth a file system of our own, and on btrfs that costs nothing.
func preferred(h poolFacts) (driver, why string) {
	switch {
	case h.onBtrfs: // nothing is formatted there, so no tool is needed
		return "btrfs", "the data directory is on btrfs"
	case h.btrfsMissing == "":
		return "btrfs", "quotas are enforced; the pool is a file in the data directory"
	default:
		return "dir", "btrfs cannot be used: " + h.btrfsMissing
	}
}
