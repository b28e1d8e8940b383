// Lodge-keeper is the parent of a host's guests. The daemon starts it; nobody
// else needs to. It also tries the host's KVM, since it starts fast.
package main

import (
	"os"

	"lodge/internal/base/kvmprobe"
	"lodge/internal/keeper/keepd"
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == kvmprobe.Argument {
		kvmprobe.Run(os.Stdout)
		return
	}
	os.Exit(keepd.Main(os.Args[1:]))
}
