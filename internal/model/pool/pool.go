// Package pool says what a storage pool is: the place that guests' writable
// layers lie on.
package pool

import "lodge/internal/model"

// Kind is the noun's name in keys and events.
const Kind model.Kind = "pool"

// Spec is what was asked for.
type Spec struct {
	Driver string `json:"driver"`           // "dir", "btrfs"
	Source string `json:"source,omitempty"` // a directory or block device; empty: a place of Lodge's own in the data directory
	Size   uint64 `json:"size,omitempty"`   // bytes of the file Lodge makes when Source is empty and the driver needs a file system of its own
}

// Status is what the host found out.
type Status struct {
	Generation int64          `json:"generation"`
	Ready      bool           `json:"ready"`
	Path       string         `json:"path,omitempty"`
	Quota      string         `json:"quota,omitempty"` // "enforced (squota)", "enforced (qgroup)", "soft: counted, not enforced"
	Problem    *model.Problem `json:"problem,omitempty"`
}
