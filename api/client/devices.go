package client

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/coder/websocket"

	"lodge/api"
)

// AttachDisk gives a guest one more disk or disc.
func (c *Client) AttachDisk(ctx context.Context, guest string, d api.Disk, wait time.Duration) (api.Operation, error) {
	return c.guestVerb(ctx, guest, "disks", nil, d, wait)
}

// DetachDisk takes a disk or disc away, with what is on the disk.
func (c *Client) DetachDisk(ctx context.Context, guest, disk string, wait time.Duration) (api.Operation, error) {
	return c.remove(ctx, route("guests", guest, "disks", disk), wait)
}

// AttachNIC puts a guest on one more network.
func (c *Client) AttachNIC(ctx context.Context, guest, network string, wait time.Duration) (api.Operation, error) {
	return c.guestVerb(ctx, guest, "nics", nil, api.NICAttach{Network: network}, wait)
}

// DetachNIC takes a network card away.
func (c *Client) DetachNIC(ctx context.Context, guest, nic string, wait time.Duration) (api.Operation, error) {
	return c.remove(ctx, route("guests", guest, "nics", nic), wait)
}

// Screenshot streams the screen of a guest as a PNG file. The caller closes the
// stream.
func (c *Client) Screenshot(ctx context.Context, guest string) (io.ReadCloser, error) {
	return c.stream(ctx, route("guests", guest, "screenshot"), nil)
}

// SendKeys presses keys of a guest: those of one chord together, one chord after
// the other.
func (c *Client) SendKeys(ctx context.Context, guest string, chords [][]string) error {
	_, err := c.do(ctx, call{method: http.MethodPost, path: route("guests", guest, "keys"), body: api.Keys{Chords: chords}})
	return err
}

// Display connects to the screen of a guest. What is read and written is the RFB
// protocol (RFC 6143). The connection ends with ctx.
func (c *Client) Display(ctx context.Context, guest string) (net.Conn, error) {
	t, err := post[api.DisplayTicket](ctx, c, route("guests", guest, "display"), nil)
	if err != nil {
		return nil, err
	}
	s, err := c.dial(ctx, route("guests", guest, "display")+"?"+url.Values{"ticket": {t.Ticket}}.Encode())
	if err != nil {
		return nil, err
	}
	return websocket.NetConn(ctx, s.conn, websocket.MessageBinary), nil
}

// Debug does to a guest what its engine offers, and streams what was found. The
// caller closes the stream.
func (c *Client) Debug(ctx context.Context, guest, what string) (io.ReadCloser, error) {
	resp, err := c.send(ctx, call{method: http.MethodPost, path: route("guests", guest, "debug"), query: url.Values{"what": {what}}})
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

// SetPassword gives a user of a guest a new password.
func (c *Client) SetPassword(ctx context.Context, guest string, p api.Password) error {
	_, err := c.do(ctx, call{method: http.MethodPost, path: route("guests", guest, "password"), body: p})
	return err
}

// Authorize adds to the keys that a user of a guest may log in with by SSH.
func (c *Client) Authorize(ctx context.Context, guest string, k api.AuthorizedKeys) error {
	_, err := c.do(ctx, call{method: http.MethodPost, path: route("guests", guest, "authorized-keys"), body: k})
	return err
}

// Trim gives back to the pool what a guest does not use, and returns how many
// bytes the guest's file system offered.
func (c *Client) Trim(ctx context.Context, guest string) (uint64, error) {
	t, err := post[api.Trimmed](ctx, c, route("guests", guest, "trim"), nil)
	return t.Bytes, err
}

// SetClock sets a guest's clock to that of its host.
func (c *Client) SetClock(ctx context.Context, guest string) error {
	_, err := c.do(ctx, call{method: http.MethodPost, path: route("guests", guest, "clock")})
	return err
}

// Explain says where a guest is, where it should be, and what comes next.
func (c *Client) Explain(ctx context.Context, guest string) (api.Explanation, error) {
	return get[api.Explanation](ctx, c, route("guests", guest, "explain"), nil)
}

// Engines lists what runs guests on the host, or why it cannot.
func (c *Client) Engines(ctx context.Context) ([]api.Engine, error) {
	return get[[]api.Engine](ctx, c, route("engines"), nil)
}

// Engine tells what one engine can do on this host, or why it runs no guests there.
func (c *Client) Engine(ctx context.Context, name string) (api.Engine, error) {
	return get[api.Engine](ctx, c, route("engines", name), nil)
}

// ProbeEngines finds out anew what can run guests on the host.
func (c *Client) ProbeEngines(ctx context.Context) ([]api.Engine, error) {
	return post[[]api.Engine](ctx, c, route("engine-probes"), nil)
}
