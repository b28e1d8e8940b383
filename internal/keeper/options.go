package keeper

import (
	"context"
	"log/slog"
)

// Options say which keeper to talk to.
type Options struct {
	// Dir is the keeper's own directory: its socket, its lock, its log and
	// what it must remember. It is made when it is not there, and belongs on
	// a file system that a reboot empties. There is one keeper for each.
	Dir string
	// Binary is the lodge-keeper program that is started when none runs.
	Binary string
	Log    *slog.Logger
}

var _ Keepers = (*Client)(nil)

// Open connects to the keeper of o.Dir, starting one when none runs. It
// returns when everything that is kept is known.
func Open(ctx context.Context, o Options) (*Client, error) { return open(ctx, o) }
