package admission

import (
	"encoding/json"
	"maps"
	"slices"

	"lodge/internal/model/guest"
)

// Patch is what can be changed of a guest that exists. What is nil stays as it
// is. The JSON names are those that errors and diffs tell a person.
type Patch struct {
	CPUs        *float64             `json:"cpus,omitempty"`
	CPUWeight   *int                 `json:"cpu_weight,omitempty"`
	Memory      *uint64              `json:"memory_bytes,omitempty"`
	Swap        *uint64              `json:"swap_bytes,omitempty"`
	Processes   *int64               `json:"processes,omitempty"`
	IO          *guest.IO            `json:"io,omitempty"`
	Disk        *uint64              `json:"disk_bytes,omitempty"`
	Command     *[]string            `json:"command,omitempty"`
	Env         *map[string]string   `json:"env,omitempty"`
	UserData    *string              `json:"user_data,omitempty"`
	Engine      *string              `json:"engine,omitempty"` // "": the preferred one
	Machine     *string              `json:"machine,omitempty"`
	Firmware    *string              `json:"firmware,omitempty"`
	TPM         *bool                `json:"tpm,omitempty"`
	Kernel      *string              `json:"kernel,omitempty"`
	CPUModel    *string              `json:"cpu_model,omitempty"`
	Disks       *[]guest.FurtherDisk `json:"disks,omitempty"` // replaces all, but never takes one away that holds data
	Restart     *guest.Restart       `json:"restart,omitempty"`
	Autostart   *guest.Autostart     `json:"autostart,omitempty"`
	StopTimeout *int                 `json:"stop_timeout,omitempty"`
	Labels      *map[string]string   `json:"labels,omitempty"`
	Publish     *[]string            `json:"publish,omitempty"` // replaces all port forwards of the guest
}

// GuestWish asks for a guest. The zero value of a field is its default.
type GuestWish struct {
	Name      string
	Image     string
	Model     guest.Model
	Pool      string
	Networks  []string // nil: the default one; ["none"]: no card at all
	Ephemeral bool
	Start     bool
	Count     int // more than 0: make this many, named Name-1, Name-2, ...
	Patch
}

// What a guest gets that nobody asked for.
const (
	defaultCPUs    = 1
	defaultMemory  = 512 << 20
	defaultDisk    = 10 << 30
	defaultWeight  = 100
	defaultPids    = 4096
	defaultTimeout = 30 // seconds
	defaultName    = "default"
)

// freshSpec is the spec of a guest before anything was asked.
func freshSpec(w GuestWish) guest.Spec {
	s := guest.Spec{
		Model: w.Model, Image: w.Image, Power: guest.Off, Pool: w.Pool, Ephemeral: w.Ephemeral,
		CPUs: defaultCPUs, CPUWeight: defaultWeight, Memory: defaultMemory, Disk: defaultDisk,
		Processes: defaultPids, Restart: guest.Never, StopTimeout: defaultTimeout,
	}
	if s.Model == "" {
		s.Model = guest.OS
	}
	if s.Pool == "" {
		s.Pool = defaultName
	}
	if w.Start {
		s.Power, s.Boots = guest.On, 1
	}
	return s
}

func set[T any](to *T, from *T) {
	if from != nil {
		*to = *from
	}
}

// apply edits s as p asks. Labels and publish are not the spec's.
func (p Patch) apply(s *guest.Spec) {
	set(&s.CPUs, p.CPUs)
	set(&s.CPUWeight, p.CPUWeight)
	set(&s.Memory, p.Memory)
	set(&s.Swap, p.Swap)
	set(&s.Processes, p.Processes)
	set(&s.IO, p.IO)
	set(&s.Disk, p.Disk)
	set(&s.UserData, p.UserData)
	set(&s.Engine, p.Engine)
	set(&s.Hardware.Machine, p.Machine)
	set(&s.Hardware.Firmware, p.Firmware)
	set(&s.Hardware.TPM, p.TPM)
	set(&s.Hardware.Kernel, p.Kernel)
	set(&s.Hardware.CPUModel, p.CPUModel)
	set(&s.Restart, p.Restart)
	set(&s.Autostart, p.Autostart)
	set(&s.StopTimeout, p.StopTimeout)
	if p.Command != nil {
		s.Command = slices.Clone(*p.Command)
	}
	if p.Env != nil {
		s.Env = maps.Clone(*p.Env)
	}
	if p.Disks != nil {
		s.Disks = slices.Clone(*p.Disks)
	}
}

// machine reports whether p changes what a guest's machine is made of.
func (p Patch) machine() bool {
	return p.Engine != nil || p.Machine != nil || p.Firmware != nil || p.TPM != nil || p.Kernel != nil || p.CPUModel != nil || p.Disks != nil
}

// patchOf is the patch that would make a guest what it is.
func patchOf(s guest.Spec, labels map[string]string, publish []string) Patch {
	return Patch{
		CPUs: &s.CPUs, CPUWeight: &s.CPUWeight, Memory: &s.Memory, Swap: &s.Swap, Processes: &s.Processes, IO: &s.IO, Disk: &s.Disk,
		Engine: &s.Engine, Machine: &s.Hardware.Machine, Firmware: &s.Hardware.Firmware, TPM: &s.Hardware.TPM,
		Kernel: &s.Hardware.Kernel, CPUModel: &s.Hardware.CPUModel, Disks: &s.Disks,
		Command: &s.Command, Env: &s.Env, UserData: &s.UserData, Restart: &s.Restart, Autostart: &s.Autostart,
		StopTimeout: &s.StopTimeout, Labels: &labels, Publish: &publish,
	}
}

// FieldChange is a field's old and new value as JSON.
type FieldChange struct {
	Field    string
	From, To json.RawMessage
}

// changes lists what p changes of old, by field name.
func (p Patch) changes(old Patch) ([]FieldChange, error) {
	was, err := fieldsOf(old)
	if err != nil {
		return nil, err
	}
	is, err := fieldsOf(p)
	if err != nil {
		return nil, err
	}
	var all []FieldChange
	for _, f := range slices.Sorted(maps.Keys(is)) {
		if !same(was[f], is[f]) {
			all = append(all, FieldChange{Field: f, From: was[f], To: is[f]})
		}
	}
	return all, nil
}

// same takes what is empty for equal, however it is written.
func same(a, b json.RawMessage) bool {
	empty := func(m json.RawMessage) bool {
		return slices.Contains([]string{"", "null", "[]", "{}", `""`}, string(m))
	}
	return string(a) == string(b) || empty(a) && empty(b)
}

func fieldsOf(p Patch) (map[string]json.RawMessage, error) {
	text, err := json.Marshal(p)
	if err != nil {
		return nil, err
	}
	var fields map[string]json.RawMessage
	return fields, json.Unmarshal(text, &fields)
}
