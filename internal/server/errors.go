package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"regexp"
	"runtime/debug"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"lodge/api"
	"lodge/internal/base/errs"
	"lodge/internal/base/ids"
	"lodge/internal/model"
)

const problemType = "application/problem+json"

// statusOf is the HTTP status of a kind.
func statusOf(k errs.Kind) int {
	switch k {
	case errs.Invalid:
		return http.StatusUnprocessableEntity
	case errs.NotFound:
		return http.StatusNotFound
	case errs.Exists, errs.Conflict:
		return http.StatusConflict
	case errs.Denied:
		return http.StatusForbidden
	case errs.Busy:
		return http.StatusTooManyRequests
	case errs.Unsupported:
		return http.StatusNotImplemented
	case errs.NoSpace:
		return http.StatusInsufficientStorage
	case errs.Unavailable:
		return http.StatusServiceUnavailable
	case errs.Cancelled:
		return 499 // as nginx has it: the client closed the request
	}
	return http.StatusInternalServerError
}

// problem is an error as it travels.
type problem struct {
	body   api.Error
	header http.Header
}

// Error is for errors.As.
func (p *problem) Error() string { return p.body.Error() }

// GetStatus is for huma.
func (p *problem) GetStatus() int { return p.body.Status }

// GetHeaders is for huma.
func (p *problem) GetHeaders() http.Header { return p.header }

// ContentType is for huma.
func (p *problem) ContentType(string) string { return problemType }

func (p *problem) write(w http.ResponseWriter) {
	for k, v := range p.header {
		w.Header()[k] = v
	}
	w.Header().Set("Content-Type", problemType)
	w.WriteHeader(p.body.Status)
	json.NewEncoder(w).Encode(&p.body) // a client that is gone needs no answer
}

// wire words err for the person. What is our own fault is worded nowhere but
// in the log.
func wire(err error) *api.Error {
	e := &api.Error{Kind: errs.KindOf(err).String(), Status: statusOf(errs.KindOf(err))}
	found, _ := errors.AsType[*errs.Error](err) // perhaps one of several that are joined
	for at := error(found); found != nil && at != nil; at = errors.Unwrap(at) {
		ours, ok := at.(*errs.Error)
		if !ok {
			continue
		}
		e.Ref = first(e.Ref, ours.Ref)
		e.Field = first(e.Field, ours.Field)
		e.Detail = first(e.Detail, ours.Msg)
		e.Hint = first(e.Hint, ours.Hint)
	}
	if e.Detail == "" {
		e.Detail = strings.ReplaceAll(e.Kind, "-", " ")
	}
	// Of a guest that is there, something else is missing than the guest.
	if e.Hint == "" && e.Kind == api.KindNotFound && (e.Field == "" || !strings.HasPrefix(e.Ref, "guest/")) {
		e.Hint = whereToLook(e.Ref)
	}
	return e
}

// whereToLook names the command that lists what there is of the missing one's
// kind.
func whereToLook(ref string) string {
	switch kind, _, _ := strings.Cut(ref, "/"); kind {
	case "guest":
		return "lodge ls"
	case "image", "kernel", "pool", "network", "forward":
		return "lodge " + kind + " ls"
	case "operation":
		return "lodge op ls --all"
	}
	return ""
}

func first(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// problem turns a handler's error into an answer, and logs what the person is
// not told.
func (s *Server) problem(err error, doing string) *problem {
	if p, ok := errors.AsType[*problem](err); ok {
		return p
	}
	if !errs.Is(err, errs.Internal) {
		return &problem{body: *wire(err)}
	}
	return s.fault(doing, err)
}

// fault is the answer to what is our own fault: it names the line of the log.
func (s *Server) fault(doing string, cause any, more ...any) *problem {
	id := ids.New()
	s.Log.Error("request failed", append([]any{"doing", doing, "request", id, "err", cause}, more...)...)
	return &problem{body: api.Error{
		Status: http.StatusInternalServerError, Kind: api.KindInternal, Detail: "something went wrong inside lodged",
		Hint: fmt.Sprintf("its log says more about request %s: journalctl -u lodged | grep %s", id, id),
	}}
}

// recovered answers a request whose handler panicked. http.ErrAbortHandler is
// how streams are broken off, and stays.
func (s *Server) recovered(w http.ResponseWriter, r *http.Request) {
	switch p := recover(); p {
	case nil:
	case http.ErrAbortHandler:
		panic(p)
	default:
		s.fault(r.Method+" "+r.URL.Path, p, "stack", string(debug.Stack())).write(w)
	}
}

func noRoute(w http.ResponseWriter, r *http.Request) {
	(&problem{body: api.Error{
		Status: http.StatusNotFound, Kind: api.KindNotFound, Detail: fmt.Sprintf("there is no %s %s", r.Method, r.URL.Path),
		Hint: "GET /v1/openapi.json lists what there is",
	}}).write(w)
}

var unexpected = regexp.MustCompile(`^expected required property (\S+) to be present$`)

// wireErrors turns the library's own errors (requests that do not fit the
// schema) into ours.
func wireErrors(_ huma.Context, _ string, v any) (any, error) {
	m, ok := v.(*huma.ErrorModel)
	if !ok {
		if p, ok := v.(*problem); ok {
			return &p.body, nil
		}
		return v, nil
	}
	e := &api.Error{Status: m.Status, Kind: kindOf(m.Status), Detail: m.Detail}
	if len(m.Errors) == 0 || m.Errors[0] == nil {
		return e, nil
	}
	d := m.Errors[0]
	e.Field, e.Detail = fieldOf(d.Location), d.Message
	if parts := unexpected.FindStringSubmatch(d.Message); parts != nil {
		e.Field, e.Detail = strings.TrimPrefix(e.Field+"."+parts[1], "."), "is missing"
	}
	if d.Message == "unexpected property" || d.Message == "unknown query parameter" {
		e.Detail, e.Hint = "is not known here", "check the spelling; GET /v1/openapi.json lists the fields"
	}
	return e, nil
}

// fieldOf drops the part of a request that a location starts with: "body",
// "query", "path".
func fieldOf(location string) string {
	_, field, _ := strings.Cut(location, ".")
	return field
}

func kindOf(status int) string {
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden:
		return api.KindDenied
	case http.StatusNotFound:
		return api.KindNotFound
	case http.StatusNotAcceptable:
		return api.KindUnsupported
	case http.StatusRequestTimeout:
		return api.KindUnavailable
	}
	if status >= 500 {
		return api.KindInternal
	}
	return api.KindInvalid
}

func (s *Server) errorSchema() *huma.Schema {
	return s.api.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[api.Error](), true, "Error")
}

func problemAPI(p *model.Problem) *api.Problem {
	if p == nil {
		return nil
	}
	return &api.Problem{Code: p.Code, Message: p.Message, Hint: p.Hint, Since: p.Since, Attempts: p.Attempts}
}
