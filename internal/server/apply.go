package server

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"

	"github.com/danielgtaylor/huma/v2"

	"lodge/api"
	"lodge/internal/admission"
	"lodge/internal/base/errs"
	"lodge/internal/model/guest"
	"lodge/internal/store/tables"
)

func (s *Server) applyRoutes() {
	register(s, huma.Operation{OperationID: "apply", Method: http.MethodPost, Path: "/v1/apply", Summary: "Make everything in a file so"}, s.apply)
}

type applyInput struct {
	Waiting
	Body api.ApplyRequest
}

type applyOutput struct{ Body api.ApplyResult }

func (s *Server) apply(ctx context.Context, in *applyInput) (*applyOutput, error) {
	if _, err := parseWait(in.Wait); err != nil {
		return nil, err
	}
	items := make([]admission.Item, 0, len(in.Body.Manifests))
	for i, m := range in.Body.Manifests {
		it, err := itemOf(m)
		if err != nil {
			if e, ok := err.(*errs.Error); ok {
				e.Field = fmt.Sprintf("manifests[%d].%s", i, e.Field)
			}
			return nil, err
		}
		items = append(items, it)
	}
	var await func(context.Context, tables.OperationRecord) error
	if in.Wait != "" {
		await = func(ctx context.Context, op tables.OperationRecord) error {
			_, err := s.receipt(ctx, op, nil, in.Wait)
			return err
		}
	}
	changes, ops, err := s.Door.Apply(ctx, person, items, in.Body.DryRun, await)
	if err != nil {
		return nil, err
	}
	return s.applied(ctx, changes, ops, in.Wait)
}

// applied waits for all operations in turn and answers with the first that
// failed, or with everything.
func (s *Server) applied(ctx context.Context, changes []admission.ItemChange, ops []tables.OperationRecord, wait string) (*applyOutput, error) {
	out := &applyOutput{Body: api.ApplyResult{Changes: []api.ApplyChange{}, Operations: []api.Operation{}}}
	for _, op := range ops {
		r, err := s.receipt(ctx, op, nil, wait)
		if err != nil {
			return nil, err
		}
		out.Body.Operations = append(out.Body.Operations, r.Body)
	}
	for _, c := range changes {
		a := api.ApplyChange{Kind: string(c.Kind), Name: c.Name, Action: c.Action}
		for _, f := range c.Fields {
			a.Fields = append(a.Fields, api.FieldChange(f))
		}
		out.Body.Changes = append(out.Body.Changes, a)
	}
	return out, nil
}

// guestManifest is a guest in an apply file.
type guestManifest struct {
	api.GuestSpec
	Power string `json:"power,omitempty"`
}

func itemOf(m api.Manifest) (admission.Item, error) {
	switch m.Kind {
	case "guest":
		v, err := decode[guestManifest](m.Spec)
		return admission.Item{Guest: &admission.GuestItem{GuestWish: specWish(v.GuestSpec), Power: guest.Power(v.Power)}}, err
	case "network":
		v, err := decode[api.NetworkCreate](m.Spec)
		return admission.Item{Network: (*admission.NetworkWish)(&v)}, err
	case "pool":
		v, err := decode[api.PoolCreate](m.Spec)
		return admission.Item{Pool: &admission.PoolItem{Name: v.Name, Spec: poolSpec(v)}}, err
	case "forward":
		v, err := decode[api.ForwardCreate](m.Spec)
		return admission.Item{Forward: (*admission.ForwardItem)(&v)}, err
	case "image":
		v, err := decode[api.ImageBuild](m.Spec)
		w := imageWish(v)
		return admission.Item{Image: &w}, err
	}
	return admission.Item{}, errs.Bad("kind", fmt.Sprintf("%q is not a kind", m.Kind), "use guest, network, pool, forward or image")
}

var unknownField = regexp.MustCompile(`unknown field "(.*)"$`)

// decode reads a spec and refuses what it does not know.
func decode[T any](text json.RawMessage) (T, error) {
	var v T
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	err := d.Decode(&v)
	if err == nil {
		if _, err = d.Token(); err == io.EOF {
			return v, nil
		}
		return v, errs.Bad("spec", "goes on after its end", "")
	}
	if parts := unknownField.FindStringSubmatch(err.Error()); parts != nil {
		return v, errs.Bad("spec."+parts[1], "is not known here", "check the spelling")
	}
	if t, ok := err.(*json.UnmarshalTypeError); ok {
		return v, errs.Bad("spec."+t.Field, fmt.Sprintf("is a %s where a %s belongs", t.Value, t.Type), "")
	}
	return v, errs.Bad("spec", "cannot be read: "+err.Error(), "")
}
