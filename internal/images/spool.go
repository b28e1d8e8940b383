package images

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
	"lodge/internal/base/ids"
)

// Spool is the folder of what people upload, until images are made of it. Each
// upload is a folder that gets its id for a name only when all of it is there.
type Spool struct{ dir string }

// OpenSpool opens or makes the folder of uploads.
func OpenSpool(dir string) (*Spool, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("folder of uploads: %w", err)
	}
	return &Spool{dir: dir}, nil
}

// unfinished begins the name of the folder of an upload that is being
// received; no id looks like it.
const unfinished = ".upload-"

// stampName is the file in an upload that says when and of what time it is.
const stampName = "stamp"

// Folder is where the upload with this id lies, whole.
func (s *Spool) Folder(id string) string { return filepath.Join(s.dir, id) }

// Take keeps what fill puts into an empty folder, and returns its id. The time
// that fill returns is that of what was uploaded. After an error nothing is
// left.
func (s *Spool) Take(fill func(folder string) (time.Time, error)) (id string, err error) {
	temp, err := os.MkdirTemp(s.dir, unfinished)
	if err != nil {
		return "", UploadError(err)
	}
	defer os.RemoveAll(temp) // it has another name when all went well
	newest, err := fill(temp)
	if err != nil {
		return "", err
	}
	if err := writeStamp(temp, newest); err != nil {
		return "", UploadError(err)
	}
	id = ids.New()
	if err := os.Rename(temp, s.Folder(id)); err != nil {
		return "", UploadError(err)
	}
	return id, nil
}

// writeStamp says when and of what time an upload is. It isn't synced, nor is
// what was uploaded: that would wait for all that the host's guests write. An
// upload from before the host's last boot does not count instead; see Stamp.
func writeStamp(folder string, newest time.Time) error {
	boot, err := os.ReadFile(bootID)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(folder, stampName), fmt.Appendf(boot, "%d\n", newest.Unix()), 0o600)
}

// Stamp returns the time of an upload that was received since the host booted.
// It is Invalid for what is no id, and NotFound for any other upload.
func (s *Spool) Stamp(id string) (newest time.Time, err error) {
	if !ids.Valid(id) {
		return newest, errs.Bad("upload", "an import needs an upload", "use `lodge image import FILE NAME`")
	}
	newest, err = readStamp(s.Folder(id))
	if err != nil {
		err = &errs.Error{
			Op: "image.import", Kind: errs.NotFound, Field: "upload", Err: err,
			Msg: "the uploaded file is not there any more", Hint: "import it again",
		}
	}
	return newest, err
}

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

// Discard deletes an upload once its image is made, or given up; an absent one
// is no error.
func (s *Spool) Discard(id string) error {
	if !ids.Valid(id) {
		return nil
	}
	if err := os.RemoveAll(s.Folder(id)); err != nil {
		return fmt.Errorf("discarding an upload: %w", err)
	}
	return nil
}

// Sweep deletes the uploads that keep does not want, and what broken ones
// left. It may only be called while no upload is being received: at start.
func (s *Spool) Sweep(keep func(id string) bool) error {
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

// Sender reads an upload's body and remembers what went wrong on the way here,
// which is no fault of the file.
type Sender struct {
	ctx  context.Context
	body io.Reader
	err  error
}

// NewSender reads body until ctx ends.
func NewSender(ctx context.Context, body io.Reader) *Sender { return &Sender{ctx: ctx, body: body} }

// Err is what broke the upload off, or nil.
func (s *Sender) Err() error { return s.err }

func (s *Sender) Read(b []byte) (int, error) {
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

// UploadError is an error of this host while an upload is received.
func UploadError(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return &errs.Error{
			Op: "image.import", Kind: errs.NoSpace, Msg: "the disk is full", Err: err,
			Hint: "free some space on the disk of the data directory, then import it again",
		}
	}
	return fmt.Errorf("receiving an upload: %w", err)
}

// HostFailed reports whether an error comes from this host, not from the
// upload.
func HostFailed(err error) bool {
	for _, e := range []unix.Errno{unix.ENOSPC, unix.EDQUOT, unix.EIO, unix.EROFS, unix.EMFILE, unix.ENFILE} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
