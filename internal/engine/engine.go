// Package engine is the contract of a guest model: one folder below this one
// for each, one line in daemon/drivers.go.
package engine

import (
	"context"
	"io"
	"net/netip"

	"lodge/internal/base/session"
	"lodge/internal/keeper"
	"lodge/internal/model/guest"
	"lodge/internal/model/image"
)

// Engine turns guests of one model into programs, and kept programs into
// machines. It stores nothing and knows no other guest.
//
// There is no way to "recover" a guest: a daemon that just started and one
// that just launched both call Connect.
type Engine interface {
	// Info says what the engine can do on this host, and if it cannot run
	// here at all, why.
	Info(ctx context.Context) (Info, error)

	// Program says what to run for g. It has no side effects.
	Program(g guest.Guest, parts Parts) (keeper.Program, error)

	// Connect returns the controls of a running guest.
	Connect(ctx context.Context, g guest.Guest, parts Parts, h keeper.Held) (Machine, error)
}

// Parts is what the other subsystems made ready for one boot.
type Parts struct {
	Dir    string // of the host, private to the guest's runs: logs, sockets, seeds; exists
	Root   Root
	NICs   []NIC
	DNS    []netip.Addr
	Domain string // that names are looked up in: "lodge.internal"
	Cgroup string // the guest's group, as base/cgroup names it; exists, with its limits set
	Image  image.Info
	IDBase uint32 // first of the 65,536 user and group ids that are the guest's own
}

// Root is what the guest's root tree is made of.
type Root struct {
	Lower    string // where the image's tree is mounted on the host, read-only
	Writable string // the volume's directory; its "upper" and "work" are the guest's layer
	Quota    uint64 // bytes, or 0
	Disk     string // "major:minor" of the disk that Writable lies on, or ""

	// Used and Limit are files of the host that each hold a number of bytes:
	// the sum of those of Used counts against the quota in Limit. Limit is ""
	// where the storage has none.
	Used  []string
	Limit string
}

// NIC is one network card as the network's driver made it ready.
type NIC struct {
	Name     string // as the guest sees it: "eth0"
	MAC      string
	Device   string // the host's end
	Master   string // the bridge that the host's end belongs to
	MTU      int
	IPv4     netip.Prefix
	IPv6     netip.Prefix
	Gateway4 netip.Addr
	Gateway6 netip.Addr
}

// Machine is one running guest.
type Machine interface {
	Probe(ctx context.Context) (Probe, error)
	// Shutdown asks the guest's own init to stop, in whatever way it
	// understands, and returns at once. It is an error of kind Busy if the
	// guest boots and may not have heard it: it should be asked again.
	Shutdown(ctx context.Context) error
	// Kill ends every process of the guest and returns at once; the keeper
	// reports the end.
	Kill(ctx context.Context) error
	Close() error // let go; it runs on
}

// Probe is what a look at a running guest shows.
type Probe struct {
	Paused bool
}

// What a machine may also be. Info.Can must agree with these; enginetest
// checks that it does.
type (
	// Pauser stops and continues all of a guest's processors.
	Pauser interface {
		Pause(ctx context.Context) error
		Resume(ctx context.Context) error
	}
	// Resizer changes the limits of a running guest to those of spec.
	Resizer interface {
		Resize(ctx context.Context, spec guest.Spec) error
	}
	// Execer runs programs inside a guest.
	Execer interface {
		Exec(ctx context.Context, r session.Request) (session.Session, error)
	}
	// Filer carries files in and out of a guest as tar streams. Paths are
	// the guest's; no link in the guest leads out of it.
	Filer interface {
		// Pack writes path (a file or a tree) as a tar stream whose first
		// entry is path's base name.
		Pack(ctx context.Context, path string, w io.Writer) error
		// Unpack makes what r holds below dir, keeping owners, modes,
		// times and extended attributes.
		Unpack(ctx context.Context, dir string, r io.Reader) error
	}
	// Meter tells what a guest uses.
	Meter interface {
		Usage(ctx context.Context) (guest.Usage, error)
	}
)

// Info is what an engine can do on this host.
type Info struct {
	Name    string
	Model   guest.Model
	Version string
	Missing string // why it cannot run here, or empty
	Hint    string // what would cure that
	Can     Can
}

// Can is what the API, the CLI and the web page are shown.
type Can struct {
	Pause  bool `json:"pause"`
	Resize bool `json:"resize"`
	Exec   bool `json:"exec"`
	Files  bool `json:"files"`
	Usage  bool `json:"usage"`
}
