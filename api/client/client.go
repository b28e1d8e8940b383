// Package client speaks to lodged, over its Unix socket or over HTTPS.
//
// Every error that a method returns is, or wraps, an *api.Error, except that a
// cancelled context is returned as it is.
package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"lodge/api"
)

// DefaultHost is where lodged listens for the local administrator.
const DefaultHost = "unix:///run/lodge/lodged.sock"

// startHint is what helps when nobody listens.
const startHint = "is lodged running? start it with: systemctl start lodged (or: make up)"

// Options say whom to speak to and as whom.
type Options struct {
	Host   string // unix:///path or https://host:port; empty: DefaultHost
	Token  string // bearer token; not used on a Unix socket
	CACert string // file of PEM certificates to trust besides none; empty: the system's
}

// Client is a connection to one lodged. It may be used by many goroutines.
type Client struct {
	http  *http.Client
	base  string
	host  string
	token string
}

// New makes a client without connecting. It fails on a host that cannot be
// read, or on a certificate file that cannot.
func New(o Options) (*Client, error) {
	if o.Host == "" {
		o.Host = DefaultHost
	}
	u, err := url.Parse(o.Host)
	if err != nil {
		return nil, badHost(o.Host)
	}
	c := &Client{host: o.Host}
	// Streams last as long as they last; only dialling has a limit of its own.
	dialer := &net.Dialer{Timeout: 10 * time.Second}
	t := &http.Transport{
		MaxIdleConnsPerHost: 32, // as many as the CLI works on at once
		IdleConnTimeout:     90 * time.Second,
		DialContext:         dialer.DialContext,
	}
	switch {
	case u.Scheme == "unix" && u.Path != "" && u.Host == "":
		c.base = "http://lodge"
		t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", u.Path)
		}
	case (u.Scheme == "https" || u.Scheme == "http") && u.Host != "":
		c.base, c.token = u.Scheme+"://"+u.Host, o.Token
		if u.Scheme == "http" && o.Token != "" && !loopback(u.Hostname()) {
			return nil, &api.Error{Kind: api.KindInvalid, Field: "host",
				Detail: "a token is not sent in clear text", Hint: "use https://" + u.Host}
		}
		t.Proxy = http.ProxyFromEnvironment
		if t.TLSClientConfig, err = tlsConfig(o.CACert); err != nil {
			return nil, err
		}
	default:
		return nil, badHost(o.Host)
	}
	c.http = &http.Client{Transport: t}
	return c, nil
}

// FromEnv makes a client of LODGE_HOST, LODGE_TOKEN and LODGE_CACERT.
func FromEnv() (*Client, error) {
	return New(Options{Host: os.Getenv("LODGE_HOST"), Token: os.Getenv("LODGE_TOKEN"), CACert: os.Getenv("LODGE_CACERT")})
}

// Close gives idle connections back.
func (c *Client) Close() { c.http.CloseIdleConnections() }

