package api

import "time"

// Kernel is what guests with a kernel of their own boot.
type Kernel struct {
	Name      string     `json:"name" example:"linux/debian-12"`
	ID        string     `json:"id"`
	Kind      string     `json:"kind" enum:"linux,um" doc:"linux: boots in a virtual machine; um: runs as a program, for paravirtual guests"`
	Version   string     `json:"version,omitempty" example:"6.1.0-44-cloud-amd64"`
	From      string     `json:"from,omitempty" doc:"what it was made from" example:"user-mode-linux 7.2um1"`
	Modules   []string   `json:"modules" doc:"loaded before a guest's root is there"`
	Digest    string     `json:"digest,omitempty" doc:"empty until it is ready"`
	SizeBytes uint64     `json:"size_bytes"`
	Ready     bool       `json:"ready"`
	UsedBy    []string   `json:"used_by" doc:"guests that boot it"`
	Created   time.Time  `json:"created"`
	Built     *time.Time `json:"built,omitempty"`
	Problem   *Problem   `json:"problem,omitempty"`
}

// KernelBuild names the kernel that is to be made, and whether the newest is wanted
// where one is there.
type KernelBuild struct {
	Name    string `json:"name" example:"linux/debian-12" doc:"linux/debian-12, linux/debian-13, um/debian-12, um/debian-13, um/debian-sid, um/lodge"`
	Refresh bool   `json:"refresh,omitempty" doc:"build the newest even if one is there"`
}
