package storage

import (
	"fmt"
	"syscall"
	"testing"

	"lodge/internal/base/errs"
)

func TestFailed(t *testing.T) {
	for err, want := range map[error]errs.Kind{
		syscall.ENOSPC: errs.NoSpace,
		syscall.EDQUOT: errs.NoSpace,
		syscall.ENOENT: errs.NotFound,
		syscall.EIO:    errs.Internal,
		errs.Bad("size", "is wrong", "do it right"): errs.Invalid,
	} {
		if got := Failed("x", "y", fmt.Errorf("deep down: %w", err)); errs.KindOf(got) != want {
			t.Errorf("%v became %v, want %v", err, errs.KindOf(got), want)
		}
	}
	if Failed("x", "y", nil) != nil {
		t.Error("success became a failure")
	}
}
