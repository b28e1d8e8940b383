package fsx

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
)

func TestRoom(t *testing.T) {
	r := Room{Dir: t.TempDir(), Op: "image.build", Kept: "images", Hint: "free some"}
	if err := r.Need(0); err != nil {
		t.Errorf("no need: %v", err)
	}
	if err := r.Need(1 << 62); !errs.Is(err, errs.NoSpace) {
		t.Errorf("a need of 4 EiB: %v", err)
	}
	if err := (Room{Dir: r.Dir + "/none", Kept: "images"}).Need(1); !errors.Is(err, unix.ENOENT) {
		t.Errorf("a disk that is not there: %v", err)
	}
}

func TestRoomExplains(t *testing.T) {
	r := Room{Dir: t.TempDir(), Op: "image.build", Kept: "images", Hint: "free some"}
	own := errs.Bad("name", "is wrong", "")
	for _, c := range []struct {
		name string
		err  error
		kind errs.Kind
		text string
	}{
		{"a full disk", unix.ENOSPC, errs.NoSpace, ""},
		{"a full quota", unix.EDQUOT, errs.NoSpace, ""},
		{"another", unix.EIO, errs.Internal, "building: input/output error"},
		{"one of ours", own, errs.Invalid, own.Error()},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, err := range []error{r.Failed("building", c.err), r.Explain("building", c.err)} {
				if !errs.Is(err, c.kind) || !errors.Is(err, c.err) {
					t.Errorf("became %v of kind %v", err, errs.KindOf(err))
				}
				if c.text != "" && err.Error() != c.text {
					t.Errorf("says %q, not %q", err, c.text)
				}
			}
		})
	}
}
