// Package session describes a program that runs inside a guest on somebody's
// behalf: what to run, and the handle on it. Engines make sessions, the server
// carries their streams; neither needs to know the other.
package session

import (
	"context"
	"os"
)

// Request is one program to run inside a guest.
type Request struct {
	Argv []string
	Env  []string // added to the guest's own
	Dir  string   // empty: the user's home
	User string   // name, uid, or either with ":group"; empty: root
	TTY  bool     // one terminal instead of three pipes
	Rows uint16
	Cols uint16
	// Stdin, Stdout and Stderr become the program's own descriptors when TTY
	// is false. The caller closes them after Exec returned.
	Stdin, Stdout, Stderr *os.File
}

// Session is one program that runs inside a guest.
type Session interface {
	// Terminal is the host's end of the program's terminal, or nil without
	// one. It is closed by Wait.
	Terminal() *os.File
	Resize(rows, cols uint16) error
	Signal(sig os.Signal) error
	// Wait returns the exit status, or 128 plus the signal that ended it. It
	// must be called once. Cancelling ctx kills the program.
	Wait(ctx context.Context) (int, error)
}
