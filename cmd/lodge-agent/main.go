// Command lodge-agent runs inside guests: as the first program of one with a
// kernel of its own, as the agent there, and in any guest to move files.
package main

import (
	"context"
	"os"

	"lodge/internal/agent"
	"lodge/internal/agent/inside"
)

func main() {
	switch {
	case os.Args[0] == inside.Name:
		inside.Main()
	case os.Getpid() == 1 && len(os.Args) > 0 && os.Args[0] == "/init":
		inside.Boot()
	}
	os.Exit(agent.Main(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
