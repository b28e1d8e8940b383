package tarball

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
	"lodge/internal/base/ids"
	"lodge/internal/base/treetar"
)

// An upload is unpacked as it arrives, into a folder that gets its id for a
// name only when all of it is there. Beside the tree is a stamp.
func (s *Source) upload(id string) string { return filepath.Join(s.dir, id) }

const (
	treeName  = "tree"
	stampName = "stamp"
)

// Receive unpacks an upload and checks every entry on the way, so that what
// can't be imported is refused before there is any record of it: the error
// names field and fix, and nothing is left. maxSize is what all files may have
// together, in bytes; 0 is DefaultMaxSize. The id goes into image.Spec's
// Upload, and the upload stays until Discard.
func (s *Source) Receive(ctx context.Context, body io.Reader, maxSize uint64) (id string, err error) {
	if maxSize == 0 {
		maxSize = DefaultMaxSize
	}
	temp, err := os.MkdirTemp(s.dir, unfinished)
	if err != nil {
		return "", hostError(err)
	}
	defer os.RemoveAll(temp) // it has another name when all went well
	tree := filepath.Join(temp, treeName)
	if err := os.Mkdir(tree, 0o700); err != nil {
		return "", hostError(err)
	}
	sender := &sender{ctx: ctx, body: body}
	newest, err := unpack(ctx, sender, tree, maxSize)
	if err == nil {
		_, err = io.Copy(io.Discard, io.LimitReader(sender, maxTrailer)) // padding of tape blocks
	}
	if sender.err != nil {
		return "", sender.err
	}
	if err != nil {
		return "", refusal(err)
	}
	if err := writeStamp(temp, newest); err != nil {
		return "", hostError(err)
	}
	id = ids.New()
	if err := os.Rename(temp, s.upload(id)); err != nil {
		return "", hostError(err)
	}
	return id, nil
}

// unfinished begins the name of the folder of an upload that is being
// received; no id looks like it.
const unfinished = ".upload-"

// maxTrailer is what may follow the end of a tar and is read, so that the
// sender's last write succeeds.
const maxTrailer = 1 << 20

func unpack(ctx context.Context, r io.Reader, tree string, maxSize uint64) (newest time.Time, err error) {
	stream, err := decompress(r)
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

// writeStamp says when and of what time an upload is. It isn't synced, nor is
// the tree: that would wait for all that the host's guests write. An upload
// from before the host's last boot does not count instead; see readStamp.
func writeStamp(folder string, newest time.Time) error {
	boot, err := os.ReadFile(bootID)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(folder, stampName), fmt.Appendf(boot, "%d\n", newest.Unix()), 0o600)
}

// readStamp returns the time of the newest entry of an upload that was
// received since the host booted.
func readStamp(folder string) (newest time.Time, err error) {
	boot, err := os.ReadFile(bootID)
	if err != nil {
		return newest, err
	}
	b, err := os.ReadFile(filepath.Join(folder, stampName))
	if err != nil {
		return newest, err
	}
	stamp, ok := bytes.CutPrefix(b, boot)
	if !ok {
		return newest, errors.New("the upload is from before the host was started")
	}
	seconds, err := strconv.ParseInt(string(bytes.TrimSpace(stamp)), 10, 64)
	return time.Unix(seconds, 0), err
}

// bootID is another one after each boot (proc_sys_kernel(5)).
const bootID = "/proc/sys/kernel/random/boot_id"

// sender reads an upload's body and remembers what went wrong on the way here,
// which is no fault of the tar.
type sender struct {
	ctx  context.Context
	body io.Reader
	err  error
}

func (s *sender) Read(b []byte) (int, error) {
	err := s.ctx.Err()
	n := 0
	if err == nil {
		n, err = s.body.Read(b)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = &errs.Error{Op: "image.import", Kind: errs.Cancelled, Msg: "the upload broke off", Hint: "import it again", Err: err}
	}
	return n, err
}

// Discard deletes an upload once its image is made, or given up; an absent one
// is no error.
func (s *Source) Discard(id string) error {
	if !ids.Valid(id) {
		return nil
	}
	if err := os.RemoveAll(s.upload(id)); err != nil {
		return fmt.Errorf("discarding an upload: %w", err)
	}
	return nil
}

// Sweep deletes the uploads that keep does not want, and what broken ones
// left. It may only be called while no upload is being received: at start.
func (s *Source) Sweep(keep func(id string) bool) error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return fmt.Errorf("folder of uploads: %w", err)
	}
	var failed []error
	for _, e := range entries {
		if !ids.Valid(e.Name()) || !keep(e.Name()) {
			failed = append(failed, os.RemoveAll(filepath.Join(s.dir, e.Name())))
		}
	}
	return errors.Join(failed...)
}

// decompress tells the compression by the first bytes, not by a name.
func decompress(r io.Reader) (io.ReadCloser, error) {
	in := bufio.NewReaderSize(r, 64<<10)
	head, err := in.Peek(6)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		return gzip.NewReader(in)
	case bytes.HasPrefix(head, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		x, err := xz.ReaderConfig{DictCap: maxWindow}.NewReader(in)
		return io.NopCloser(x), err
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(in, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	}
	return io.NopCloser(in), nil
}

// maxWindow bounds the memory that a compressed file may demand: what `xz -9`
// and `zstd --ultra -22 --long=27` use.
const maxWindow = 128 << 20

// hostError is an error of this host while an upload is received.
func hostError(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return &errs.Error{
			Op: "image.import", Kind: errs.NoSpace, Msg: "the disk is full", Err: err,
			Hint: "free some space on the disk of the data directory, then import it again",
		}
	}
	return fmt.Errorf("receiving an upload: %w", err)
}

// system reports whether an error comes from this host, not from the tar.
func system(err error) bool {
	for _, e := range []unix.Errno{unix.ENOSPC, unix.EDQUOT, unix.EIO, unix.EROFS, unix.EMFILE, unix.ENFILE} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
