// Package disk is the source of images that somebody uploads as a disk with a
// boot loader of its own: qcow2, raw, VMDK, VHD, VHDX and VDI become a qcow2
// that stands alone; an ISO stays what it is, a disc.
package disk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"lodge/internal/base/diskfile"
	"lodge/internal/base/errs"
	"lodge/internal/base/tool"
	"lodge/internal/base/units"
	"lodge/internal/images"
	"lodge/internal/model/image"
)

// Limits of what an upload may be.
const (
	// DefaultMaxSize is what a file may have unpacked, its empty stretches
	// included, when the one who imports says nothing else.
	DefaultMaxSize = 64 << 30
	// mostVirtual is the largest disk that a guest may be shown. A file of some
	// kilobytes can claim to be an exabyte.
	mostVirtual = 16 << 40
)

// Source makes images of uploads, which Receive puts into its spool.
type Source struct{ spool *images.Spool }

// New returns the source of the uploads in spool.
func New(spool *images.Spool) *Source { return &Source{spool: spool} }

// Name is "disk".
func (*Source) Name() string { return "disk" }

// fileName is where the file of an upload is in its folder.
const fileName = "disk"

// Check says Invalid when spec names no upload, NotFound when it is gone, and
// Unsupported when the host lacks a program.
func (s *Source) Check(spec image.Spec) error {
	if spec.Release != "" || spec.Variant != "" {
		return errs.Bad("release", "an import has no release and no variant", "leave both out")
	}
	if err := checkArchitecture(spec.Architecture); err != nil {
		return err
	}
	if _, err := s.spool.Stamp(spec.Upload); err != nil {
		return err
	}
	return tool.Need("image.import", map[string]string{"qemu-img": "qemu-utils", "setpriv": "util-linux", "prlimit": "util-linux"})
}

// Likely reports whether an upload that begins with head, which may be
// compressed, is for this source. HeadSize bytes suffice.
func Likely(head []byte) bool {
	stream, err := images.Decompress(&prefix{head})
	if err != nil {
		return false
	}
	defer stream.Close()
	plain := make([]byte, diskfile.Head)
	n, _ := io.ReadFull(stream, plain) // as far as it goes
	return diskfile.Likely(plain[:n])
}

// HeadSize is how much of an upload Likely wants to see: of a compressed one
// that unpacks to more than the first sector in any case.
const HeadSize = 64 << 10

// prefix reads as a stream that breaks off: what follows is not an end.
type prefix struct{ b []byte }

func (p *prefix) Read(b []byte) (int, error) {
	if len(p.b) == 0 {
		return 0, io.ErrUnexpectedEOF
	}
	n := copy(b, p.b)
	p.b = p.b[n:]
	return n, nil
}

// Receive keeps an upload if it is a disk that can be imported; else the error
// names field and fix, and nothing is left. maxSize is what the file may have
// unpacked; 0 is DefaultMaxSize. The id goes into image.Spec's Upload, and the
// upload stays until it is discarded.
func (s *Source) Receive(ctx context.Context, body io.Reader, maxSize uint64) (id string, err error) {
	if maxSize == 0 {
		maxSize = DefaultMaxSize
	}
	return s.spool.Take(func(folder string) (time.Time, error) {
		f, err := os.OpenFile(filepath.Join(folder, fileName), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
		if err != nil {
			return time.Time{}, images.UploadError(err)
		}
		defer f.Close()
		sender := images.NewSender(ctx, body)
		size, err := keep(f, sender, maxSize)
		if sender.Err() != nil {
			return time.Time{}, sender.Err()
		}
		if err == nil {
			_, err = look(f, size)
		}
		return time.Time{}, refusal(err)
	})
}

// keep unpacks a stream into f. What is zeros takes no room.
func keep(f *os.File, r io.Reader, maxSize uint64) (size int64, err error) {
	stream, err := images.Decompress(r)
	if err != nil {
		return 0, err
	}
	defer stream.Close()
	b := make([]byte, 64<<10)
	for {
		n, err := io.ReadFull(stream, b)
		if uint64(size)+uint64(n) > maxSize {
			return 0, errs.Bad("max_size", "the disk is larger than "+units.Bytes(maxSize),
				"raise the limit with `--max-size 200GiB` (max_size in the API) if it is meant to be that large")
		}
		if !zero(b[:n]) {
			if _, err := f.WriteAt(b[:n], size); err != nil {
				return 0, err
			}
		}
		size += int64(n)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) && n > 0 && atEnd(stream) {
			return size, f.Truncate(size)
		}
		if err != nil {
			return 0, err
		}
	}
}

// atEnd tells a stream that ended from one that was cut within its
// compression: only the former goes on saying that it ended.
func atEnd(r io.Reader) bool {
	_, err := r.Read(make([]byte, 1))
	return errors.Is(err, io.EOF)
}

func zero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// look reads the header and refuses what no guest may be shown.
func look(f *os.File, size int64) (diskfile.Header, error) {
	h, err := diskfile.Look(f, size)
	if err == nil && h.Size > mostVirtual {
		err = tooLarge()
	}
	return h, err
}

func tooLarge() error {
	return errs.Bad("file", "it claims to be a disk of more than "+units.Bytes(mostVirtual), "import a smaller disk")
}

// refusal turns an error of unpacking or checking into one for the person.
func refusal(err error) error {
	if _, ours := errors.AsType[*errs.Error](err); err == nil || ours || errors.Is(err, context.Canceled) {
		return err
	}
	if images.HostFailed(err) {
		return images.UploadError(err)
	}
	return &errs.Error{Op: "image.import", Kind: errs.Invalid, Field: "file", Err: err,
		Msg: fmt.Sprintf("the file cannot be read to its end: %v", err), Hint: "give a whole file, plain or compressed with gzip, xz or zstd"}
}

// Make turns an upload into the image's file. The upload stays; see
// images.Spool.
func (s *Source) Make(ctx context.Context, spec image.Spec, _, out string, told images.Told) (image.Info, error) {
	in, err := os.Open(filepath.Join(s.spool.Folder(spec.Upload), fileName))
	if err != nil {
		return image.Info{}, err
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return image.Info{}, err
	}
	h, err := look(in, st.Size())
	if err != nil {
		return image.Info{}, err
	}
	if h.Format == diskfile.ISO {
		arch, err := architecture(in, h.Format, spec)
		if err != nil {
			return image.Info{}, err
		}
		// One file may have two names; nothing writes to either.
		return image.Info{Disk: string(diskfile.ISO), DiskSize: h.Size, Architecture: arch}, os.Link(in.Name(), out)
	}
	size, err := convert(ctx, in, h, out, told)
	if err != nil {
		return image.Info{}, err
	}
	made, err := os.Open(out)
	if err != nil {
		return image.Info{}, err
	}
	defer made.Close()
	arch, err := architecture(made, diskfile.QCOW2, spec)
	return image.Info{Disk: string(diskfile.QCOW2), DiskSize: size, Architecture: arch}, err
}
