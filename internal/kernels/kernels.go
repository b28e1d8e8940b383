// Package kernels keeps what guests with a kernel of their own boot, and is the
// contract of where kernels come from: one folder below this one for each
// source.
package kernels

import (
	"context"

	"lodge/internal/model/kernel"
)

// Source is one place or way to get kernels from; the store asks the one that makes
// what is wanted.
type Source interface {
	// Makes lists the names of the kernels that it can make.
	Makes() []string
	// Check says, without doing any work, whether the kernel called name can
	// be made on this host; its error names field and fix.
	Check(name string) error
	// Make puts the kernel called name into dir, which is empty, working in
	// work, which is empty too and is removed by the caller whatever happens.
	// told is called with progress, from any goroutine.
	Make(ctx context.Context, name, dir, work string, told Told) (Made, error)
}

// Told receives the progress of one step: done of total, in unit ("percent" or
// ""). Total 0 is unknown.
type Told func(step string, done, total uint64, unit, note string)

// Made is what a source put into its folder; all names are relative to that.
type Made struct {
	Info    kernel.Info
	Kernel  string   // the kernel itself
	Modules []string // that the guest loads before its root is there, in order
	Support []string // what the kernel needs to run as a program: its loader first, then libraries
	Extra   string   // an EROFS with all modules, to be the lowest layer of a guest's root, or ""
}

// Boot is a kernel that is ready to be booted: files of the host, which stay
// where they are when the kernel is built anew.
type Boot struct {
	Name    string
	Version string
	Path    string
	Initrd  string // the agent as /init, and the modules it loads
	Support []string
	Modules string // EROFS with all modules, to be the lowest layer of a guest's root, or ""
}
