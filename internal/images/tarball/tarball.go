// Package tarball is the source of images that somebody uploads as a root tree
// in a tar, plain or compressed.
package tarball

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"lodge/internal/base/errs"
	"lodge/internal/base/tool"
	"lodge/internal/base/treetar"
	"lodge/internal/base/units"
	"lodge/internal/images"
	"lodge/internal/model/image"
)

// Limits of what an upload may unpack to.
const (
	// DefaultMaxSize is what all files of a tree may have together when the
	// one who imports says nothing else: more than any distribution's root,
	// less than what fills a small disk.
	DefaultMaxSize = 3 << 30
	// maxEntries is far above any distribution (a full desktop has 400,000).
	maxEntries = 2_000_000
	// maxID is the highest user or group a guest has: it has 65,536 of them.
	maxID = 65535
)

// Source makes images of uploads, which Receive puts into its spool.
type Source struct{ spool *images.Spool }

// New returns the source of the uploads in spool.
func New(spool *images.Spool) *Source { return &Source{spool: spool} }

// Name is "import".
func (*Source) Name() string { return "import" }

// Check says Invalid when spec names no upload, NotFound when it is gone, and
// Unsupported when the host lacks a program.
func (s *Source) Check(spec image.Spec) error {
	if spec.Release != "" || spec.Variant != "" {
		return errs.Bad("release", "an import has no release and no variant", "leave both out")
	}
	if spec.Architecture != "" {
		return errs.Bad("architecture", "a root tree shows itself what it is for", "leave --arch out")
	}
	if _, err := s.spool.Stamp(spec.Upload); err != nil {
		return err
	}
	return tool.Need("image.build", map[string]string{"mkfs.erofs": "erofs-utils"})
}

// Make packs the image of an upload. The upload stays; see images.Spool.
func (s *Source) Make(ctx context.Context, spec image.Spec, _, out string, told images.Told) (image.Info, error) {
	tree := filepath.Join(s.spool.Folder(spec.Upload), treeName)
	newest, err := s.spool.Stamp(spec.Upload)
	if err != nil {
		return image.Info{}, err
	}
	info, err := images.Inspect(tree)
	if err != nil {
		return image.Info{}, err
	}
	return info, images.WriteEROFS(ctx, tree, out, newest, told)
}

// rules decide what of a tar goes into an image, and count it.
type rules struct {
	max     uint64 // bytes of all files together
	bytes   uint64
	entries int
	kept    int
	newest  time.Time
}

// choose is a treetar.Choose. Device nodes below dev are left out, because a
// guest gets a /dev of its own; anywhere else they are refused.
func (r *rules) choose(h *tar.Header) (keep bool, err error) {
	if r.entries++; r.entries > maxEntries {
		return false, fmt.Errorf("there are more than %d entries", maxEntries)
	}
	switch {
	case h.Size < 0 || uint64(h.Size) > r.max || r.bytes+uint64(h.Size) > r.max:
		return false, &tooBig{r.max}
	case h.Uid > maxID || h.Gid > maxID:
		return false, fmt.Errorf("its owner %d:%d is above %d, the highest a guest has; make the tar with plain owners", h.Uid, h.Gid, maxID)
	case h.Typeflag == tar.TypeChar || h.Typeflag == tar.TypeBlock:
		if strings.HasPrefix(h.Name, "dev/") {
			return false, nil
		}
		return false, errors.New("it is a device node, which only dev/ may have (they are left out there)")
	}
	r.bytes += uint64(h.Size)
	r.kept++
	if h.ModTime.After(r.newest) {
		r.newest = h.ModTime
	}
	return true, nil
}

// whole is asked at the end: a stream of zeros is a correct tar of nothing.
func (r *rules) whole() error {
	if r.kept == 0 {
		return errs.Bad("file", "there is nothing in the tar", "make it with `tar -C ROOT -cf root.tar .`")
	}
	return nil
}

type tooBig struct{ max uint64 }

func (e *tooBig) Error() string {
	return "with it the tree is larger than max_size, " + units.Bytes(e.max)
}

// refusal turns an error of unpacking or checking into one for the person.
func refusal(err error) error {
	if _, ours := errors.AsType[*errs.Error](err); err == nil || ours || errors.Is(err, context.Canceled) {
		return err
	}
	bad := &errs.Error{Op: "image.import", Kind: errs.Invalid, Field: "file", Err: err}
	if size, ok := errors.AsType[*tooBig](err); ok {
		bad.Kind, bad.Field = errs.Invalid, "max_size"
		bad.Msg = "the tree is larger than " + units.Bytes(size.max)
		bad.Hint = "raise the limit with `--max-size 8GiB` (max_size in the API) if it is meant to be that large"
	}
	entry, named := errors.AsType[*treetar.Entry](err)
	if images.HostFailed(err) {
		return images.UploadError(err)
	}
	switch {
	case bad.Msg != "":
	case errors.Is(err, treetar.ErrEscape):
		bad.Msg = fmt.Sprintf("entry %q leads outside of the tree", entry.Name)
		bad.Hint = "make the tar of a root tree, without \"..\" and without writing through symbolic links: `tar -C ROOT -cf root.tar .`"
	case named && !errors.Is(err, io.ErrUnexpectedEOF):
		bad.Msg = fmt.Sprintf("entry %q can't be imported: %v", entry.Name, entry.Err)
		bad.Hint = "make the tar of a root tree: `tar -C ROOT -cf root.tar .`"
	default:
		bad.Msg = fmt.Sprintf("the file is not a whole tar: %v", err)
		bad.Hint = "give a tar of a root tree, or a disk (qcow2, VMDK, VHD, VHDX, VDI, ISO, or raw with a boot sector); plain or compressed with gzip, xz or zstd"
	}
	return bad
}
