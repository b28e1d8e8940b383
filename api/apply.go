package api

import "encoding/json"

// Manifest is one document of an apply file: what should exist, by kind and
// name.
type Manifest struct {
	Kind string          `json:"kind" enum:"guest,network,pool,forward,image"`
	Spec json.RawMessage `json:"spec" doc:"the kind's creation request; a guest also has power: on, off or paused"`
}

// ApplyRequest asks that everything in it be so. Nothing is removed that is not
// named.
type ApplyRequest struct {
	Manifests []Manifest `json:"manifests"`
	DryRun    bool       `json:"dry_run,omitempty" doc:"only say what would change"`
}

// ApplyResult is what changed, or would.
type ApplyResult struct {
	Changes    []ApplyChange `json:"changes"`
	Operations []Operation   `json:"operations"`
}

// ApplyChange is what becomes of one manifest.
type ApplyChange struct {
	Kind   string        `json:"kind"`
	Name   string        `json:"name"`
	Action string        `json:"action" enum:"create,change,none"`
	Fields []FieldChange `json:"fields,omitempty"`
}

// FieldChange is one field's old and new value as JSON.
type FieldChange struct {
	Field string          `json:"field"`
	From  json.RawMessage `json:"from,omitempty"`
	To    json.RawMessage `json:"to,omitempty"`
}
