package server

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"lodge/api"
	"lodge/internal/base/errs"
)

func (s *Server) engineRoutes() {
	register(s, huma.Operation{OperationID: "list-engines", Method: http.MethodGet, Path: "/v1/engines", Summary: "What runs guests on this host, or why it cannot"}, s.listEngines)
	register(s, huma.Operation{OperationID: "get-engine", Method: http.MethodGet, Path: "/v1/engines/{engine}", Summary: "Show an engine"}, s.getEngine)
	register(s, huma.Operation{OperationID: "probe-engines", Method: http.MethodPost, Path: "/v1/engine-probes", Summary: "Find out anew what can run guests on this host", DefaultStatus: http.StatusOK}, s.probeEngines)
	register(s, huma.Operation{OperationID: "explain-guest", Method: http.MethodGet, Path: "/v1/guests/{name}/explain", Summary: "Where a guest is, where it should be, and what comes next"}, s.explainGuest)
}

type enginesOutput struct{ Body []api.Engine }

func (s *Server) listEngines(ctx context.Context, _ *struct{}) (*enginesOutput, error) {
	h, err := s.Host(ctx)
	if err != nil {
		return nil, err
	}
	return &enginesOutput{Body: orEmpty(h.Engines)}, nil
}

func (s *Server) probeEngines(ctx context.Context, _ *struct{}) (*enginesOutput, error) {
	all, err := s.Probe(ctx)
	if err != nil {
		return nil, err
	}
	return &enginesOutput{Body: orEmpty(all)}, nil
}

type engineInput struct {
	Engine string `path:"engine" doc:"its name" example:"oslevel"`
}

type engineOutput struct{ Body api.Engine }

func (s *Server) getEngine(ctx context.Context, in *engineInput) (*engineOutput, error) {
	h, err := s.Host(ctx)
	if err != nil {
		return nil, err
	}
	for _, e := range h.Engines {
		if e.Name == in.Engine {
			return &engineOutput{Body: e}, nil
		}
	}
	return nil, errs.Missing("engine/"+in.Engine, "lodge engine ls")
}

type explainOutput struct{ Body api.Explanation }

func (s *Server) explainGuest(ctx context.Context, in *GuestName) (*explainOutput, error) {
	r, err := s.Tables.Guests.Get(in.Name)
	if err != nil {
		return nil, err
	}
	x, err := s.Explain(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	g := s.guestAPI(r, nil)
	return &explainOutput{Body: api.Explanation{
		Name: r.Name, Phase: string(x.Phase), Goal: string(x.Goal), Step: string(x.Step),
		Seen: x.Seen, Wanted: x.Wanted, Next: x.Next, Pending: g.Pending, Problem: g.Problem, Last: r.Status.Last,
	}}, nil
}
