// Package errs is the one error vocabulary of the house.
//
// A Kind says what the caller may do about an error; a message is written for
// the person who asked; a hint says what to try next; everything else is for
// the log.
package errs

import (
	"errors"
	"fmt"
	"strings"
)

// Kind is the class of an error. The set is closed: it maps one to one to an
// HTTP status and to a CLI exit code, and it alone decides whether work is
// tried again.
type Kind uint8

// The kinds, from "our fault" to "somebody else's".
const (
	Internal    Kind = iota // our fault; the person sees no detail
	Invalid                 // the request can never succeed as written
	NotFound                // what was named does not exist
	Exists                  // what was to be made is there already
	Conflict                // someone else changed it first, or its state forbids it
	Denied                  // the caller may not
	Busy                    // may succeed later, by itself
	Unsupported             // this engine, pool or host cannot do that
	NoSpace                 // a disk, a quota or an address range is full
	Unavailable             // a host or service cannot be reached
	Cancelled               // the caller gave up
)

var kindNames = [...]string{
	"internal", "invalid", "not-found", "exists", "conflict", "denied",
	"busy", "unsupported", "no-space", "unavailable", "cancelled",
}

// String returns the kind's name as it is spelt on the wire: "not-found".
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return "internal"
}

// ParseKind is the inverse of String; an unknown name is Internal.
func ParseKind(s string) Kind {
	for i, n := range kindNames {
		if n == s {
			return Kind(i)
		}
	}
	return Internal
}

// Retry reports whether the same request may succeed later unchanged. A full
// disk counts: after space is made, everything goes on. What nobody foresaw
// does not: whoever waits should hear of it now.
func (k Kind) Retry() bool {
	return k == Busy || k == Conflict || k == Unavailable || k == NoSpace
}

// Error is an error with a place, a class and words for a person.
type Error struct {
	Op    string // what we were doing: "guest.start"
	Kind  Kind
	Ref   string // what we were doing it to: "guest/web1"
	Field string // the field of the request that is wrong: "memory"; may be empty
	Msg   string // for the person; lower case, no trailing period
	Hint  string // what to try next; may be empty
	Err   error  // for the log
}

// Error joins place, message and cause for the log.
func (e *Error) Error() string {
	var b strings.Builder
	for _, s := range []string{e.Op, e.Ref, e.Field, e.Msg} {
		if s == "" {
			continue
		}
		if b.Len() > 0 {
			b.WriteString(": ")
		}
		b.WriteString(s)
	}
	if e.Err != nil {
		fmt.Fprintf(&b, ": %v", e.Err)
	}
	return b.String()
}

// Words says what is wrong to a person: place and message without the cause,
// unless there is nothing else to say.
func (e *Error) Words() string {
	var parts []string
	for _, s := range []string{e.Ref, e.Field, e.Msg} {
		if s != "" {
			parts = append(parts, s)
		}
	}
	if e.Msg == "" || e.Kind == Internal {
		return e.Error()
	}
	return strings.Join(parts, ": ")
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// KindOf returns the outermost kind in err's chain; an error that is not ours
// is Internal.
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return Internal
}

// Is reports whether err's outermost kind is k. A nil error is of no kind.
func Is(err error, k Kind) bool { return err != nil && KindOf(err) == k }

// Bad says that a field of a request can never succeed as written, and how to
// write it instead.
func Bad(field, msg, hint string) *Error {
	return &Error{Kind: Invalid, Field: field, Msg: msg, Hint: hint}
}

// Missing says that the named record does not exist.
func Missing(ref, hint string) *Error {
	return &Error{Kind: NotFound, Ref: ref, Msg: "does not exist", Hint: hint}
}

// About is err as one about the record ref, unless it says itself what it is
// about or is no error of ours.
func About(err error, ref string) error {
	if known, ok := errors.AsType[*Error](err); ok && known.Ref == "" {
		named := *known
		named.Ref = ref
		return &named
	}
	return err
}

// Alone is the one error that err joins, if it joins no other.
func Alone(err error) error {
	if j, ok := err.(interface{ Unwrap() []error }); ok && len(j.Unwrap()) == 1 {
		return Alone(j.Unwrap()[0])
	}
	return err
}

// Also adds what went wrong while cleaning up behind err. An error alone stays
// what it is.
func Also(err, more error) error {
	switch {
	case more == nil:
		return err
	case err == nil:
		return more
	}
	return errors.Join(err, more)
}
