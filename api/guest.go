// Package api is what travels between Lodge and its users: the shapes of
// requests, answers and events. openapi.json is generated from it.
package api

import "time"

// Guest is one virtual server.
type Guest struct {
	Name        string            `json:"name" doc:"unique in the host; also the guest's host name" example:"web1"`
	ID          string            `json:"id" doc:"never reused"`
	Model       string            `json:"model" enum:"vm,paravirt,os"`
	Image       string            `json:"image" example:"debian/12"`
	ImageDigest string            `json:"image_digest"`
	Phase       string            `json:"phase" enum:"unplaced,stopped,ready,running,paused,gone"`
	Doing       string            `json:"doing,omitempty" doc:"work under way" example:"starting"`
	Wanted      string            `json:"wanted" enum:"off,on,paused,saved"`
	Saved       bool              `json:"saved,omitempty" doc:"its memory is kept, and its next start goes on from there"`
	Problem     *Problem          `json:"problem,omitempty"`
	Addresses   []string          `json:"addresses" doc:"those that Lodge gave it, then others that its agent says it has"`
	CPUs        float64           `json:"cpus" doc:"processors' worth of time; 0 is all of the host's"`
	CPUWeight   int               `json:"cpu_weight"`
	MemoryBytes uint64            `json:"memory_bytes" doc:"0 is all of the host's"`
	SwapBytes   uint64            `json:"swap_bytes"`
	Processes   int64             `json:"processes"`
	IO          IO                `json:"io"`
	DiskBytes   uint64            `json:"disk_bytes" doc:"quota of the writable layer; 0 is none"`
	Pool        string            `json:"pool"`
	NICs        []NIC             `json:"nics"`
	Command     []string          `json:"command,omitempty"`
	Env         map[string]string `json:"env,omitempty"`
	CloudInit   bool              `json:"cloud_init" doc:"user-data was given"`
	Restart     string            `json:"restart" enum:"never,on-failure,always"`
	Autostart   Autostart         `json:"autostart"`
	Ephemeral   bool              `json:"ephemeral"`
	StopTimeout int               `json:"stop_timeout" doc:"seconds"`
	Labels      map[string]string `json:"labels,omitempty"`
	Publish     []string          `json:"publish" doc:"port forwards" example:"8080:80/tcp"`
	Host        string            `json:"host"`
	Engine      string            `json:"engine,omitempty" doc:"that runs it, or ran it last" example:"qemu"`
	Asked       string            `json:"engine_wanted,omitempty" doc:"empty: the preferred one for its model"`
	Machine     string            `json:"machine,omitempty" doc:"empty: the engine's choice" example:"q35"`
	Firmware    string            `json:"firmware,omitempty" example:"uefi"`
	TPM         bool              `json:"tpm,omitempty"`
	Kernel      string            `json:"kernel,omitempty" doc:"empty: the best for its image"`
	CPUModel    string            `json:"cpu_model,omitempty"`
	Disks       []Disk            `json:"disks,omitempty" doc:"beside its own"`
	Agent       string            `json:"agent,omitempty" doc:"that it brought along and that answers; only guests of disks have one that is not Lodge's"`
	Booted      string            `json:"booted_kernel,omitempty" doc:"that the present or last run booted; empty: the host's own"`
	Ready       bool              `json:"ready,omitempty" doc:"it runs, and its init says that it is up"`
	Pending     []string          `json:"pending,omitempty" doc:"what it gets with its next start only"`
	Last        string            `json:"last,omitempty" doc:"what it said last before it ended badly or was seen not to be well, or what shows why it does not boot; only when one guest is asked for"`
	Pid         int               `json:"pid,omitempty"`
	Created     time.Time         `json:"created"`
	Started     *time.Time        `json:"started,omitempty"`
	Exit        *Exit             `json:"exit,omitempty"`
	Restarts    int               `json:"restarts"`
	Generation  int64             `json:"generation"`
}

// NIC is one network card of a guest.
type NIC struct {
	Name    string `json:"name" example:"eth0"`
	Network string `json:"network" example:"default"`
	MAC     string `json:"mac"`
	IPv4    string `json:"ipv4,omitempty"`
	IPv6    string `json:"ipv6,omitempty"`
}

