// Command lodge-agent runs inside guests.
package main

import (
	"context"
	"os"

	"lodge/internal/agent"
)

func main() {
	os.Exit(agent.Main(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
