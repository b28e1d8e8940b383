// Package guest says what a guest is and what should happen to it next.
//
// A guest rests in one of six phases. A phase is a fact; getting from one to
// another is work, and work is a Step. The words a person sees while work is
// under way ("starting", "stopping") are derived from both.
//
//	         place        prepare       start
//	Unplaced ----> Placed ------> Ready -----> Running <---> Paused
//	    ^            |              ^            |             |
//	    |            |              +--- stop ---+---- stop ---+
//	    +- forget ---+<-- release --+
package guest

import (
	"cmp"
	"time"

	"lodge/internal/model"
)

// Kind is the noun's name in keys and events.
const Kind model.Kind = "guest"

// Model is how a guest shares the machine with its host.
type Model string

// The three ways to cut a machine.
const (
	VM       Model = "vm"       // full machine: firmware, emulated devices
	Paravirt Model = "paravirt" // the guest's kernel is ported to the monitor
	OS       Model = "os"       // operating-system level: the host's kernel
)

// Form is what a guest's writable layer lies on the pool as.
type Form string

// The forms. The first two hold the same: what the guest changed of its
// image's tree, as an overlay's "upper" and "work"; a guest changes model by
// copying one into the other.
const (
	Tree   Form = "tree"   // folders of the host
	Volume Form = "volume" // an ext4 file system in one file
	Disk   Form = "disk"   // a disk with partitions and a boot loader of its own
)

// Power is what the owner wants of a guest.
type Power string

// What can be wanted.
const (
	Off   Power = "off"
	On    Power = "on"
	Held  Power = "paused"
	Saved Power = "saved" // off, with its memory kept, from which the next start goes on
)

// Restart says what to do when a guest ends by itself.
type Restart string

// The restart policies.
const (
	Never     Restart = "never"
	OnFailure Restart = "on-failure"
	Always    Restart = "always"
)

// Spec is what was asked for. It is written through one door only: by people,
// and by the autonomic controller under a policy that people wrote. No
// reconciler writes it.
type Spec struct {
	Model  Model  `json:"model"`
	Models int64  `json:"models,omitempty"` // raised by each wish for a change of model
	Engine string `json:"engine,omitempty"` // empty: the first that runs Model here
	Image  string `json:"image"`            // as it was asked for: "debian/12"
	Digest string `json:"digest"`           // of the image's content when the guest was made
	Power  Power  `json:"power"`
	Boots  int64  `json:"boots"`            // raised by each wish for a (re)boot
	Force  bool   `json:"force,omitempty"`  // the wish to stop does not wait for the guest's consent
	Within int    `json:"within,omitempty"` // seconds that this one wish to stop leaves the guest; 0 is StopTimeout

	CPUs      float64 `json:"cpus"`                 // processors' worth of time; 0 is the host's all
	CPUWeight int     `json:"cpu_weight,omitempty"` // share under contention, 1 to 10,000; 0 is 100
	Memory    uint64  `json:"memory"`               // bytes; 0 is the host's all
	Swap      uint64  `json:"swap,omitempty"`       // bytes beyond Memory
	Processes int64   `json:"processes,omitempty"`  // 0 is DefaultProcesses
	IO        IO      `json:"io,omitzero"`

	Pool string `json:"pool"`
	Disk uint64 `json:"disk"` // quota of the writable layer in bytes; 0 is none
	NICs []NIC  `json:"nics,omitempty"`

	Clone   *CloneOf   `json:"clone,omitempty"`   // what its writable layer was made of, if not of nothing
	Restore *RestoreOf `json:"restore,omitempty"` // the last wish to go back to a snapshot

	Hardware Hardware      `json:"hardware,omitzero"`
	Disks    []FurtherDisk `json:"disks,omitempty"`

	Command     []string          `json:"command,omitempty"` // runs as the guest's first process; empty is the image's init
	Env         map[string]string `json:"env,omitempty"`
	UserData    string            `json:"user_data,omitempty"` // cloud-init, NoCloud
	Restart     Restart           `json:"restart,omitempty"`
	Autostart   Autostart         `json:"autostart,omitzero"`
	Ephemeral   bool              `json:"ephemeral,omitempty"`    // removed once it has stopped
	StopTimeout int               `json:"stop_timeout,omitempty"` // seconds before a clean stop becomes a kill; 0 is DefaultStopTimeout
}

// Hardware is what a guest with a machine of its own is made of; empty fields
// are the engine's choice.
type Hardware struct {
	Machine  string `json:"machine,omitempty"`  // "q35", "microvm"
	Firmware string `json:"firmware,omitempty"` // "bios", "uefi", "uefi-secure"; of guests that boot a disk
	TPM      bool   `json:"tpm,omitempty"`
	Kernel   string `json:"kernel,omitempty"` // as `lodge kernel ls` names it
	CPUModel string `json:"cpu_model,omitempty"`
}

// FurtherDisk is a disk beside the guest's own. A disc is a file of the host
// that the guest may read; any other lies on the guest's pool and goes with it.
type FurtherDisk struct {
	Name string `json:"name"`           // unique in the guest
	Size uint64 `json:"size,omitempty"` // bytes
	Disc string `json:"disc,omitempty"` // path of an ISO file on the host
	Boot int    `json:"boot,omitempty"` // order in which firmware tries it, from 1; 0: not at all
}

