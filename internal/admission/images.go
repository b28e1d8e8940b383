package admission

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"lodge/internal/base/errs"
	"lodge/internal/base/ids"
	"lodge/internal/model/image"
	"lodge/internal/model/operation"
	"lodge/internal/store"
	"lodge/internal/store/tables"
)

// ImageWish asks for an image made from packages.
type ImageWish struct {
	Name    string // what to build: "debian/12", "busybox"
	Variant image.Variant
	As      string // name of the record; empty: derived
	Rebuild bool
}

// parseImage splits what to build into a source and its release.
func parseImage(w ImageWish) (name string, s image.Spec, err error) {
	if err := CheckImageName("name", w.Name); err != nil {
		return "", s, err
	}
	s.Source, s.Release, _ = strings.Cut(w.Name, "/")
	s.Variant = w.Variant
	if s.Release != "" && s.Variant == "" {
		s.Variant = image.Standard
	}
	if s.Variant != "" && s.Variant != image.Minimal && s.Variant != image.Standard {
		return "", s, errs.Bad("variant", fmt.Sprintf("%q is not a variant", w.Variant), "use minimal or standard")
	}
	name = w.As
	if name == "" {
		name = w.Name
		if s.Variant == image.Minimal {
			name += "-minimal"
		}
	}
	return name, s, CheckImageName("as", name)
}

// BuildImage asks for an image. One that is there, or on its way, is not built
// again unless asked: the receipt then answers for the work under way.
func (d *Door) BuildImage(ctx context.Context, by string, w ImageWish) (Operation, error) {
	name, spec, err := parseImage(w)
	if err != nil {
		return Operation{}, err
	}
	if err := d.CheckSource(spec); err != nil {
		return Operation{}, err
	}
	return d.wishImage(ctx, by, "image.build", name, func(r *tables.ImageRecord) error {
		old := r.Spec
		if old.Source != spec.Source || old.Release != spec.Release || old.Variant != spec.Variant {
			return &errs.Error{Kind: errs.Exists, Ref: "image/" + name, Msg: "exists and is made from something else", Hint: "choose another name with --as, or remove it: lodge image rm " + name}
		}
		failed := r.Status.Problem != nil && r.Status.Generation >= r.Generation
		answered := r.Status.Wish >= old.Wish
		if w.Rebuild && answered || failed {
			r.Spec.Wish++
		}
		return nil
	}, spec)
}

// ImportImage asks for an image that source makes from an upload that is
// spooled already. A disk may be said to be for an architecture, if it does not
// show that itself.
func (d *Door) ImportImage(ctx context.Context, by, name, source, upload, architecture string) (Operation, error) {
	if err := CheckImageName("name", name); err != nil {
		return Operation{}, err
	}
	if !ids.Valid(upload) {
		return Operation{}, errs.Bad("upload", "is not the id of an upload", "")
	}
	spec := image.Spec{Source: source, Upload: upload, Architecture: architecture}
	if err := d.CheckSource(spec); err != nil {
		return Operation{}, err
	}
	return d.wishImage(ctx, by, "image.import", name, func(r *tables.ImageRecord) error {
		return &errs.Error{Kind: errs.Exists, Ref: "image/" + name, Field: "name", Msg: "exists already", Hint: "choose another name, or remove it: lodge image rm " + name}
	}, spec)
}

func (d *Door) wishImage(ctx context.Context, by, verb, name string, again func(*tables.ImageRecord) error, fresh image.Spec) (Operation, error) {
	return d.transact(ctx, by, verb, func(tx *store.Tx) ([]operation.Subject, error) {
		r, err := there(d.Tables.Images, image.Kind, name)
		switch {
		case errs.Is(err, errs.NotFound):
			fresh.Wish = 1
			r = d.Tables.Images.CreateIn(tx, name, fresh)
		case err != nil:
			return nil, err
		default:
			if err := again(&r); err != nil {
				return nil, err
			}
			r = d.Tables.Images.UpdateIn(tx, r)
		}
		return []operation.Subject{subject(image.Kind, r.Meta)}, nil
	})
}

// RemoveImage asks that an image be no more. One that guests were made from is
// refused.
func (d *Door) RemoveImage(ctx context.Context, by, name string) (Operation, error) {
	return remove(ctx, d, by, d.Tables.Images, image.Kind, name, func(r tables.ImageRecord) error {
		return d.unused("image/"+name, "remove them first: lodge rm", func(g tables.GuestRecord) bool {
			return g.Spec.Image == r.Name || r.Status.Digest != "" && g.Spec.Digest == r.Status.Digest && !d.otherImage(r)
		})
	})
}

// otherImage reports whether another image has the same content.
func (d *Door) otherImage(r tables.ImageRecord) bool {
	return slices.ContainsFunc(d.Tables.Images.List(), func(o tables.ImageRecord) bool {
		return o.ID != r.ID && o.Deleting == nil && o.Status.Digest == r.Status.Digest
	})
}

// shownUsers is how many users of a thing an error names.
const shownUsers = 3

// unused refuses while guests use what ref names.
func (d *Door) unused(ref, hint string, uses func(tables.GuestRecord) bool) error {
	var names []string
	more := 0
	for _, g := range d.Tables.Guests.List() {
		switch {
		case !uses(g):
		case len(names) < shownUsers:
			names = append(names, g.Name)
		default:
			more++
		}
	}
	if len(names) == 0 {
		return nil
	}
	list := strings.Join(names, ", ")
	if more > 0 {
		list = fmt.Sprintf("%s and %d more", list, more)
	}
	return &errs.Error{Kind: errs.Conflict, Ref: ref, Msg: "is used by " + list, Hint: hint + " " + strings.Join(names, " ")}
}
