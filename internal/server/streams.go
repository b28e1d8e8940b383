package server

import (
	"context"
	"encoding/json"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"lodge/api"
	"lodge/internal/base/errs"
)

// streamRoutes are those that carry bytes in and out of guests.
func (s *Server) streamRoutes() {
	const one = "/v1/guests/{name}/"
	stream(s, huma.Operation{
		OperationID: "exec", Method: http.MethodGet, Path: one + "exec", Summary: "Run a program in a guest (websocket)",
		Description: "The first message, text, is an ExecRequest. All others are binary: a byte that names the stream (0 in, 1 out, 2 err, 3 a Control as JSON), then its data.",
		Responses:   map[string]*huma.Response{"101": {Description: "The websocket"}}, DefaultStatus: http.StatusSwitchingProtocols,
		Extensions: map[string]any{"x-messages": []string{s.mention(api.ExecRequest{}), s.mention(api.Control{})}},
	}, s.exec)
	stream(s, huma.Operation{
		OperationID: "console", Method: http.MethodGet, Path: one + "console", Summary: "Attach to a guest's console (websocket)",
		Description: "Messages are framed as those of exec.",
		Responses:   map[string]*huma.Response{"101": {Description: "The websocket"}}, DefaultStatus: http.StatusSwitchingProtocols,
	}, s.console)
	stream(s, huma.Operation{
		OperationID: "guest-logs", Method: http.MethodGet, Path: one + "logs", Summary: "What a guest's first process said",
		Responses: map[string]*huma.Response{"200": streamAnswer("Its output", "text/plain")},
	}, s.logs)
	stream(s, huma.Operation{
		OperationID: "get-files", Method: http.MethodGet, Path: one + "files", Summary: "Fetch a file or a tree of a guest as a tar stream",
		Responses: map[string]*huma.Response{"200": streamAnswer("The first entry is the base name of path", "application/x-tar")},
	}, s.getFiles)
	stream(s, huma.Operation{
		OperationID: "put-files", Method: http.MethodPut, Path: one + "files", Summary: "Unpack a tar stream below a directory of a guest",
		RequestBody: streamBody("application/x-tar"),
		Responses:   map[string]*huma.Response{"204": {Description: "Everything is there"}}, DefaultStatus: http.StatusNoContent,
	}, s.putFiles)
}

type logsInput struct {
	GuestName
	Follow bool `query:"follow" doc:"go on with what it says from now on"`
	Tail   int  `query:"tail" default:"-1" minimum:"-1" doc:"only so many of the last lines; -1 is all"`
}

func (s *Server) logs(ctx context.Context, in *logsInput, w *streamWriter, _ *http.Request) error {
	r, err := s.Tables.Guests.Get(in.Name)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	err = s.Live.Logs(ctx, r.ID, in.Tail, in.Follow, w)
	if ctx.Err() != nil {
		return nil // whoever followed has seen enough
	}
	return err
}

type filesInput struct {
	GuestName
	Path string `query:"path" required:"true" minLength:"1" doc:"in the guest, absolute" example:"/etc/hosts"`
}

func (in *filesInput) check() error {
	if in.Path[0] != '/' {
		return errs.Bad("path", "is not absolute", "start it with /")
	}
	return nil
}

func (s *Server) getFiles(ctx context.Context, in *filesInput, w *streamWriter, _ *http.Request) error {
	r, err := s.Tables.Guests.Get(in.Name)
	if err != nil {
		return err
	}
	if err := in.check(); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/x-tar")
	return s.Live.Pack(ctx, r.ID, in.Path, w)
}

func (s *Server) putFiles(ctx context.Context, in *filesInput, w *streamWriter, r *http.Request) error {
	g, err := s.Tables.Guests.Get(in.Name)
	if err != nil {
		return err
	}
	if err := in.check(); err != nil {
		return err
	}
	if err := s.Live.Unpack(ctx, g.ID, in.Path, r.Body); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func writeJSON(w http.ResponseWriter, status int, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, err = w.Write(append(text, '\n'))
	return err
}