// IO is the limits of a guest's disk traffic; 0 is none.
type IO struct {
	ReadBPS   uint64 `json:"read_bps,omitempty"`   // bytes a second
	WriteBPS  uint64 `json:"write_bps,omitempty"`  // bytes a second
	ReadIOPS  uint64 `json:"read_iops,omitempty"`  // operations a second
	WriteIOPS uint64 `json:"write_iops,omitempty"` // operations a second
}

// NIC is one network card of a guest. Its addresses are allocated when the
// guest is made and stay its own until it is removed.
type NIC struct {
	Name    string `json:"name"` // as the guest sees it: "eth0"
	Network string `json:"network"`
	MAC     string `json:"mac"`
	IPv4    string `json:"ipv4,omitempty"` // with prefix length: "10.67.0.5/16"
	IPv6    string `json:"ipv6,omitempty"` // with prefix length
}

// Autostart says whether and when a guest comes back after the host was
// restarted. A guest without it stays as it was found: down.
type Autostart struct {
	Enabled bool `json:"enabled,omitempty"`
	Order   int  `json:"order,omitempty"` // lower first
	Delay   int  `json:"delay,omitempty"` // seconds to wait after this one before the next
}

// Phase is where a guest rests.
type Phase string

// The phases, from nowhere to everywhere.
const (
	Unplaced Phase = "unplaced" // no host holds it
	Placed   Phase = "stopped"  // a host holds it; it is off
	Ready    Phase = "ready"    // disks and NICs are attached; it could boot
	Running  Phase = "running"
	Paused   Phase = "paused"
	Gone     Phase = "gone" // deleted; the record may be forgotten
)

// Holder is the host that holds the guest and what that host lends it. Only
// the placements reconciler writes it.
type Holder struct {
	Host  string `json:"host,omitempty"`
	Epoch int64  `json:"epoch"` // rises with every change; a host with an older one must let go
	Slot  int    `json:"slot"`  // unique on the host while it is held: names its id range and devices
}

// HolderKind is the key's kind of the record's third part.
const HolderKind model.Kind = "holder"

// Exit is how the last run of a guest ended.
type Exit struct {
	Code   int       `json:"code"`             // exit status, or 128 + signal
	Signal string    `json:"signal,omitempty"` // "killed", when a signal ended it
	OOM    bool      `json:"oom,omitempty"`    // the memory limit ended it
	At     time.Time `json:"at"`
}

// Status is what the holding host found out. Only that host writes it.
type Status struct {
	Phase      Phase          `json:"phase"`
	Doing      Step           `json:"doing,omitempty"`
	Boots      int64          `json:"boots"`      // the wish that the last boot answered
	Generation int64          `json:"generation"` // of the spec this status answers
	Problem    *model.Problem `json:"problem,omitempty"`
	Engine     string         `json:"engine,omitempty"`
	Model      Model          `json:"model,omitempty"`     // that its writable layer was last made fit for
	Refused    int64          `json:"refused,omitempty"`   // the last wish for a change of model that could not be carried out
	Refusal    *model.Problem `json:"refusal,omitempty"`   // why
	Cloned     bool           `json:"cloned,omitempty"`    // Spec.Clone has been carried out
	Restored   int64          `json:"restored,omitempty"`  // the last wish to go back to a snapshot that was answered
	Saved      bool           `json:"saved,omitempty"`     // the next start goes on from a memory image
	Ready      bool           `json:"ready,omitempty"`     // the guest's init says it is up
	Last       string         `json:"last,omitempty"`      // what a guest that ended badly, or is not well, said last
	Agent      string         `json:"agent,omitempty"`     // that an unmodified guest has and that answers
	Addresses  []string       `json:"addresses,omitempty"` // that it says it has
	Kernel     string         `json:"kernel,omitempty"`    // that the present or last run booted, if it was not the host's
	CPU        *int           `json:"cpu,omitempty"`       // processor of the host that the present or last run was pinned to
	Devices    *Devices       `json:"devices,omitempty"`   // that the present or last run has; nil: an older lodged started it
	Pid        int            `json:"pid,omitempty"`       // of the guest's first process, as the host sees it
	Started    *time.Time     `json:"started,omitempty"`   // of the present or last run
	Exit       *Exit          `json:"exit,omitempty"`      // of the last run, once it ended by itself
	Restarts   int            `json:"restarts,omitempty"`
	NotBefore  *time.Time     `json:"not_before,omitempty"` // the restart policy waits until then
	Lost       bool           `json:"lost,omitempty"`       // the last run ended with the host that ran it
	HostBoot   string         `json:"host_boot,omitempty"`  // the host's boot id when the present or last run started
}

// Guest is the whole record.
type Guest struct {
	model.Meta
	Spec   Spec   `json:"spec"`
	Holder Holder `json:"holder"`
	Status Status `json:"status"`
}

// Patience returns how long the guest is left to stop by itself.
func (s Spec) Patience() time.Duration {
	return time.Duration(cmp.Or(s.Within, s.StopTimeout, DefaultStopTimeout)) * time.Second
}

// Key addresses the guest.
func (g Guest) Key() model.Key { return model.Key{Kind: Kind, Name: g.Name} }

// Seen is what the host can see of a guest right now.
type Seen struct {
	Attached bool // its disks and NICs are attached
	Alive    bool // the keeper holds a live process
	Frozen   bool // ... which is paused
	Exited   bool // the last run ended by itself and no wish was raised since
	Failed   bool // ... badly
	Cooling  bool // it may not start again yet: the restart policy waits, or autostart has an order
	Lost     bool // the last run ended with the host that ran it
	Misfit   bool // its writable layer has not the form that its model needs
}
