package api

import "time"

// Snapshot is a moment of a guest that it can go back to.
type Snapshot struct {
	Name    string     `json:"name" doc:"unique among the guest's snapshots" example:"before-upgrade"`
	ID      string     `json:"id" doc:"never reused"`
	Guest   string     `json:"guest" example:"web1"`
	Note    string     `json:"note,omitempty"`
	Memory  bool       `json:"memory" doc:"with what the guest was doing; it is gone on from while the guest is of model vm"`
	Model   string     `json:"model,omitempty" enum:"vm,paravirt,os," doc:"that the guest was of; it can be gone back to under any"`
	Rest    string     `json:"rest,omitempty" enum:"stopped,quiesced,frozen," doc:"how the guest was brought to rest for the moment"`
	Ready   bool       `json:"ready" doc:"it has been taken"`
	Taken   *time.Time `json:"taken,omitempty"`
	Created time.Time  `json:"created" doc:"when it was asked for"`
	Problem *Problem   `json:"problem,omitempty"`
}

// SnapshotCreate says what of a guest is to be kept, under which name.
type SnapshotCreate struct {
	Name   string `json:"name,omitempty" doc:"default: by the time" example:"before-upgrade"`
	Note   string `json:"note,omitempty"`
	Memory bool   `json:"memory,omitempty" doc:"of a guest that runs: with what it is doing"`
}

// SnapshotRestore takes a guest back to a snapshot.
type SnapshotRestore struct {
	Start bool `json:"start,omitempty" doc:"let the guest run afterwards; one that runs is taken down for it only with this"`
}

// GuestClone asks for a guest that is like another.
type GuestClone struct {
	Name     string `json:"name" example:"web2"`
	Snapshot string `json:"snapshot,omitempty" doc:"of the other that it is made of; default: what the other is now"`
	Running  bool   `json:"running,omitempty" doc:"it goes on from where the other is, with an identity of its own"`
	Start    bool   `json:"start,omitempty" doc:"boot it"`
	Count    int    `json:"count,omitempty" doc:"make this many, of one moment; their names get the suffix -1, -2, …" minimum:"0" maximum:"10000"`
}
