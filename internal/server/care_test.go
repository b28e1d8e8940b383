package server

import (
	"context"
	"strings"
	"testing"

	"lodge/api"
	"lodge/internal/base/errs"
)

// fakeCare knows one user.
type fakeCare struct{}

func (fakeCare) SetPassword(_ context.Context, _, user, password string) error {
	switch {
	case user != "root":
		return &errs.Error{Kind: errs.NotFound, Field: "user", Msg: "the guest has no user " + user}
	case len(password) > 256:
		return errs.Bad("password", "is longer than 256 bytes", "take a shorter one")
	}
	return nil
}

func (fakeCare) Authorize(_ context.Context, _, _ string, keys []string) error {
	if len(keys) == 0 {
		return errs.Bad("keys", "there are none", "give one")
	}
	return nil
}

func (fakeCare) Trim(context.Context, string) (uint64, error) { return 5, nil }
func (fakeCare) SetClock(context.Context, string) error       { return nil }

func TestCare(t *testing.T) {
	h := newHouse(t)
	want[struct{}](h, 204, "POST", "/v1/guests/web1/password", api.Password{Password: "x"}) // root's, if nobody is named
	if e := want[api.Error](h, 404, "POST", "/v1/guests/web1/password", api.Password{User: "ann", Password: "x"}); e.Field != "user" {
		t.Errorf("%+v", e)
	}
	const secret = "correct horse battery staple "
	if e := want[api.Error](h, 422, "POST", "/v1/guests/web1/password", api.Password{Password: strings.Repeat(secret, 20)}); strings.Contains(e.Detail+e.Hint, secret) {
		t.Errorf("the answer has the password in it: %+v", e)
	}
	if strings.Contains(h.log.String(), secret) {
		t.Error("the log has the password in it")
	}
	want[struct{}](h, 204, "POST", "/v1/guests/web1/authorized-keys", api.AuthorizedKeys{Keys: []string{"k"}})
	want[api.Error](h, 422, "POST", "/v1/guests/web1/authorized-keys", api.AuthorizedKeys{Keys: []string{}})
	if n := want[api.Trimmed](h, 200, "POST", "/v1/guests/web1/trim", nil); n.Bytes != 5 {
		t.Errorf("trimmed %d", n.Bytes)
	}
	want[struct{}](h, 204, "POST", "/v1/guests/web1/clock", nil)
	for _, verb := range []string{"trim", "clock"} {
		want[api.Error](h, 404, "POST", "/v1/guests/none/"+verb, nil)
	}
}
