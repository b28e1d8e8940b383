// Package engine is the contract of a guest model: one folder below this one
// for each, one line in daemon/drivers.go.
package engine

import (
	"context"
	"io"
	"net/netip"
	"time"

	"lodge/internal/agent"
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
	// here at all, why. Its name and model are there even with an error. It is
	// asked with every look at a guest: what takes longer than a few
	// microseconds to find out is found out once.
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
	CPUSet []int  // processors of the host that the guest is to run on; nil: all

	Kernel Kernel // for engines whose guests have a kernel of their own
	Disks  []Disk // further disks and optical discs, in the order that the guest sees them
	// HostKeys are for the server of the secure shell in a new guest with a kernel
	// of its own: see ForBoot.
	HostKeys []agent.HostKey
	Memory   string // folder with a saved memory image that the guest goes on from, or ""

	// Arriving says that the guest runs elsewhere and comes by Mover.Receive;
	// nil: it boots, or goes on from Memory.
	Arriving *Arriving
}

// Kernel is what a guest with a kernel of its own boots.
type Kernel struct {
	Name    string   // as kernels are listed: "linux/debian-12"
	Version string   // of the kernel: "6.1.0-44-cloud-amd64"
	Path    string   // file of the host
	Initrd  string   // file of the host: the agent as /init, and the modules it loads
	Support []string // files of the host that the kernel needs to run as a program: its loader first, then libraries
	Modules string   // EROFS file of the host with all its modules, to be the lowest layer of the guest's root, or ""
}

// Disk is a further disk of a guest.
type Disk struct {
	Name     string // unique in the guest; its serial number there: "data"
	Path     string // file of the host
	Format   string // "raw", "qcow2"
	ReadOnly bool
	Optical  bool
	Boot     int // order in which firmware tries it, from 1; 0: not at all
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

	// For engines that take disks instead of trees (guest.Volume):
	Base   string // the image's file, read-only: an EROFS, or the disk under Own; may be "" with Own
	Volume string // the ext4 file with the guest's "upper" and "work"

	// For guests that boot a disk of their own (guest.Disk): a qcow2 that is
	// written to. What was never written is that of Base, which is a qcow2
	// too; the engine says so when it opens them, whatever Own's header names.
	// nil for guests of root-tree images.
	Own *Disk
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
	Paused  bool
	Ready   bool   // the guest's own init says it is up; engines that cannot know say true
	Trouble string // what the guest suffers from though it runs ("kernel panic: ..."), in words for a person

	// NoBoot is why a guest that boots by itself got nowhere; nil of all others.
	NoBoot *guest.NoBoot

	// Of guests that are not the engine's to furnish: the agent that they brought
	// along, and the addresses that it says they have on Lodge's cards.
	Agent     string
	Addresses []string
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
	// Plugger changes the devices of a running guest. What is there already is
	// Exists, what is not there NotFound; what this guest cannot get or lose before
	// its next start, be it only that its machine is full, is Unsupported.
	Plugger interface {
		PlugDisk(ctx context.Context, d Disk) error
		UnplugDisk(ctx context.Context, name string) error
		PlugNIC(ctx context.Context, n NIC) error
		UnplugNIC(ctx context.Context, name string) error
	}
	// Saver writes a guest's memory and devices to an existing folder, from
	// which Parts.Memory continues it. The guest must be paused, and stays so.
	Saver interface {
		Save(ctx context.Context, dir string) error
	}
	// Screener is a guest with a screen and a keyboard.
	Screener interface {
		// Screenshot writes the screen as a PNG file.
		Screenshot(ctx context.Context, w io.Writer) error
		// SendKeys presses keys together, by QEMU's names: "ctrl", "alt", "delete".
		SendKeys(ctx context.Context, keys []string) error
		// Display connects to the screen by the RFB protocol (RFC 6143).
		Display(ctx context.Context) (io.ReadWriteCloser, error)
	}
	// Debugger does what a person wants of a guest that hangs: one of
	// Info.Debugs. What it finds goes to w.
	Debugger interface {
		Debug(ctx context.Context, what string, w io.Writer) error
	}
	// Quiescer brings a guest's file systems to rest for a snapshot, for at
	// most a few seconds, until release is called.
	Quiescer interface {
		Quiesce(ctx context.Context) (release func() error, err error)
	}
	// Admitter lets in the owner of a guest who has no other way left.
	Admitter interface {
		// SetPassword gives a user of the guest a new password.
		SetPassword(ctx context.Context, user, password string) error
		// Authorize adds to the keys that user may log in with by SSH.
		Authorize(ctx context.Context, user string, keys []string) error
	}
	// Trimmer gives back to the pool what a guest's volume holds and the guest
	// does not use, and tells how many bytes its file system offered.
	Trimmer interface {
		Trim(ctx context.Context) (uint64, error)
	}
	// Timekeeper sets the clock of a guest that has one of its own.
	Timekeeper interface {
		SetClock(ctx context.Context, now time.Time) error
	}
	// Renewer gives a guest that was copied from another while it ran an
	// identity of its own: that of the record it was connected with.
	Renewer interface {
		Renew(ctx context.Context) error
	}
)

