// Package images is the content store of images and the contract of where
// images come from: one folder below this one for each source.
package images

import (
	"context"

	"lodge/internal/model/image"
)

// Source makes images: root trees or disks.
type Source interface {
	Name() string
	// Check says, without doing any work, whether the source can make what
	// spec asks for; its error names field and fix.
	Check(spec image.Spec) error
	// Make builds at out from spec an EROFS file, or a disk in the format that
	// the answer names. It works below dir, which is empty and is removed by
	// the caller whatever happens. told is called with progress, from any
	// goroutine, as often as the source likes.
	Make(ctx context.Context, spec image.Spec, dir, out string, told Told) (image.Info, error)
}

// Told receives the progress of one step: done of total, in unit ("bytes" or
// ""), and the latest line that a tool said. Total 0 is unknown.
type Told func(step string, done, total uint64, unit, note string)
