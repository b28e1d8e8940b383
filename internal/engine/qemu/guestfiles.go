package qemu

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"time"

	"lodge/internal/base/errs"
	"lodge/internal/engine/qemu/qga"
)

// QEMU's agent reads and writes single files and knows nothing of owners and
// modes. So trees go through a tar file in the guest, which the guest's own tar
// makes or reads: only its root can look at it meanwhile, and it takes room on
// the guest's disk until it is removed.

// parcelIn is where such a file lies.
const parcelIn = "/var/tmp/.lodge-"

// Statuses of the scripts below beside tar's own.
const (
	statusMissing = 3
	statusNoDir   = 4
	statusNoTar   = 127
)

// all has tar keep everything where it can. A busybox's keeps less.
const all = `x=; tar --xattrs --version >/dev/null 2>&1 && x="--numeric-owner --xattrs --xattrs-include=*"
`

// packing makes the parcel $1 of path $2. The status of a tar that saw files
// change is 1.
const packing = all + `umask 077
t=$1 p=$2
case $p in */|*/.) p=$(cd -- "$p" 2>/dev/null && pwd -P) || exit 3;; esac
[ -e "$p" ] || [ -L "$p" ] || exit 3
b=$(basename -- "$p")
[ "$b" = / ] && b=.
set -C
: >"$t" || exit 5
set +C
set -f
tar $x -C "$(dirname -- "$p")" -cf "$t" -- "$b"
r=$?
[ $r = 1 ] && r=0
exit $r`

// receiving makes an empty parcel $1 for what is to be unpacked in folder $2.
const receiving = `umask 077
[ -e "$2" ] || exit 3
[ -d "$2" ] || exit 4
set -C
: >"$1"`

const unpacking = all + `set -f
tar $x -C "$2" -xpf "$1"`

// removing removes the parcel.
const removing = `rm -f -- "$1"`

// parcelTime is how long the guest's tar may take.
const parcelTime = time.Hour

// script runs one of the above in the guest, and says what went wrong.
func (v theirVoice) script(ctx context.Context, c *qga.Client, text, parcel, where string) error {
	ctx, cancel := context.WithTimeout(ctx, parcelTime)
	defer cancel()
	pid, err := c.Start(ctx, qga.Program{Path: shell, Args: []string{"-c", text, "sh", parcel, where}, Capture: true})
	if err != nil {
		return refusal(err)
	}
	for pace := firstPoll; ; pace = min(pace*3/2, lastPoll) {
		r, err := c.Result(ctx, pid)
		if err != nil {
			return refusal(err)
		}
		if r.Exited {
			return parcelError(r, where)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pace):
		}
	}
}

// parcelError is what the end of a script means to a person.
func parcelError(r qga.Result, where string) error {
	switch r.Status {
	case 0:
		return nil
	case statusMissing:
		return &errs.Error{Op: "qga", Kind: errs.NotFound, Field: "path", Msg: fmt.Sprintf("%q does not exist", where)}
	case statusNoDir:
		return errs.Bad("path", fmt.Sprintf("%q is not a folder", where), "")
	case statusNoTar:
		return &errs.Error{Op: "qga", Kind: errs.Unsupported, Msg: "the guest has no tar, which its QEMU agent needs to copy files", Hint: "install tar in the guest"}
	}
	first, _, _ := strings.Cut(strings.TrimSpace(string(r.Err)), "\n")
	return &errs.Error{Op: "qga", Kind: errs.Conflict, Msg: fmt.Sprintf("the guest's tar ended with status %d: %.200q", r.Status, first)}
}

// parcel returns the agent of a guest that copies files, and a name that
// nobody can guess.
func (v theirVoice) parcel(where string) (*qga.Client, string, error) {
	if !path.IsAbs(where) {
		return nil, "", errs.Bad("path", fmt.Sprintf("%q is not an absolute path", where), "start it with /")
	}
	for _, command := range []string{"guest-exec", "guest-file-open"} {
		if _, err := v.a.speaker(v.g.Status.Started, command); err != nil {
			return nil, "", err
		}
	}
	c, err := v.a.speaker(v.g.Status.Started, "guest-file-read")
	return c, parcelIn + rand.Text(), err
}

// remove takes a parcel away, also for a caller who is gone.
func (v theirVoice) remove(ctx context.Context, c *qga.Client, parcel string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), toldWithin)
	defer cancel()
	return v.script(ctx, c, removing, parcel, "")
}

// Pack writes a file or tree of the guest as a tar stream.
func (v theirVoice) Pack(ctx context.Context, file string, w io.Writer) (err error) {
	c, parcel, err := v.parcel(file)
	if err != nil {
		return err
	}
	defer func() { err = errs.Also(err, v.remove(ctx, c, parcel)) }()
	if err := v.script(ctx, c, packing, parcel, file); err != nil {
		return err
	}
	f, err := c.Open(ctx, parcel, "r")
	if err != nil {
		return refusal(err)
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{f}, make([]byte, qga.ChunkMax))
	return refusal(errors.Join(err, f.Close()))
}

// Unpack makes what the tar stream r holds below the guest's dir.
func (v theirVoice) Unpack(ctx context.Context, dir string, r io.Reader) (err error) {
	c, parcel, err := v.parcel(dir)
	if err != nil {
		return err
	}
	if err := v.script(ctx, c, receiving, parcel, dir); err != nil {
		return err
	}
	defer func() { err = errs.Also(err, v.remove(ctx, c, parcel)) }()
	f, err := c.Open(ctx, parcel, "w")
	if err != nil {
		return refusal(err)
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{f}, struct{ io.Reader }{r}, make([]byte, qga.ChunkMax))
	if err = errors.Join(err, f.Close()); err != nil {
		return refusal(err)
	}
	return v.script(ctx, c, unpacking, parcel, dir)
}
