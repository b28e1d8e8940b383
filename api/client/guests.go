package client

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"lodge/api"
)

// Guests lists the guests that carry all of the labels ("key=value"), and the
// revision they were read at, to follow with Events.
func (c *Client) Guests(ctx context.Context, labels ...string) ([]api.Guest, int64, error) {
	q := url.Values{}
	for _, l := range labels {
		q.Add("label", l)
	}
	var v []api.Guest
	resp, err := c.do(ctx, call{method: http.MethodGet, path: route("guests"), query: q, out: &v})
	if err != nil {
		return nil, 0, err
	}
	return v, revision(resp), nil
}

// Guest returns one guest.
func (c *Client) Guest(ctx context.Context, name string) (api.Guest, error) {
	return get[api.Guest](ctx, c, route("guests", name), nil)
}

// CreateGuest makes one or many guests. See operate for wait.
func (c *Client) CreateGuest(ctx context.Context, g api.GuestCreate, wait time.Duration) (api.Operation, error) {
	return c.operate(ctx, call{method: http.MethodPost, path: route("guests"), body: g}, wait)
}

// PatchGuest changes what is set in p and leaves the rest.
func (c *Client) PatchGuest(ctx context.Context, name string, p api.GuestPatch, wait time.Duration) (api.Operation, error) {
	return c.operate(ctx, call{method: http.MethodPatch, path: route("guests", name), body: p}, wait)
}

// DeleteGuest removes a guest and its writable layer; one that is not stopped
// only with force.
func (c *Client) DeleteGuest(ctx context.Context, name string, force bool, wait time.Duration) (api.Operation, error) {
	return c.operate(ctx, call{method: http.MethodDelete, path: route("guests", name), query: flag("force", force)}, wait)
}

// StartGuest switches a guest on.
func (c *Client) StartGuest(ctx context.Context, name string, wait time.Duration) (api.Operation, error) {
	return c.guestVerb(ctx, name, "start", nil, nil, wait)
}

// StopGuest takes a guest down.
func (c *Client) StopGuest(ctx context.Context, name string, s api.GuestStop, wait time.Duration) (api.Operation, error) {
	return c.guestVerb(ctx, name, "stop", nil, s, wait)
}

// RestartGuest stops and starts a guest; with force it gets no time to stop
// cleanly.
func (c *Client) RestartGuest(ctx context.Context, name string, force bool, wait time.Duration) (api.Operation, error) {
	return c.guestVerb(ctx, name, "restart", flag("force", force), nil, wait)
}

// PauseGuest freezes a running guest in memory.
func (c *Client) PauseGuest(ctx context.Context, name string, wait time.Duration) (api.Operation, error) {
	return c.guestVerb(ctx, name, "pause", nil, nil, wait)
}

// ResumeGuest lets a paused guest run on.
func (c *Client) ResumeGuest(ctx context.Context, name string, wait time.Duration) (api.Operation, error) {
	return c.guestVerb(ctx, name, "resume", nil, nil, wait)
}

// RenameGuest gives a guest another name.
func (c *Client) RenameGuest(ctx context.Context, name, to string, wait time.Duration) (api.Operation, error) {
	return c.guestVerb(ctx, name, "rename", nil, api.Rename{Name: to}, wait)
}

func (c *Client) guestVerb(ctx context.Context, name, verb string, q url.Values, body any, wait time.Duration) (api.Operation, error) {
	return c.operate(ctx, call{method: http.MethodPost, path: route("guests", name, verb), query: q, body: body}, wait)
}

// GuestUsage is what one running guest uses now.
func (c *Client) GuestUsage(ctx context.Context, name string) (api.Usage, error) {
	return get[api.Usage](ctx, c, route("guests", name, "usage"), nil)
}

// Usage is what all running guests use now.
func (c *Client) Usage(ctx context.Context) ([]api.Usage, error) {
	return get[[]api.Usage](ctx, c, route("usage"), nil)
}

// Logs streams what a guest wrote to its console: all that is kept, or with
// tail >= 0 that many last lines; with follow also what comes. The caller closes
// the stream.
func (c *Client) Logs(ctx context.Context, name string, follow bool, tail int) (io.ReadCloser, error) {
	q := flag("follow", follow)
	if tail >= 0 {
		q.Set("tail", strconv.Itoa(tail))
	}
	return c.stream(ctx, route("guests", name, "logs"), q)
}

// ReadFiles streams a file or tree of a guest as a tar. The caller closes the
// stream.
func (c *Client) ReadFiles(ctx context.Context, name, path string) (io.ReadCloser, error) {
	return c.stream(ctx, route("guests", name, "files"), url.Values{"path": {path}})
}

// WriteFiles unpacks a tar into a directory of a guest, which must exist.
func (c *Client) WriteFiles(ctx context.Context, name, dir string, tar io.Reader) error {
	_, err := c.do(ctx, call{method: http.MethodPut, path: route("guests", name, "files"), query: url.Values{"path": {dir}}, stream: tar})
	return err
}

func (c *Client) stream(ctx context.Context, path string, q url.Values) (io.ReadCloser, error) {
	resp, err := c.send(ctx, call{method: http.MethodGet, path: path, query: q})
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

func flag(name string, on bool) url.Values {
	q := url.Values{}
	if on {
		q.Set(name, "true")
	}
	return q
}

// ChangeModel makes a guest one of another model.
func (c *Client) ChangeModel(ctx context.Context, name string, m api.ModelWish, wait time.Duration) (api.Operation, error) {
	return c.guestVerb(ctx, name, "model", nil, m, wait)
}

// ForeseeModel says what a change of a guest's model would mean.
func (c *Client) ForeseeModel(ctx context.Context, name, to, engine string) (api.ModelChange, error) {
	return get[api.ModelChange](ctx, c, route("guests", name, "model"), url.Values{"to": {to}, "engine": {engine}})
}