// Disk is a disk or disc that a guest has beside its own.
type Disk struct {
	Name      string `json:"name" doc:"unique in the guest; its serial number there" example:"data"`
	SizeBytes uint64 `json:"size_bytes,omitempty" doc:"of a disk on the guest's pool"`
	ISO       string `json:"iso,omitempty" doc:"file of the host that is a disc" example:"/srv/iso/debian.iso"`
	Boot      int    `json:"boot,omitempty" doc:"place in which firmware tries it, from 1; 0: not at all"`
}

// IO is the limits of a guest's disk traffic; 0 is none.
type IO struct {
	ReadBPS   uint64 `json:"read_bps,omitempty" doc:"bytes a second"`
	WriteBPS  uint64 `json:"write_bps,omitempty" doc:"bytes a second"`
	ReadIOPS  uint64 `json:"read_iops,omitempty" doc:"operations a second"`
	WriteIOPS uint64 `json:"write_iops,omitempty" doc:"operations a second"`
}

// Autostart says whether and when a guest comes back after the host was
// restarted.
type Autostart struct {
	Enabled bool `json:"enabled,omitempty"`
	Order   int  `json:"order,omitempty" doc:"lower first"`
	Delay   int  `json:"delay,omitempty" doc:"seconds to wait after this guest before the next"`
}

// Exit is how the last run of a guest ended, when it ended by itself.
type Exit struct {
	Code   int       `json:"code" doc:"exit status, or 128 + signal"`
	Signal string    `json:"signal,omitempty"`
	OOM    bool      `json:"oom,omitempty" doc:"the memory limit ended it"`
	At     time.Time `json:"at"`
}

// Problem says why something is not where it was asked to be.
type Problem struct {
	Code     string    `json:"code" example:"no-space"`
	Message  string    `json:"message"`
	Hint     string    `json:"hint,omitempty"`
	Since    time.Time `json:"since"`
	Attempts int       `json:"attempts"`
}

// GuestSpec asks for a guest. What is left out gets the documented default.
type GuestSpec struct {
	Name        string            `json:"name" example:"web1"`
	Image       string            `json:"image" example:"debian/12"`
	Model       string            `json:"model,omitempty" enum:"vm,paravirt,os" default:"os"`
	Engine      string            `json:"engine,omitempty" doc:"default: the preferred one for the model" example:"qemu"`
	Machine     string            `json:"machine,omitempty" doc:"default: the engine's choice" example:"q35"`
	Firmware    string            `json:"firmware,omitempty" doc:"of guests that boot a disk" example:"uefi"`
	TPM         bool              `json:"tpm,omitempty"`
	Kernel      string            `json:"kernel,omitempty" doc:"default: the best for the image" example:"linux/debian-12"`
	CPUModel    string            `json:"cpu_model,omitempty" doc:"default: the engine's choice"`
	Disks       []Disk            `json:"disks,omitempty" doc:"beside its own"`
	CPUs        *float64          `json:"cpus,omitempty" doc:"default 1; 0 is all of the host's"`
	CPUWeight   *int              `json:"cpu_weight,omitempty" doc:"1 to 10000; default 100"`
	MemoryBytes *uint64           `json:"memory_bytes,omitempty" doc:"default 512MiB, 0 is refused"`
	SwapBytes   *uint64           `json:"swap_bytes,omitempty"`
	Processes   *int64            `json:"processes,omitempty"`
	IO          *IO               `json:"io,omitempty"`
	DiskBytes   *uint64           `json:"disk_bytes,omitempty" doc:"default 10GiB; 0 is no quota"`
	Pool        string            `json:"pool,omitempty" doc:"default: the host's default pool"`
	Networks    []string          `json:"networks,omitempty" doc:"default: [default]; [none] is no network"`
	Command     []string          `json:"command,omitempty" doc:"runs as the first process instead of the image's init"`
	Env         map[string]string `json:"env,omitempty"`
	UserData    string            `json:"user_data,omitempty" doc:"cloud-init user-data"`
	Restart     string            `json:"restart,omitempty" enum:"never,on-failure,always" doc:"default never"`
	Autostart   *Autostart        `json:"autostart,omitempty"`
	Ephemeral   bool              `json:"ephemeral,omitempty" doc:"removed once it has stopped"`
	StopTimeout *int              `json:"stop_timeout,omitempty" doc:"seconds; default 30"`
	Labels      map[string]string `json:"labels,omitempty"`
	Publish     []string          `json:"publish,omitempty" doc:"[ADDRESS:]HOSTPORT:GUESTPORT[/udp]" example:"8080:80"`
}

