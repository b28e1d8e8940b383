package api

import "strings"

// Error is the body of every answer that is not a success (RFC 9457), and the
// error that the client returns.
type Error struct {
	Status int    `json:"status" doc:"HTTP status"`
	Kind   string `json:"kind" example:"not-found" doc:"the closed set of error kinds"`
	Ref    string `json:"ref,omitempty" example:"guest/web1"`
	Field  string `json:"field,omitempty" doc:"the field of the request that is wrong" example:"memory_bytes"`
	Detail string `json:"detail" doc:"words for a person"`
	Hint   string `json:"hint,omitempty" doc:"what to try next"`
}

// Error joins the parts for a person, without the hint.
func (e *Error) Error() string {
	parts := make([]string, 0, 3)
	for _, s := range []string{e.Ref, e.Field, e.Detail} {
		if s != "" {
			parts = append(parts, s)
		}
	}
	return strings.Join(parts, ": ")
}

// The kinds of errors that the CLI tells apart by its exit code.
const (
	KindInternal    = "internal"
	KindInvalid     = "invalid"
	KindNotFound    = "not-found"
	KindExists      = "exists"
	KindConflict    = "conflict"
	KindDenied      = "denied"
	KindBusy        = "busy"
	KindUnsupported = "unsupported"
	KindNoSpace     = "no-space"
	KindUnavailable = "unavailable"
	KindCancelled   = "cancelled"
)
