package images

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
	"lodge/internal/base/treetar"
)

// Export writes an image to w: "erofs" and "disk" are the file as it is stored,
// of a root tree and of a disk; "tar" is
// the tree with owners, modes, times, extended attributes and hard links,
// names starting with "./".
func (s *Store) Export(ctx context.Context, digest, format string, w io.Writer) error {
	blob, err := s.Open(digest)
	if err != nil {
		return err
	}
	defer blob.Close()
	isTree := filepath.Ext(blob.Name()) == tree
	switch {
	case format == "disk" && isTree:
		return errs.Bad("format", "the image is a root tree, not a disk", "use tar or erofs")
	case format == "erofs" && isTree, format == "disk":
		_, err := io.Copy(w, blob)
		return err
	case format != "erofs" && format != "tar":
		return errs.Bad("format", fmt.Sprintf("%q is not a format of images", format), "use tar, erofs or disk")
	case !isTree:
		return errs.Bad("format", "the image is a disk, not a root tree", "use disk")
	}
	mnt, err := attachable(blob.Name())
	if err != nil {
		return fmt.Errorf("exporting an image: %w", err)
	}
	defer mnt.Close()
	fd, err := unix.Openat(int(mnt.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("exporting an image: %w", err)
	}
	root := os.NewFile(uintptr(fd), digest)
	defer root.Close()
	tw := tar.NewWriter(w)
	if err := treetar.Pack(ctx, tw, root, ".", ""); err != nil {
		return fmt.Errorf("exporting an image: %w", err)
	}
	return tw.Close()
}
