package server

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"lodge/api"
	"lodge/internal/store/tables"
)

// ForwardName is the parameter of every call about one forward.
type ForwardName struct {
	Name string `path:"name" doc:"name of the port forward" example:"tcp-8080"`
}

func (s *Server) forwardRoutes() {
	register(s, huma.Operation{OperationID: "list-forwards", Method: http.MethodGet, Path: "/v1/forwards", Summary: "List port forwards"}, s.listForwards)
	register(s, huma.Operation{OperationID: "create-forward", Method: http.MethodPost, Path: "/v1/forwards", Summary: "Lead a port of the host to a guest", DefaultStatus: http.StatusAccepted}, s.createForward)
	register(s, huma.Operation{OperationID: "get-forward", Method: http.MethodGet, Path: "/v1/forwards/{name}", Summary: "Show a port forward"}, s.getForward)
	register(s, huma.Operation{OperationID: "remove-forward", Method: http.MethodDelete, Path: "/v1/forwards/{name}", Summary: "Close a port of the host", DefaultStatus: http.StatusAccepted}, s.removeForward)
}

func (s *Server) listForwards(_ context.Context, in *Condition) (*listOutput[api.Forward], error) {
	return listed(s, *in, func() []api.Forward {
		all := []api.Forward{}
		for _, r := range s.Tables.Forwards.List() {
			all = append(all, s.forwardAPI(r))
		}
		return all
	}), nil
}

type forwardOutput struct{ Body api.Forward }

func (s *Server) getForward(_ context.Context, in *ForwardName) (*forwardOutput, error) {
	r, err := s.Tables.Forwards.Get(in.Name)
	if err != nil {
		return nil, err
	}
	return &forwardOutput{Body: s.forwardAPI(r)}, nil
}

type createForwardInput struct {
	Waiting
	Body api.ForwardCreate
}

func (s *Server) createForward(ctx context.Context, in *createForwardInput) (*operationOutput, error) {
	op, err := s.Door.CreateForward(ctx, person, in.Body.Guest, in.Body.Publish)
	return s.receipt(ctx, op, err, in.Wait)
}

type removeForwardInput struct {
	ForwardName
	Waiting
}

func (s *Server) removeForward(ctx context.Context, in *removeForwardInput) (*operationOutput, error) {
	op, err := s.Door.RemoveForward(ctx, person, in.Name)
	return s.receipt(ctx, op, err, in.Wait)
}

func (s *Server) forwardAPI(r tables.ForwardRecord) api.Forward {
	f := api.Forward{
		Name: r.Name, ID: r.ID, Protocol: r.Spec.Protocol, Port: int(r.Spec.Port), Target: int(r.Spec.Target), Active: r.Status.Active,
		Problem: problemAPI(r.Status.Problem),
	}
	if r.Spec.Listen.IsValid() {
		f.Listen = r.Spec.Listen.String()
	}
	if g, err := s.Tables.Guests.ByID(r.Spec.Guest); err == nil {
		f.Guest = g.Name
	}
	return f
}