// GuestCreate asks for one or many guests.
type GuestCreate struct {
	GuestSpec
	Start bool `json:"start,omitempty"`
	Count int  `json:"count,omitempty" doc:"make this many; their names get the suffix -1, -2, …" minimum:"0" maximum:"10000"`
}

// GuestPatch changes what is set and leaves the rest. CPUs, weight, memory,
// swap, processes, IO and disk take effect on a running guest at once; the rest
// with its next start.
type GuestPatch struct {
	Engine      *string            `json:"engine,omitempty"`
	Machine     *string            `json:"machine,omitempty"`
	Firmware    *string            `json:"firmware,omitempty"`
	TPM         *bool              `json:"tpm,omitempty"`
	Kernel      *string            `json:"kernel,omitempty"`
	CPUModel    *string            `json:"cpu_model,omitempty"`
	Disks       *[]Disk            `json:"disks,omitempty" doc:"replaces all; one that holds data cannot be left out"`
	CPUs        *float64           `json:"cpus,omitempty"`
	CPUWeight   *int               `json:"cpu_weight,omitempty"`
	MemoryBytes *uint64            `json:"memory_bytes,omitempty"`
	SwapBytes   *uint64            `json:"swap_bytes,omitempty"`
	Processes   *int64             `json:"processes,omitempty"`
	IO          *IO                `json:"io,omitempty"`
	DiskBytes   *uint64            `json:"disk_bytes,omitempty"`
	Command     *[]string          `json:"command,omitempty"`
	Env         *map[string]string `json:"env,omitempty"`
	UserData    *string            `json:"user_data,omitempty"`
	Restart     *string            `json:"restart,omitempty" enum:"never,on-failure,always"`
	Autostart   *Autostart         `json:"autostart,omitempty"`
	StopTimeout *int               `json:"stop_timeout,omitempty"`
	Labels      *map[string]string `json:"labels,omitempty"`
	Publish     *[]string          `json:"publish,omitempty"`
}

// NICAttach asks for one more network card.
type NICAttach struct {
	Network string `json:"network" example:"lab"`
}

// DisplayTicket lets whoever shows it see a guest's screen once, soon.
type DisplayTicket struct {
	Ticket  string    `json:"ticket"`
	Expires time.Time `json:"expires"`
}

// Keys is keys that are pressed together, one chord after the other.
type Keys struct {
	Chords [][]string `json:"chords" doc:"keys by name; those of one chord are held together" example:"[[\"ctrl\",\"alt\",\"delete\"]]"`
}

// Explanation says where a guest is, where it should be, and what is done about
// it.
type Explanation struct {
	Name    string   `json:"name"`
	Phase   string   `json:"phase" doc:"as it is seen now" example:"running"`
	Goal    string   `json:"goal" doc:"the phase that its wishes and rules amount to" example:"running"`
	Step    string   `json:"step,omitempty" doc:"the next; empty: it rests" example:"stop"`
	Seen    string   `json:"seen" doc:"words for a person"`
	Wanted  string   `json:"wanted" doc:"words for a person"`
	Next    string   `json:"next" doc:"the next step, and why"`
	Pending []string `json:"pending,omitempty" doc:"what it gets with its next start only"`
	Problem *Problem `json:"problem,omitempty"`
	Last    string   `json:"last,omitempty" doc:"what it said last before it ended badly, or what shows why it does not boot"`
}

// GuestStop says how a guest is taken down.
type GuestStop struct {
	Force   bool `json:"force,omitempty" doc:"end it at once"`
	Timeout *int `json:"timeout,omitempty" doc:"seconds to wait for a clean stop before it is ended"`
}

