package disk

import (
	"context"

	"lodge/internal/base/diskfile"
	"lodge/internal/base/errs"
	"lodge/internal/base/tool"
	"lodge/internal/images"
	"lodge/internal/model/image"
)

// Empty makes the image with nothing on it: its guests are machines to install
// a system on, each with a disk as large as was asked for.
type Empty struct{}

// Name is "empty".
func (Empty) Name() string { return "empty" }

// Check says Invalid for a release or a variant, which there is none of, and
// Unsupported when the host lacks a program.
func (Empty) Check(spec image.Spec) error {
	if spec.Release != "" || spec.Variant != "" {
		return errs.Bad("release", "an empty disk has no releases and no variants", "build it as just \"empty\"")
	}
	return tool.Need("image.build", map[string]string{"qemu-img": "qemu-utils"})
}

// emptySize is what is enough to be a disk; guests' own are larger.
const emptySize = 1 << 20

// Make makes the disk.
func (Empty) Make(ctx context.Context, _ image.Spec, _, out string, _ images.Told) (image.Info, error) {
	err := tool.Run(ctx, "image.build", nil, nil, "qemu-img", "create", "-q", "-f", string(diskfile.QCOW2), out, "1M")
	return image.Info{Disk: string(diskfile.QCOW2), DiskSize: emptySize}, err
}
