package tarball

import (
	"archive/tar"
	"context"
	"io"
	"os"
	"path/filepath"
	"time"

	"lodge/internal/base/treetar"
	"lodge/internal/images"
)

// treeName is where the tree of an upload is in its folder.
const treeName = "tree"

// maxTrailer is what may follow the end of a tar and is read, so that the
// sender's last write succeeds.
const maxTrailer = 1 << 20

// Receive unpacks an upload as it arrives and checks every entry on the way, so
// that what can't be imported is refused before there is any record of it: the
// error names field and fix, and nothing is left. maxSize is what all files may
// have together, in bytes; 0 is DefaultMaxSize. The id goes into image.Spec's
// Upload, and the upload stays until it is discarded.
func (s *Source) Receive(ctx context.Context, body io.Reader, maxSize uint64) (id string, err error) {
	if maxSize == 0 {
		maxSize = DefaultMaxSize
	}
	return s.spool.Take(func(folder string) (time.Time, error) {
		tree := filepath.Join(folder, treeName)
		if err := os.Mkdir(tree, 0o700); err != nil {
			return time.Time{}, images.UploadError(err)
		}
		sender := images.NewSender(ctx, body)
		newest, err := unpack(ctx, sender, tree, maxSize)
		if err == nil {
			_, err = io.Copy(io.Discard, io.LimitReader(sender, maxTrailer)) // padding of tape blocks
		}
		if sender.Err() != nil {
			return newest, sender.Err()
		}
		return newest, refusal(err)
	})
}

func unpack(ctx context.Context, r io.Reader, tree string, maxSize uint64) (newest time.Time, err error) {
	stream, err := images.Decompress(r)
	if err != nil {
		return newest, err
	}
	defer stream.Close()
	root, err := os.Open(tree)
	if err != nil {
		return newest, err
	}
	defer root.Close()
	if err := root.Chmod(0o755); err != nil { // unless the tar says what its root has
		return newest, err
	}
	rules := rules{max: maxSize}
	if err := treetar.Unpack(ctx, tar.NewReader(stream), root, rules.choose); err != nil {
		return newest, err
	}
	return rules.newest, rules.whole()
}