// Usage is what a running guest uses at one moment. Counters rise from the
// start of the run.
type Usage struct {
	Name             string    `json:"name"`
	At               time.Time `json:"at"`
	CPUSeconds       float64   `json:"cpu_seconds" doc:"counter"`
	ThrottledSeconds float64   `json:"throttled_seconds" doc:"counter"`
	MemoryBytes      uint64    `json:"memory_bytes" doc:"caches included"`
	MemoryCacheBytes uint64    `json:"memory_cache_bytes"`
	MemoryLimitBytes uint64    `json:"memory_limit_bytes"`
	SwapBytes        uint64    `json:"swap_bytes"`
	Processes        int64     `json:"processes"`
	ReadBytes        uint64    `json:"read_bytes" doc:"counter"`
	WriteBytes       uint64    `json:"write_bytes" doc:"counter"`
	RxBytes          uint64    `json:"rx_bytes" doc:"counter, as the guest counts"`
	TxBytes          uint64    `json:"tx_bytes" doc:"counter"`
	RxPackets        uint64    `json:"rx_packets" doc:"counter"`
	TxPackets        uint64    `json:"tx_packets" doc:"counter"`
	OOMKills         uint64    `json:"oom_kills" doc:"counter"`
	DiskBytes        uint64    `json:"disk_bytes" doc:"used by the writable layer"`
	DiskLimitBytes   uint64    `json:"disk_limit_bytes"`
}

// ExecRequest asks for a program inside a guest. It is answered by a websocket;
// see Frame.
type ExecRequest struct {
	Command []string `json:"command"`
	Env     []string `json:"env,omitempty" example:"LANG=C"`
	Cwd     string   `json:"cwd,omitempty" doc:"default: the user's home"`
	User    string   `json:"user,omitempty" doc:"name or uid, and :group; default root"`
	TTY     bool     `json:"tty,omitempty"`
	Rows    uint16   `json:"rows,omitempty"`
	Cols    uint16   `json:"cols,omitempty"`
	NoInput bool     `json:"no_input,omitempty" doc:"the program's input is empty from the start, and what is sent of it goes nowhere; not with a terminal"`
	Wait    int      `json:"wait,omitempty" doc:"seconds to wait for a guest that boots; without, it is an error of kind busy"`
}

// Frame is the first byte of every websocket message of exec and console: which
// stream the rest of the message belongs to. An empty FrameIn ends the input.
type Frame = byte

// The streams. A FrameControl message is a Control as JSON.
const (
	FrameIn      Frame = 0
	FrameOut     Frame = 1
	FrameErr     Frame = 2
	FrameControl Frame = 3
)

// Control is what is not data on an exec or console stream.
type Control struct {
	Resize *Resize `json:"resize,omitempty"`
	Signal string  `json:"signal,omitempty" example:"INT"`
	Note   string  `json:"note,omitempty" doc:"words for a person, such as what is waited for"`
	Exit   *int    `json:"exit,omitempty" doc:"the last message of an exec: the exit status"`
	Error  *Error  `json:"error,omitempty" doc:"the last message when there is no exit status"`
}

// Resize is a terminal's new size.
type Resize struct {
	Rows uint16 `json:"rows"`
	Cols uint16 `json:"cols"`
}

// Password is what a user of a guest is to log in with.
type Password struct {
	User     string `json:"user,omitempty" default:"root" doc:"of the guest"`
	Password string `json:"password" doc:"1 to 256 bytes; kept nowhere but, as a hash, in the guest"`
}

// AuthorizedKeys are public keys whose owners may log in to a guest.
type AuthorizedKeys struct {
	User string   `json:"user,omitempty" default:"root" doc:"of the guest"`
	Keys []string `json:"keys" doc:"1 to 64 lines as in authorized_keys" example:"[\"ssh-ed25519 AAAA… ann@desk\"]"`
}

// Trimmed is what came of giving back what a guest does not use.
type Trimmed struct {
	Bytes uint64 `json:"bytes" doc:"that its file system said it does not use"`
}
