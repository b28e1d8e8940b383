package server

import (
	"context"
	"errors"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"lodge/api"
	"lodge/internal/admission"
	"lodge/internal/base/errs"
	"lodge/internal/model/guest"
	"lodge/internal/store/tables"
)

func (s *Server) modelRoutes() {
	register(s, verbRoute("model", "Make a guest one of another model"), s.changeModel)
	register(s, huma.Operation{OperationID: "foresee-model", Method: http.MethodGet, Path: "/v1/guests/{name}/model", Summary: "What a change of a guest's model would mean"}, s.foreseeModel)
}

type modelInput struct {
	VerbInput
	Body api.ModelWish
}

func (s *Server) changeModel(ctx context.Context, in *modelInput) (*operationOutput, error) {
	op, err := s.Door.ChangeModel(ctx, person, in.Name, admission.ModelWish{Model: guest.Model(in.Body.Model), Engine: in.Body.Engine, Restart: in.Body.Restart})
	return s.receipt(ctx, op, err, in.Wait)
}

type foreseeInput struct {
	GuestName
	To     string `query:"to" enum:"vm,paravirt,os" required:"true" doc:"model that it would be of"`
	Engine string `query:"engine" doc:"that would run it"`
}

type foreseeOutput struct{ Body api.ModelChange }

func (s *Server) foreseeModel(ctx context.Context, in *foreseeInput) (*foreseeOutput, error) {
	r, err := s.Tables.Guests.Get(in.Name)
	if err != nil {
		return nil, err
	}
	to := guest.Model(in.To)
	c, err := s.Foresee(ctx, r.ID, to, in.Engine)
	if err != nil {
		return nil, err
	}
	c.Name = r.Name
	if err := s.Door.CheckChange(r, admission.ModelWish{Model: to, Engine: in.Engine}); err != nil {
		c.Refusal, c.Hint = err.Error(), ""
		if ours, ok := errors.AsType[*errs.Error](err); ok {
			c.Refusal, c.Hint = ours.Words(), ours.Hint
		}
	}
	c.Changes = append(c.Changes, changesOf(r, to)...)
	return &foreseeOutput{Body: c}, nil
}

// changesOf says in words what is different for a guest under another model.
func changesOf(r tables.GuestRecord, to guest.Model) []string {
	all := []string{"kept: name, MAC and IP addresses, limits, snapshots, published ports, restart policy, its files with all their attributes"}
	if to == guest.OS {
		all = append(all, "it runs on the host's kernel; its own kernel and modules are not used")
		if len(r.Spec.Disks) > 0 {
			all = append(all, "its further disks are kept, but not attached")
		}
	} else if r.Spec.Model == guest.OS {
		all = append(all, "it boots a kernel of its own, and memory is set aside for it when it starts")
	}
	if r.Spec.Hardware != (guest.Hardware{}) && r.Spec.Model != to {
		all = append(all, "its machine, firmware, kernel and processor are the new engine's choice again")
	}
	if r.Spec.Model == guest.VM {
		all = append(all, "snapshots with memory bring back their memory only while it is of model vm")
	}
	return all
}
