package images

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"lodge/internal/base/diskfile"
	"lodge/internal/base/errs"
	"lodge/internal/base/fsx"
	"lodge/internal/model/image"
)

// tree is the extension of the file name of a blob that is a root tree. That of
// a disk is its format.
const tree = ".erofs"

// extensions are all that blobs have.
var extensions = []string{tree, "." + string(diskfile.QCOW2), "." + string(diskfile.ISO)}

// extensionOf is that of an image of which info is known.
func extensionOf(info image.Info) string {
	if info.Disk == "" {
		return tree
	}
	return "." + info.Disk
}

// spare is what must be free before a build starts: a finished minimal Debian
// tree and its image need about twice this, so less would only fail later.
const spare = 256 << 20

// Store keeps images as files named by the SHA-256 of their content: root trees
// as EROFS, disks as they are. It mounts each tree at most once on the host,
// whoever uses it, and a disk never.
//
// A blob is whole or not there: it is made in a private folder, synced, and
// renamed into place.
type Store struct {
	dir    string
	runDir string
	log    *slog.Logger
	mu     sync.Mutex // one mount or unmount at a time
}

// Built is an image that is in the store.
type Built struct {
	Digest string // SHA-256 of the file, 64 hexadecimal digits
	Size   uint64 // bytes of the file
	Info   image.Info
}

// Blob is a file in the store.
type Blob struct {
	Digest  string
	Size    uint64
	Mounted bool
}

// OpenStore opens or makes the store at dir, whose mounts are at
// runDir/images, and removes what builds left that a crash cut off. Only one
// process may have a store open.
func OpenStore(dir, runDir string, log *slog.Logger) (*Store, error) {
	s := &Store{dir: dir, runDir: runDir, log: log}
	for _, d := range []string{s.blobs(), s.temps(), s.mounts()} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("image store: %w", err)
		}
	}
	left, err := os.ReadDir(s.temps())
	if err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	for _, e := range left {
		log.Info("removing an unfinished image build", "folder", e.Name())
		if err := os.RemoveAll(filepath.Join(s.temps(), e.Name())); err != nil {
			return nil, fmt.Errorf("image store: removing an unfinished build: %w", err)
		}
	}
	return s, nil
}

func (s *Store) blobs() string  { return filepath.Join(s.dir, "blobs") }
func (s *Store) temps() string  { return filepath.Join(s.dir, "tmp") }
func (s *Store) mounts() string { return filepath.Join(s.runDir, "images") }

func (s *Store) blob(digest, extension string) string {
	return filepath.Join(s.blobs(), digest+extension)
}

// Build makes an image and puts it in the store; the same content built again
// is the same blob. After an error nothing of it is left. Calls run at the same
// time; that one image isn't built twice at once is the caller's matter.
func (s *Store) Build(ctx context.Context, source Source, spec image.Spec, told Told) (built Built, err error) {
	if err := source.Check(spec); err != nil {
		return Built{}, err
	}
	if err := s.disk().Need(spare); err != nil {
		return Built{}, err
	}
	temp, err := os.MkdirTemp(s.temps(), source.Name()+"-")
	if err != nil {
		return Built{}, s.disk().Explain("building an image", err)
	}
	defer func() {
		if e := os.RemoveAll(temp); e != nil {
			s.log.Warn("an unfinished image build could not be removed", "folder", temp, "error", e)
		}
	}()
	work, out := filepath.Join(temp, "work"), filepath.Join(temp, "image")
	if err := os.Mkdir(work, 0o700); err != nil {
		return Built{}, s.disk().Explain("building an image", err)
	}
	info, err := source.Make(ctx, spec, work, out, told)
	if ctx.Err() != nil {
		return Built{}, &errs.Error{Op: "image.build", Kind: errs.Cancelled, Msg: "the build was cancelled", Err: errors.Join(err, ctx.Err())}
	}
	if err != nil {
		return Built{}, s.disk().Failed("building an image", err)
	}
	digest, size, err := seal(out)
	if err == nil {
		err = os.Rename(out, s.blob(digest, extensionOf(info)))
	}
	if err == nil {
		err = fsx.SyncDir(s.blobs())
	}
	if err != nil {
		return Built{}, s.disk().Explain("storing an image", err)
	}
	return Built{Digest: digest, Size: size, Info: info}, nil
}

// disk is the one that images lie and are made on.
func (s *Store) disk() fsx.Room {
	return fsx.Room{Dir: s.dir, Op: "image.build", Kept: "images",
		Hint: "free some space on the disk of the data directory (`lodge image ls` shows what images take), then try again"}
}

// blobMode lets the monitors of guests, which are no one's programs, read the
// image that they are handed. Nobody but root gets at a blob by its path: the
// store's folders are root's.
const blobMode = 0o444

// seal makes the file at path durable and returns its digest and size.
func seal(path string) (digest string, size uint64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	if err != nil {
		return "", 0, err
	}
	if err := f.Chmod(blobMode); err != nil {
		return "", 0, err
	}
	return hex.EncodeToString(h.Sum(nil)), uint64(n), f.Sync()
}

// valid refuses what is not a digest, so that it can become part of a path.
func valid(digest string) error {
	if b, err := hex.DecodeString(digest); err != nil || len(b) != sha256.Size || digest != strings.ToLower(digest) {
		return errs.Bad("digest", fmt.Sprintf("%q is not the digest of an image", digest), "it has 64 hexadecimal digits")
	}
	return nil
}

// Open opens a blob for reading. A missing one is NotFound.
func (s *Store) Open(digest string) (*os.File, error) {
	if err := valid(digest); err != nil {
		return nil, err
	}
	var f *os.File
	err := os.ErrNotExist
	for _, x := range extensions {
		if f, err = os.Open(s.blob(digest, x)); !errors.Is(err, os.ErrNotExist) {
			break
		}
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil, &errs.Error{
			Kind: errs.NotFound, Ref: "image/" + digest[:12], Err: err,
			Msg: "its content is not on this host", Hint: "build or import the image again",
		}
	}
	return f, err
}

// File returns the path of a blob, for guests that take the image as a disk.
// They may hold it open as long as they run, also after it was removed.
func (s *Store) File(digest string) (string, error) {
	blob, err := s.Open(digest)
	if err != nil {
		return "", err
	}
	defer blob.Close()
	// One that an earlier lodged stored is root's alone.
	return blob.Name(), blob.Chmod(blobMode)
}

// Blobs lists what is stored, sorted by digest.
func (s *Store) Blobs() ([]Blob, error) {
	entries, err := os.ReadDir(s.blobs())
	if err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	var blobs []Blob
	for _, e := range entries {
		extension := filepath.Ext(e.Name())
		digest := strings.TrimSuffix(e.Name(), extension)
		if !slices.Contains(extensions, extension) || valid(digest) != nil {
			continue
		}
		info, err := e.Info()
		if err != nil {
			continue // removed meanwhile
		}
		blobs = append(blobs, Blob{Digest: digest, Size: uint64(info.Size()), Mounted: mounted(s.mountpoint(digest))})
	}
	return blobs, nil
}

// Remove unmounts and deletes a blob; an absent one is no error. It is Busy
// while something still uses its mount.
func (s *Store) Remove(ctx context.Context, digest string) error {
	if err := s.Unmount(ctx, digest); err != nil {
		return err
	}
	for _, x := range extensions {
		if err := os.Remove(s.blob(digest, x)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("removing an image: %w", err)
		}
	}
	return fsx.SyncDir(s.blobs())
}
