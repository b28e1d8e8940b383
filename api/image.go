package api

import "time"

// Image is a read-only root tree that guests share.
type Image struct {
	Name         string     `json:"name" example:"debian/12"`
	ID           string     `json:"id"`
	Source       string     `json:"source" example:"debian"`
	Variant      string     `json:"variant,omitempty" enum:"minimal,standard"`
	Digest       string     `json:"digest,omitempty" doc:"empty until it is ready"`
	SizeBytes    uint64     `json:"size_bytes"`
	Ready        bool       `json:"ready"`
	OS           string     `json:"os,omitempty"`
	Release      string     `json:"release,omitempty"`
	Description  string     `json:"description,omitempty"`
	Disk         string     `json:"disk,omitempty" enum:"qcow2,iso" doc:"format of an image that is a disk or a disc; empty for a root tree"`
	DiskBytes    uint64     `json:"disk_bytes,omitempty" doc:"size that the disk has in a guest"`
	Architecture string     `json:"architecture,omitempty"`
	Init         []string   `json:"init,omitempty"`
	CloudInit    bool       `json:"cloud_init"`
	Files        int64      `json:"files"`
	Packages     []string   `json:"packages,omitempty" doc:"only when one image is asked for"`
	UsedBy       []string   `json:"used_by" doc:"guests made from it"`
	Created      time.Time  `json:"created"`
	Built        *time.Time `json:"built,omitempty"`
	Problem      *Problem   `json:"problem,omitempty"`
}

// ImageBuild asks for an image made from a distribution's packages, or for
// "busybox" or "empty".
type ImageBuild struct {
	Name    string `json:"name" example:"debian/12" doc:"what to build: debian/12, debian/13, debian/sid, busybox, empty"`
	Variant string `json:"variant,omitempty" enum:"minimal,standard" doc:"default standard"`
	As      string `json:"as,omitempty" doc:"name of the image; default: name, and -minimal for that variant"`
	Rebuild bool   `json:"rebuild,omitempty" doc:"build again even if it is there"`
}

// Pool is a place for guests' writable layers.
type Pool struct {
	Name       string    `json:"name" example:"default"`
	ID         string    `json:"id"`
	Driver     string    `json:"driver" example:"btrfs"`
	Source     string    `json:"source,omitempty"`
	Path       string    `json:"path,omitempty"`
	Ready      bool      `json:"ready"`
	Quota      string    `json:"quota" example:"enforced (squota)"`
	TotalBytes uint64    `json:"total_bytes"`
	UsedBytes  uint64    `json:"used_bytes"`
	FreeBytes  uint64    `json:"free_bytes"`
	UsedBy     []string  `json:"used_by"`
	Created    time.Time `json:"created"`
	Problem    *Problem  `json:"problem,omitempty"`
}

// PoolCreate asks for a pool.
type PoolCreate struct {
	Name      string `json:"name"`
	Driver    string `json:"driver" enum:"dir,btrfs"`
	Source    string `json:"source,omitempty" doc:"a directory or block device; default: Lodge makes its own"`
	SizeBytes uint64 `json:"size_bytes,omitempty" doc:"of the file Lodge makes when it needs a file system of its own"`
}

// Network is a switch of the host's own.
type Network struct {
	Name    string    `json:"name" example:"default"`
	ID      string    `json:"id"`
	Driver  string    `json:"driver" example:"bridge"`
	IPv4    string    `json:"ipv4,omitempty" example:"10.67.0.0/16"`
	IPv6    string    `json:"ipv6,omitempty"`
	NAT     bool      `json:"nat"`
	Domain  string    `json:"domain" example:"lodge.internal"`
	Device  string    `json:"device,omitempty"`
	Ready   bool      `json:"ready"`
	Guests  int       `json:"guests"`
	Created time.Time `json:"created"`
	Problem *Problem  `json:"problem,omitempty"`
}

// NetworkCreate asks for a network.
type NetworkCreate struct {
	Name   string `json:"name"`
	Driver string `json:"driver,omitempty" doc:"default bridge"`
	IPv4   string `json:"ipv4,omitempty" doc:"prefix; default: a free private one; none: no IPv4"`
	IPv6   string `json:"ipv6,omitempty" doc:"prefix; default: a random ULA; none: no IPv6"`
	NAT    *bool  `json:"nat,omitempty" doc:"default true"`
	Domain string `json:"domain,omitempty" doc:"default lodge.internal"`
}

// Forward leads a port of the host to a port of a guest.
type Forward struct {
	Name     string   `json:"name" example:"tcp-8080"`
	ID       string   `json:"id"`
	Protocol string   `json:"protocol" enum:"tcp,udp"`
	Listen   string   `json:"listen,omitempty" doc:"address of the host; empty: all"`
	Port     int      `json:"port"`
	Guest    string   `json:"guest"`
	Target   int      `json:"target"`
	Active   bool     `json:"active"`
	Problem  *Problem `json:"problem,omitempty"`
}

// ForwardCreate asks for a port forward.
type ForwardCreate struct {
	Guest   string `json:"guest"`
	Publish string `json:"publish" doc:"[ADDRESS:]HOSTPORT:GUESTPORT[/udp]" example:"8080:80"`
}