// Ender is what an engine also is whose programs do not end as their guests do.
type Ender interface {
	// Ended tells how the guest ended, from how its program did and from what
	// it left behind: an exit by SIGHUP is a reboot that the guest wanted, one
	// by SIGINT a power-off (as reboot(2) says it). last is what a person is
	// to be shown of it, such as the last lines of the console; may be "".
	Ended(g guest.Guest, parts Parts, e keeper.Exit) (is keeper.Exit, last string)
}

// Prober is what an engine also is that keeps what it found out of its host.
type Prober interface {
	// Forget makes the next Info find it out anew.
	Forget()
}

// Info is what an engine can do on this host.
type Info struct {
	Name    string
	Model   guest.Model
	Version string
	Missing string     // why it cannot run here, or empty
	Hint    string     // what would cure that
	Form    guest.Form // of the writable layer that its guests run on
	Kernel  string     // kind of kernel that its guests boot: "linux", "um"; "" for the host's own

	// Overhead is what the monitor of one guest needs beside what the guest
	// was given.
	Overhead Overhead
	// Pin says that a guest with one processor is to run on one of the host's.
	Pin bool
	// Single says that guests have one processor, however many they are given.
	Single bool

	Machines  []MachineKind // that a person may choose; the first is the engine's own choice
	CPUModels []string      // that a person may choose, the engine's own choice first
	// CPUFeatures can be added to a model and taken away from it: "qemu64,+svm,-avx".
	CPUFeatures []string
	Facts       []Fact   // what a person may want to know of it
	Debugs      []string // what Debugger takes
	Can         Can
}

// MachineKind is a kind of machine that guests may have.
type MachineKind struct {
	Name     string   // "q35"
	Firmware []string // that it boots disks with: "bios", "uefi", "uefi-secure"; none: it boots kernels only
	TPM      bool     // it may have one here
}

// Fact is one thing worth knowing of an engine: "acceleration", "tcg: ...".
type Fact struct{ Name, Value string }

// Can is what the API, the CLI and the web page are shown.
type Can struct {
	Pause   bool `json:"pause"`
	Resize  bool `json:"resize"`
	Exec    bool `json:"exec"`
	Files   bool `json:"files"`
	Usage   bool `json:"usage"`
	Plug    bool `json:"plug"`   // disks and network cards while it runs
	Save    bool `json:"save"`   // memory to disk and back; snapshots with memory, running clones
	Screen  bool `json:"screen"` // screenshot, keys, VNC
	Debug   bool `json:"debug"`
	Quiesce bool `json:"quiesce"`
	Renew   bool `json:"renew"`
	Admit   bool `json:"admit"` // passwords and keys of its users
	Trim    bool `json:"trim"`
	Clock   bool `json:"clock"`
	Move    bool `json:"move"` // to another program or host while it runs; see Mover
	Disk    bool `json:"disk"` // boots guests from disks of their own
}
