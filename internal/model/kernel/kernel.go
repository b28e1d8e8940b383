// Package kernel says what a kernel is: what guests with a kernel of their own
// boot, and which of them boots which.
package kernel

import (
	"errors"
	"slices"
	"strings"
	"time"

	"lodge/internal/base/errs"
	"lodge/internal/model"
)

// Kind is the noun's name in keys and events.
const Kind model.Kind = "kernel"

// Sort says what a kernel can be booted by. It is the first part of its name.
type Sort string

// The sorts.
const (
	Machine Sort = "linux" // a machine, real or imitated
	Program Sort = "um"    // nothing: it is a program of the host
)

// Spec is what was asked for.
type Spec struct {
	Wish int64 `json:"wish"` // raised by each wish to build it anew
}

// Status is what became of it. A kernel whose Digest is set can be used, even
// while a newer one is being built.
type Status struct {
	Wish       int64          `json:"wish"`       // the wish that Digest answers
	Generation int64          `json:"generation"` // of the spec this status answers
	Digest     string         `json:"digest,omitempty"`
	Size       uint64         `json:"size,omitempty"` // bytes on the host's disk
	Built      *time.Time     `json:"built,omitempty"`
	Info       Info           `json:"info,omitzero"`
	Problem    *model.Problem `json:"problem,omitempty"`
}

// Info is what is known of the content.
type Info struct {
	Version string   `json:"version"`           // as the kernel itself says: "6.1.0-44-cloud-amd64"
	From    string   `json:"from"`              // what it was made from: "user-mode-linux 7.2um1"
	Modules []string `json:"modules,omitempty"` // that are loaded before the guest's root is there, in order
}

// SortOf is the first part of a kernel's name.
func SortOf(name string) Sort {
	sort, _, _ := strings.Cut(name, "/")
	return Sort(sort)
}

// own is the kernel that Lodge compiles itself. It has no modules to load and
// starts faster than those of packages, so it is taken where it is there.
const own = "um/lodge"

// fallbacks are the kernels that are taken in place of the one that suits
// best, in this order, and the first is built where there is none.
var fallbacks = map[Sort][]string{
	Machine: {"linux/debian-12", "linux/debian-13"},
	Program: {"um/debian-sid", "um/debian-13", "um/debian-12"},
}

// Suits is the kernel that a guest of an image of a distribution's release best
// boots.
func Suits(sort Sort, distribution, release string) string {
	if sort == Machine && distribution == "debian" && slices.Contains(fallbacks[sort], "linux/debian-"+release) {
		return "linux/debian-" + release
	}
	if f := fallbacks[sort]; len(f) > 0 {
		return f[0]
	}
	return ""
}

// Choose says which of the kernels that are there a guest boots: the one that
// is wanted by name, or else our own, the one that suits its image, or another
// of that sort. If there is none it is NotFound, and Ref says what to build.
func Choose(there []string, sort Sort, distribution, release, wanted string) (string, error) {
	if wanted != "" {
		switch {
		case SortOf(wanted) != sort:
			return "", errs.Bad("kernel", wanted+" is not what guests of this model boot", "use one that begins with "+string(sort)+"/: lodge kernel ls")
		case !slices.Contains(there, wanted):
			return "", missing(wanted)
		}
		return wanted, nil
	}
	suits := Suits(sort, distribution, release)
	for _, name := range append([]string{own, suits}, fallbacks[sort]...) {
		if SortOf(name) == sort && slices.Contains(there, name) {
			return name, nil
		}
	}
	for _, name := range there {
		if SortOf(name) == sort {
			return name, nil
		}
	}
	if suits == "" {
		return "", &errs.Error{Kind: errs.Unsupported, Field: "kernel", Msg: "there are no kernels called " + string(sort) + "/…", Hint: "lodge kernel ls"}
	}
	return "", missing(suits)
}

func missing(name string) error {
	return &errs.Error{
		Kind: errs.NotFound, Ref: string(Kind) + "/" + name, Field: "kernel",
		Msg: "is not on this host", Hint: "lodge kernel build " + name,
	}
}

// OnItsWay makes of Choose's "there is none" that there will soon be one, or why
// there is not: underWay are the kernels that were asked for and are not there,
// and what keeps them from it.
func OnItsWay(err error, underWay map[string]*model.Problem) error {
	e, ok := errors.AsType[*errs.Error](err)
	if !ok || e.Kind != errs.NotFound {
		return err
	}
	name, _ := strings.CutPrefix(e.Ref, string(Kind)+"/")
	p, ok := underWay[name]
	switch {
	case !ok:
		return err
	case p == nil:
		return &errs.Error{Kind: errs.Busy, Ref: e.Ref, Field: e.Field, Msg: "is still being made", Hint: "wait for it: lodge op ls"}
	}
	return &errs.Error{Kind: errs.NotFound, Ref: e.Ref, Field: e.Field, Msg: "could not be made: " + p.Message, Hint: e.Hint}
}
