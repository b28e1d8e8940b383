// Package keeper is the contract between the daemon and the small program that
// parents all guests of a host, and the daemon's side of it.
//
// The keeper outlives the daemon. It knows nothing of specs, pools or models:
// it starts programs from plain data, holds their consoles and their exits, and
// answers a few verbs on a Unix socket. Its protocol may only grow.
package keeper

import (
	"context"
	"io"
	"syscall"
	"time"
)

// Program is what an engine wants kept: data, not behaviour, so that it can be
// compared with a golden file.
type Program struct {
	Argv []string `json:"argv"` // Argv[0] is a path of the host
	Env  []string `json:"env,omitempty"`
	Dir  string   `json:"dir,omitempty"`

	// Input is given to the program as a readable file on descriptor 3.
	Input []byte `json:"input,omitempty"`

	// Launcher says that Argv is not what is kept but what makes it: it makes
	// the kept process as its own sibling (CLONE_PARENT), writes the pid and
	// a newline, or "error " and a message, to descriptor 4, which is a
	// sequenced-packet socket, and exits. Before that it may send a packet
	// with the listener of the process' seccomp filter, as for Held.Watch.
	Launcher bool `json:"launcher,omitempty"`

	// Console gives the program a terminal of its own as descriptors 0, 1 and
	// 2, whose other end the keeper holds; else they are /dev/null.
	Console bool `json:"console,omitempty"`

	// Log is the file that the console's output is kept in, at most LogMax
	// bytes of it in Log and as much again in Log+".1".
	Log    string `json:"log,omitempty"`
	LogMax int64  `json:"log_max,omitempty"`

	// Quota, if set, is what statfs(2) shows of the program's root file
	// system, to those whose seccomp filter asks the keeper about it: see
	// Held.Watch.
	Quota *Quota `json:"quota,omitempty"`
}

// Quota is a share of a file system that the kernel counts but does not show.
// The files hold one decimal number of bytes each and are read anew for every
// answer.
type Quota struct {
	Used  []string `json:"used"`  // their sum is what is used
	Limit string   `json:"limit"` // 0 and the largest numbers mean that there is none
	// Owner is the user id that may look everywhere below the root.
	Owner uint32 `json:"owner"`
}

// Exit is how a program ended.
type Exit struct {
	Code    int            `json:"code"`              // exit status; meaningless when Signal is set
	Signal  syscall.Signal `json:"signal"`            // that ended it, or 0
	Unknown bool           `json:"unknown,omitempty"` // it ended while nobody who could know was its parent
	At      time.Time      `json:"at"`
}

// State is what the keeper knows of one program.
type State struct {
	Name    string    `json:"name"`
	Pid     int       `json:"pid"`
	Started time.Time `json:"started"`
	Exit    *Exit     `json:"exit,omitempty"` // nil while it runs
}

// Held is one kept program.
type Held interface {
	State() State // as of now, from memory
	Pidfd() int   // valid until the program was forgotten; for pidfd_send_signal, setns
	Wait(ctx context.Context) (Exit, error)
	Signal(ctx context.Context, sig syscall.Signal) error
	Console(ctx context.Context) (Console, error)
	// Watch gives the keeper the listener of a seccomp filter of processes
	// that see the program's root, which becomes the keeper's also when it
	// fails. It answers what they ask until they are all gone.
	Watch(ctx context.Context, listener int) error
}

// Console is one attachment to a program's terminal. Any number may be
// attached; all see all output from the moment they attach, all may type.
type Console interface {
	io.ReadWriteCloser
	Resize(rows, cols uint16) error
}

// Keepers is the daemon's handle on the keeper of its host. Its methods are
// safe for concurrent use. When the keeper was lost, the next call starts
// another, which adopts everything that still runs.
type Keepers interface {
	// Start runs p and keeps it under name, or fails with errs.Exists while
	// one of that name is known.
	Start(ctx context.Context, name string, p Program) (Held, error)
	// Find returns what is kept under name, or errs.NotFound. It is a look in
	// memory.
	Find(name string) (Held, error)
	// All returns what is kept, running or ended and not yet forgotten.
	All() []State
	// Forget drops what is known of a program that has ended.
	Forget(ctx context.Context, name string) error
	// Exits tells of every program that ends, from now on. The channel is
	// closed with ctx.
	Exits(ctx context.Context) <-chan State
	// Close lets go of the keeper; everything runs on.
	Close() error
}
