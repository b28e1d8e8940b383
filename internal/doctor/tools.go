package doctor

import (
	"context"
	"os"
	"os/exec"
	"strings"
)

// tool is a program that Lodge runs.
type tool struct {
	name, pkg string
	cause     string // what does not work without it
	state     State  // how bad that is
	file      string // looked for in place of a program called name, if not empty
}

func tools() []tool {
	return []tool{
		{"nft", "nftables", "guests have no network", Fault, ""},
		{"mkfs.erofs", "erofs-utils", "images cannot be built or imported", Fault, ""},
		{"mmdebstrap", "mmdebstrap", "images cannot be built from Debian packages; importing works", Warning, ""},
		{"mkfs.btrfs", "btrfs-progs", "the default pool is a plain directory, so quotas are counted but not enforced", Warning, ""},
		{"mkfs.ext4", "e2fsprogs", "guests of model vm and paravirt cannot be made; those of model os are not concerned", Warning, ""},
		{"qemu-system-x86_64", "qemu-system-x86", "there are no virtual machines; guests of the other models are not concerned", Warning, ""},
		{"qemu-img", "qemu-utils", "disks cannot be imported, and virtual machines that boot their own disk cannot be made", Warning, ""},
		{"OVMF", "ovmf", "virtual machines cannot boot by UEFI; by BIOS they can", Warning, "/usr/share/OVMF/OVMF_CODE_4M.fd"},
		{"swtpm", "swtpm", "virtual machines cannot have a TPM", Warning, ""},
		{"depmod", "kmod", "kernels are made without the modules that guests may want later", Warning, ""},
	}
}

func toolChecks() []check {
	var out []check
	for _, t := range tools() {
		out = append(out, check{t.name, "tools", func(context.Context, Options) verdict {
			path, there := lookTool(t)
			return judgeTool(t, path, there)
		}})
	}
	return out
}

func lookTool(t tool) (path string, there bool) {
	if t.file != "" {
		_, err := os.Stat(t.file)
		return t.file, err == nil
	}
	path, err := exec.LookPath(t.name)
	return path, err == nil
}

func judgeTool(t tool, path string, there bool) verdict {
	if there {
		return good(strings.TrimSpace(path))
	}
	return verdict{state: t.state, found: "not installed", cause: t.cause, fix: "apt-get install " + t.pkg}
}
