package fsx

import (
	"errors"
	"fmt"

	"lodge/internal/base/errs"
)

// Room is the disk that a store makes large things on. Its errors tell what to
// do when that is full.
type Room struct {
	Dir  string // on that disk
	Op   string // what was done, for the errors
	Kept string // what lies there: "images"
	Hint string // how to make room
}

// fullBelow is how many free bytes count as none once something failed.
const fullBelow = 1 << 20

// Need is NoSpace if fewer than n bytes are free.
func (r Room) Need(n uint64) error {
	free, err := Free(r.Dir)
	if err != nil {
		return fmt.Errorf("the disk of %s: %w", r.Kept, err)
	}
	if free < n {
		return &errs.Error{Op: r.Op, Kind: errs.NoSpace, Hint: r.Hint,
			Msg: fmt.Sprintf("only %dMiB are free where %s are kept; it needs %dMiB", free>>20, r.Kept, n>>20)}
	}
	return nil
}

// Failed gives what went wrong the kind that says what to do about it: a tool
// that met a full disk only says that it failed.
func (r Room) Failed(what string, err error) error {
	if e, ours := errors.AsType[*errs.Error](err); ours && e.Kind != errs.Internal && e.Kind != errs.Unavailable {
		return err
	}
	if r.Need(fullBelow) != nil {
		return r.full(err)
	}
	return r.Explain(what, err)
}

// Explain says NoSpace if a full disk or quota caused err. Other errors begin
// with what was being done, unless they are words for a person already.
func (r Room) Explain(what string, err error) error {
	if IsFull(err) {
		return r.full(err)
	}
	if _, ours := errors.AsType[*errs.Error](err); ours {
		return err
	}
	return fmt.Errorf("%s: %w", what, err)
}

func (r Room) full(err error) error {
	return &errs.Error{Op: r.Op, Kind: errs.NoSpace, Msg: "the disk is full", Hint: r.Hint, Err: err}
}
