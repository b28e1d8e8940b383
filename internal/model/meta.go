// Package model holds what every noun of the house has in common.
//
// Nothing below model does I/O, reads a clock or starts a goroutine.
package model

import (
	"regexp"
	"strings"
	"time"

	"lodge/internal/base/errs"
)

// Kind names a noun: "guest", "pool", "network".
type Kind string

// Key addresses one record: a kind and a name.
type Key struct {
	Kind Kind   `json:"kind"`
	Name string `json:"name"`
}

// String writes the key as errors and events refer to it: "guest/web1".
func (k Key) String() string { return string(k.Kind) + "/" + k.Name }

// Meta is the part of a record that the house keeps, not the owner.
type Meta struct {
	Name       string            `json:"name"`
	ID         string            `json:"id"`         // never reused
	Generation int64             `json:"generation"` // raised by each change of the spec
	Created    time.Time         `json:"created"`
	Deleting   *time.Time        `json:"deleting,omitempty"` // set once; the owner then tears down and forgets
	Labels     map[string]string `json:"labels,omitempty"`
}

// Problem says why a record is not where its spec wants it to be. It stands
// beside the phase and never replaces it, so nothing is lost by failing.
type Problem struct {
	Code     string    `json:"code"` // an errs.Kind as text, Crashed or NotBooted
	Message  string    `json:"message"`
	Hint     string    `json:"hint,omitempty"`
	Since    time.Time `json:"since"`
	Attempts int       `json:"attempts"`
	Final    bool      `json:"final,omitempty"` // nobody tries again by themselves, whatever the code says
	Aside    bool      `json:"aside,omitempty"` // it keeps nobody from what was asked for: a guest that runs, but panicked
}

// Codes of problems that are a guest's own.
const (
	Crashed   = "crashed"
	NotBooted = "not-booted" // it runs, and no operating system in it
)

// ProblemOf turns an error into what a person is shown beside the phase. The
// attempt count goes on from last when it is the same problem still.
func ProblemOf(err error, now time.Time, last *Problem) *Problem {
	p := &Problem{Code: errs.KindOf(err).String(), Message: err.Error(), Since: now, Attempts: 1}
	err = errs.Alone(err)
	if ours, ok := err.(*errs.Error); ok {
		p.Message = ours.Words()
	}
	for e := err; e != nil; {
		ours, ok := e.(*errs.Error)
		if !ok {
			break
		}
		if p.Hint == "" {
			p.Hint = ours.Hint
		}
		e = ours.Err
	}
	if last != nil && last.Code == p.Code && last.Message == p.Message {
		p.Since, p.Attempts = last.Since, last.Attempts+1
	}
	return p
}

var label = regexp.MustCompile(`^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$`)

// CheckName says what is wrong with a name that becomes a DNS label and a host
// name; field is what the person called it.
func CheckName(field, name string) error {
	switch {
	case name == "":
		return errs.Bad(field, "is empty", "give a name such as web1")
	case label.MatchString(name):
		return nil
	}
	return errs.Bad(field, strings.Join([]string{"\"", name, "\" is not a name"}, ""),
		"use 1 to 63 lower-case letters, digits and hyphens, starting with a letter and not ending with a hyphen")
}
