package images

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
	"lodge/internal/base/treetar"
)

// Export writes an image to w: "erofs" is the file as it is stored; "tar" is
// the tree with owners, modes, times, extended attributes and hard links,
// names starting with "./".
func (s *Store) Export(ctx context.Context, digest, format string, w io.Writer) error {
	blob, err := s.Open(digest)
	if err != nil {
		return err
	}
	defer blob.Close()
	switch format {
	case "erofs":
		_, err := io.Copy(w, blob)
		return err
	case "tar":
	default:
		return errs.Bad("format", fmt.Sprintf("%q is not a format of images", format), "use tar or erofs")
	}
	tree, err := attachable(blob.Name())
	if err != nil {
		return fmt.Errorf("exporting an image: %w", err)
	}
	defer tree.Close()
	fd, err := unix.Openat(int(tree.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
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
