package api

import (
	"encoding/json"
	"time"
)

// Operation is the receipt of a request that takes time.
type Operation struct {
	ID       string     `json:"id"`
	Verb     string     `json:"verb" example:"guest.start"`
	Subjects []string   `json:"subjects" example:"guest/web1"`
	By       string     `json:"by"`
	State    string     `json:"state" enum:"working,done,failed,cancelled"`
	Problem  *Problem   `json:"problem,omitempty" doc:"why it failed, or what it is held up by"`
	Created  time.Time  `json:"created"`
	Ended    *time.Time `json:"ended,omitempty"`
}

// Event is one message of GET /v1/events (server-sent events; the SSE id is the
// revision to resume from).
type Event struct {
	Rev     int64           `json:"rev,omitempty"`
	At      time.Time       `json:"at"`
	Type    string          `json:"type" enum:"changed,deleted,progress"`
	Kind    string          `json:"kind" example:"guest"`
	Name    string          `json:"name" example:"web1"`
	Object  json.RawMessage `json:"object,omitempty" doc:"the record as it became, as GET would show it"`
	Message string          `json:"message,omitempty" doc:"the change in words" example:"running"`
	// Progress is set when Type is "progress"; such events have no revision
	// and are not replayed.
	Progress *Progress `json:"progress,omitempty"`
}

// Progress is how far a piece of work has come.
type Progress struct {
	Step    string   `json:"step" example:"unpacking"`
	Parents []string `json:"parents,omitempty" doc:"the work it is part of, outermost first"`
	Done    uint64   `json:"done"`
	Total   uint64   `json:"total,omitempty" doc:"0: unknown"`
	Unit    string   `json:"unit,omitempty" enum:"bytes,"`
	Note    string   `json:"note,omitempty"`
}

// Host is the machine that lodged runs on.
type Host struct {
	Name         string   `json:"name"`
	Version      string   `json:"version" doc:"of lodged"`
	Kernel       string   `json:"kernel"`
	OS           string   `json:"os"`
	Architecture string   `json:"architecture"`
	CPUs         int      `json:"cpus"`
	MemoryBytes  uint64   `json:"memory_bytes"`
	MemoryFree   uint64   `json:"memory_free_bytes"`
	Load         float64  `json:"load" doc:"over one minute"`
	Uptime       int64    `json:"uptime" doc:"seconds"`
	Cgroups      string   `json:"cgroups" example:"v2"`
	Guests       int      `json:"guests"`
	Running      int      `json:"running"`
	Engines      []Engine `json:"engines"`
	DataDir      string   `json:"data_dir"`

	Templates     int    `json:"templates,omitempty" doc:"kinds of virtual machines that start from memory instead of booting"`
	TemplateBytes uint64 `json:"template_bytes,omitempty" doc:"memory that the templates take"`
	Standbys      int    `json:"standbys,omitempty" doc:"virtual machines that stand ready before anybody asks for them"`
}

// Engine is what runs the guests of one model.
type Engine struct {
	Name    string          `json:"name" example:"oslevel"`
	Model   string          `json:"model"`
	Version string          `json:"version,omitempty"`
	Usable  bool            `json:"usable"`
	Missing string          `json:"missing,omitempty" doc:"why it cannot run here"`
	Hint    string          `json:"hint,omitempty"`
	Can     map[string]bool `json:"can"`

	Form        string        `json:"form,omitempty" enum:"tree,volume,disk" doc:"of its guests' writable layer"`
	Kernel      string        `json:"kernel,omitempty" doc:"kind of kernel that its guests boot; empty: the host's own" example:"linux"`
	Machines    []MachineKind `json:"machines,omitempty" doc:"that may be chosen; the first is its own choice"`
	CPUModels   []string      `json:"cpu_models,omitempty" doc:"that may be chosen"`
	CPUFeatures []string      `json:"cpu_features,omitempty" doc:"that can be added to a model and taken away from it, as in qemu64,+svm,-avx"`
	Debugs      []string      `json:"debugs,omitempty" doc:"what can be done with a guest that hangs"`
	Facts       []Fact        `json:"facts,omitempty" doc:"what else is worth knowing"`
	Overhead    uint64        `json:"overhead_bytes,omitempty" doc:"memory for each guest's monitor, beside the guest's"`

	OverheadCPUs float64 `json:"overhead_cpus,omitempty" doc:"processors' time that each guest's monitor may take, beside the guest's whole processors"`
}

// MachineKind is a kind of machine that guests may have.
type MachineKind struct {
	Name     string   `json:"name" example:"q35"`
	Firmware []string `json:"firmware,omitempty" doc:"that it boots disks with"`
	TPM      bool     `json:"tpm,omitempty" doc:"it may have one here"`
}

// Fact is one thing worth knowing.
type Fact struct {
	Name  string `json:"name" example:"acceleration"`
	Value string `json:"value"`
}

// Check is one line of what the doctor found.
type Check struct {
	Name   string `json:"name" example:"inotify instances"`
	Group  string `json:"group" example:"limits"`
	State  string `json:"state" enum:"ok,warning,fault"`
	Found  string `json:"found" doc:"what was seen"`
	Cause  string `json:"cause,omitempty" doc:"what follows from it"`
	Fix    string `json:"fix,omitempty" doc:"the command that cures it"`
	Fixed  bool   `json:"fixed,omitempty" doc:"it was cured just now"`
	Before string `json:"before,omitempty" doc:"the value before the cure"`
}