func badHost(host string) error {
	return &api.Error{Kind: api.KindInvalid, Field: "host", Detail: fmt.Sprintf("%q is not an address of lodged", host),
		Hint: "write it as unix:///run/lodge/lodged.sock or https://host:8443"}
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func tlsConfig(file string) (*tls.Config, error) {
	if file == "" {
		return &tls.Config{MinVersion: tls.VersionTLS12}, nil
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, &api.Error{Kind: api.KindInvalid, Field: "cacert", Detail: err.Error()}
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, &api.Error{Kind: api.KindInvalid, Field: "cacert", Detail: file + " holds no PEM certificate"}
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool}, nil
}

// call is one request and where its answer goes.
type call struct {
	method string
	path   string
	query  url.Values
	body   any       // sent as JSON; nil: none
	stream io.Reader // sent as it is, instead of body
	header http.Header
	out    any // answer decoded from JSON; nil: thrown away
}

// send makes the request and returns the answer of a success; the caller closes
// its body. Anything else becomes an error.
func (c *Client) send(ctx context.Context, r call) (*http.Response, error) {
	var body io.Reader = http.NoBody
	kind := ""
	switch {
	case r.stream != nil:
		body, kind = r.stream, "application/x-tar"
	case r.body != nil:
		b, err := json.Marshal(r.body)
		if err != nil {
			return nil, &api.Error{Kind: api.KindInternal, Detail: err.Error()}
		}
		body, kind = bytes.NewReader(b), "application/json"
	}
	target := c.base + r.path
	if len(r.query) > 0 {
		target += "?" + r.query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, r.method, target, body)
	if err != nil {
		return nil, &api.Error{Kind: api.KindInternal, Detail: err.Error()}
	}
	c.authorize(req.Header)
	for k, v := range r.header {
		req.Header[k] = v
	}
	if kind != "" {
		req.Header.Set("Content-Type", kind)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	if resp.StatusCode >= 300 {
		defer resp.Body.Close()
		return resp, problemOf(resp)
	}
	return resp, nil
}

func (c *Client) authorize(h http.Header) {
	if c.token != "" {
		h.Set("Authorization", "Bearer "+c.token)
	}
}

// do makes the request and decodes the answer.
func (c *Client) do(ctx context.Context, r call) (*http.Response, error) {
	resp, err := c.send(ctx, r)
	if err != nil {
		return resp, err
	}
	defer resp.Body.Close()
	if r.out == nil {
		_, err = io.Copy(io.Discard, resp.Body)
	} else {
		err = json.NewDecoder(resp.Body).Decode(r.out)
	}
	if err != nil {
		return resp, c.unreachable(ctx, err)
	}
	return resp, nil
}

// problemOf reads the body of an answer that is not a success.
func problemOf(resp *http.Response) *api.Error {
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	e := &api.Error{}
	if json.Unmarshal(b, e) != nil || e.Kind == "" {
		e = &api.Error{Kind: kindOf(resp.StatusCode), Detail: strings.TrimSpace(string(b))}
		if e.Detail == "" {
			e.Detail = resp.Status
		}
	}
	e.Status = resp.StatusCode
	return e
}

// kindOf is the kind of an answer without a problem in it: somebody between us
// and lodged spoke.
func kindOf(status int) string {
	switch status {
	case http.StatusBadRequest, http.StatusUnprocessableEntity, http.StatusMethodNotAllowed:
		return api.KindInvalid
	case http.StatusUnauthorized, http.StatusForbidden:
		return api.KindDenied
	case http.StatusNotFound:
		return api.KindNotFound
	case http.StatusConflict, http.StatusPreconditionFailed:
		return api.KindConflict
	case http.StatusTooManyRequests:
		return api.KindBusy
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return api.KindUnavailable
	}
	return api.KindInternal
}

// unreachable makes an *api.Error of a failure of the connection.
func (c *Client) unreachable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if e, ok := errors.AsType[*api.Error](err); ok {
		return e
	}
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err
	}
	e := &api.Error{Kind: api.KindUnavailable, Ref: c.host, Detail: err.Error(), Hint: startHint}
	if errors.Is(err, os.ErrPermission) {
		e.Kind, e.Hint = api.KindDenied, "the socket is root's: use sudo, or LODGE_HOST=https://… with a token"
	}
	if cert, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		e.Detail, e.Hint = cert.Error(), "name lodged's certificate authority in LODGE_CACERT"
	}
	return e
}

// route joins a path of which each part after the first is a name.
func route(collection string, names ...string) string {
	var b strings.Builder
	b.WriteString("/v1/")
	b.WriteString(collection)
	for _, n := range names {
		b.WriteByte('/')
		b.WriteString(url.PathEscape(n))
	}
	return b.String()
}

// get fetches a JSON value.
func get[T any](ctx context.Context, c *Client, path string, query url.Values) (T, error) {
	var v T
	_, err := c.do(ctx, call{method: http.MethodGet, path: path, query: query, out: &v})
	return v, err
}

// post sends a JSON value and fetches another.
func post[T any](ctx context.Context, c *Client, path string, body any) (T, error) {
	var v T
	_, err := c.do(ctx, call{method: http.MethodPost, path: path, body: body, out: &v})
	return v, err
}

// revision is the store's revision that a list was read at; 0 if it was not
// told.
func revision(resp *http.Response) int64 {
	tag := strings.Trim(strings.TrimPrefix(resp.Header.Get("ETag"), "W/"), `"`)
	n, err := strconv.ParseInt(tag, 10, 64)
	if err != nil {
		return 0
	}
	return n
}
