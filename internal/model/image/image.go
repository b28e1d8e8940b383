// Package image says what an image is: a read-only root tree in one EROFS
// file, or a disk, known by the digest of its content, that any number of
// guests share.
package image

import (
	"time"

	"lodge/internal/model"
)

// Kind is the noun's name in keys and events.
const Kind model.Kind = "image"

// Variant says how much of a distribution goes into an image.
type Variant string

// The variants of an image that is built from packages.
const (
	Minimal  Variant = "minimal"  // an init, a shell, the package manager
	Standard Variant = "standard" // what one expects of a server: systemd, ssh, cloud-init, network tools
)

// Spec is what was asked for.
type Spec struct {
	Source  string  `json:"source"`            // name of the source that makes it: "debian", "busybox", "import", "disk"
	Release string  `json:"release,omitempty"` // "12", "13", "sid"
	Variant Variant `json:"variant,omitempty"`
	Wish    int64   `json:"wish"`             // raised by each wish to build it anew
	Upload  string  `json:"upload,omitempty"` // id of the spooled upload that an import is made from

	Architecture string `json:"architecture,omitempty"` // that its owner says a disk is for, which may not show
}

// Status is what became of it. An image whose Digest is set can be used, even
// while a newer one is being built.
type Status struct {
	Wish       int64          `json:"wish"`       // the wish that Digest answers
	Generation int64          `json:"generation"` // of the spec this status answers
	Digest     string         `json:"digest,omitempty"`
	Size       uint64         `json:"size,omitempty"` // bytes of the file
	Built      *time.Time     `json:"built,omitempty"`
	Info       Info           `json:"info,omitzero"`
	Problem    *model.Problem `json:"problem,omitempty"`
}

// Info is what is known of the content.
type Info struct {
	Disk         string   `json:"disk,omitempty"`      // format of a disk image, "qcow2" or "iso"; empty for a root tree
	DiskSize     uint64   `json:"disk_size,omitempty"` // bytes that the disk has in the guest
	OS           string   `json:"os,omitempty"`        // "debian"
	Release      string   `json:"release,omitempty"`   // "12"
	Pretty       string   `json:"pretty,omitempty"`    // PRETTY_NAME of its os-release
	Architecture string   `json:"architecture,omitempty"`
	Init         []string `json:"init,omitempty"` // the command line of its first process
	CloudInit    bool     `json:"cloud_init,omitempty"`
	Files        int64    `json:"files,omitempty"`
	Packages     []string `json:"packages,omitempty"`
}
