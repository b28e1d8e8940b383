package server

import (
	"context"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"lodge/api"
	"lodge/internal/model/guest"
)

func (s *Server) hostRoutes() {
	register(s, huma.Operation{OperationID: "version", Method: http.MethodGet, Path: "/v1/version", Summary: "What answers"}, s.version)
	register(s, huma.Operation{OperationID: "host", Method: http.MethodGet, Path: "/v1/host", Summary: "The machine that lodged runs on"}, s.host)
	register(s, huma.Operation{OperationID: "doctor", Method: http.MethodPost, Path: "/v1/doctor", Summary: "Look for what is wrong with the host, and cure it if asked"}, s.doctor)
	stream(s, huma.Operation{
		OperationID: "graph", Method: http.MethodGet, Path: "/v1/debug/graph", Summary: "Which reconciler reads and writes what",
		Responses: map[string]*huma.Response{"200": streamAnswer("One line for each", "text/plain")},
	}, s.graph)
	stream(s, huma.Operation{
		OperationID: "openapi", Method: http.MethodGet, Path: "/v1/openapi.json", Summary: "This interface",
		Responses: map[string]*huma.Response{"200": streamAnswer("An OpenAPI 3.1 document", "application/json")},
	}, s.openapi)
}

type versionOutput struct{ Body api.Version }

func (s *Server) version(context.Context, *struct{}) (*versionOutput, error) {
	return &versionOutput{Body: api.Version{Version: s.Version, API: "v1"}}, nil
}

type hostOutput struct{ Body api.Host }

// host counts guests itself: the records are at hand here.
func (s *Server) host(ctx context.Context, _ *struct{}) (*hostOutput, error) {
	h, err := s.Host(ctx)
	if err != nil {
		return nil, err
	}
	h.Engines = orEmpty(h.Engines)
	h.Guests, h.Running = 0, 0
	for _, g := range s.Tables.Guests.List() {
		h.Guests++
		if g.Status.Phase == guest.Running {
			h.Running++
		}
	}
	return &hostOutput{Body: h}, nil
}

type doctorInput struct {
	Fix bool `query:"fix" doc:"cure what can be cured; the old values are kept"`
}

type doctorOutput struct{ Body []api.Check }

func (s *Server) doctor(ctx context.Context, in *doctorInput) (*doctorOutput, error) {
	all, err := s.Doctor(ctx, in.Fix)
	if err != nil {
		return nil, err
	}
	return &doctorOutput{Body: orEmpty(all)}, nil
}

func (s *Server) graph(_ context.Context, _ *struct{}, w *streamWriter, _ *http.Request) error {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, err := w.Write([]byte(strings.Join(s.Graph(), "\n") + "\n"))
	return err
}

func (s *Server) openapi(_ context.Context, _ *struct{}, w *streamWriter, _ *http.Request) error {
	text, err := s.describe()
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	_, err = w.Write(text)
	return err
}
