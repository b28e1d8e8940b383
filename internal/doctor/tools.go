package doctor

import (
	"context"
	"os/exec"
	"strings"
)

// tool is a program that Lodge runs.
type tool struct {
	name, pkg string
	cause     string // what does not work without it
	state     State  // how bad that is
}

func tools() []tool {
	return []tool{
		{"nft", "nftables", "guests have no network", Fault},
		{"mkfs.erofs", "erofs-utils", "images cannot be built or imported", Fault},
		{"mmdebstrap", "mmdebstrap", "images cannot be built from Debian packages; importing works", Warning},
		{"mkfs.btrfs", "btrfs-progs", "the default pool is a plain directory, so quotas are counted but not enforced", Warning},
	}
}

func toolChecks() []check {
	var out []check
	for _, t := range tools() {
		out = append(out, check{t.name, "tools", func(context.Context, Options) verdict {
			path, err := exec.LookPath(t.name)
			return judgeTool(t, path, err == nil)
		}})
	}
	return out
}

func judgeTool(t tool, path string, there bool) verdict {
	if there {
		return good(strings.TrimSpace(path))
	}
	return verdict{state: t.state, found: "not installed", cause: t.cause, fix: "apt-get install " + t.pkg}
}
