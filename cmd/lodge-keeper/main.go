// Lodge-keeper is the parent of a host's guests. The daemon starts it; nobody
// else needs to.
package main

import (
	"os"

	"lodge/internal/keeper/keepd"
)

func main() { os.Exit(keepd.Main(os.Args[1:])) }
