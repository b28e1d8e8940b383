package server

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"lodge/api"
)

// Care is what can be done for the owner of a running guest, by its id. Errors
// are as with Live.
type Care interface {
	// SetPassword gives a user a new password.
	SetPassword(ctx context.Context, id, user, password string) error
	// Authorize adds to the keys that a user may log in with by SSH.
	Authorize(ctx context.Context, id, user string, keys []string) error
	// Trim gives back what the guest does not use, and tells how much.
	Trim(ctx context.Context, id string) (uint64, error)
	// SetClock sets the guest's clock to the host's.
	SetClock(ctx context.Context, id string) error
}

func (s *Server) careRoutes() {
	const one = "/v1/guests/{name}/"
	register(s, huma.Operation{
		OperationID: "set-password", Method: http.MethodPost, Path: one + "password", Summary: "Give a user of a guest a new password", DefaultStatus: http.StatusNoContent,
		Description: "Lodge keeps neither the password nor its hash.",
	}, s.setPassword)
	register(s, huma.Operation{
		OperationID: "authorize", Method: http.MethodPost, Path: one + "authorized-keys", Summary: "Let SSH keys log in to a guest", DefaultStatus: http.StatusNoContent,
		Description: "They are added to those of the user; one that is there already stays as it is.",
	}, s.authorize)
	register(s, huma.Operation{
		OperationID: "trim", Method: http.MethodPost, Path: one + "trim", Summary: "Give back to the pool what a guest's disk holds and the guest does not use",
	}, s.trim)
	register(s, huma.Operation{
		OperationID: "set-clock", Method: http.MethodPost, Path: one + "clock", Summary: "Set a guest's clock to the host's", DefaultStatus: http.StatusNoContent,
	}, s.setClock)
}

type passwordInput struct {
	GuestName
	Body api.Password
}

func (s *Server) setPassword(ctx context.Context, in *passwordInput) (*struct{}, error) {
	g, err := s.Tables.Guests.Get(in.Name)
	if err != nil {
		return nil, err
	}
	return nil, s.Care.SetPassword(ctx, g.ID, in.Body.User, in.Body.Password)
}

type keysOfInput struct {
	GuestName
	Body api.AuthorizedKeys
}

func (s *Server) authorize(ctx context.Context, in *keysOfInput) (*struct{}, error) {
	g, err := s.Tables.Guests.Get(in.Name)
	if err != nil {
		return nil, err
	}
	return nil, s.Care.Authorize(ctx, g.ID, in.Body.User, in.Body.Keys)
}

type trimOutput struct{ Body api.Trimmed }

func (s *Server) trim(ctx context.Context, in *GuestName) (*trimOutput, error) {
	g, err := s.Tables.Guests.Get(in.Name)
	if err != nil {
		return nil, err
	}
	n, err := s.Care.Trim(ctx, g.ID)
	if err != nil {
		return nil, err
	}
	return &trimOutput{Body: api.Trimmed{Bytes: n}}, nil
}

func (s *Server) setClock(ctx context.Context, in *GuestName) (*struct{}, error) {
	g, err := s.Tables.Guests.Get(in.Name)
	if err != nil {
		return nil, err
	}
	return nil, s.Care.SetClock(ctx, g.ID)
}
