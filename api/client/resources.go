package client

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"lodge/api"
)

// Version asks lodged for its version and that of its API.
func (c *Client) Version(ctx context.Context) (api.Version, error) {
	return get[api.Version](ctx, c, route("version"), nil)
}

// Host describes the machine that lodged runs on.
func (c *Client) Host(ctx context.Context) (api.Host, error) {
	return get[api.Host](ctx, c, route("host"), nil)
}

// Doctor checks the host; with fix it also cures what it can.
func (c *Client) Doctor(ctx context.Context, fix bool) ([]api.Check, error) {
	var v []api.Check
	_, err := c.do(ctx, call{method: http.MethodPost, path: route("doctor"), query: flag("fix", fix), out: &v})
	return v, err
}

// Graph is which reconciler reads and writes what, as text.
func (c *Client) Graph(ctx context.Context) (string, error) {
	r, err := c.stream(ctx, route("debug", "graph"), nil)
	if err != nil {
		return "", err
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	return string(b), err
}

// Apply makes everything in r so, or with r.DryRun says what would change.
func (c *Client) Apply(ctx context.Context, r api.ApplyRequest) (api.ApplyResult, error) {
	return post[api.ApplyResult](ctx, c, route("apply"), r)
}

// Images lists the images.
func (c *Client) Images(ctx context.Context) ([]api.Image, error) {
	return get[[]api.Image](ctx, c, route("images"), nil)
}

// Image returns one image with its packages.
func (c *Client) Image(ctx context.Context, name string) (api.Image, error) {
	return get[api.Image](ctx, c, imageRoute(name), nil)
}

// DeleteImage removes an image that no guest is made from.
func (c *Client) DeleteImage(ctx context.Context, name string, wait time.Duration) (api.Operation, error) {
	return c.remove(ctx, imageRoute(name), wait)
}

// BuildImage makes an image from packages.
func (c *Client) BuildImage(ctx context.Context, b api.ImageBuild, wait time.Duration) (api.Operation, error) {
	return c.operate(ctx, call{method: http.MethodPost, path: route("image-builds"), body: b}, wait)
}

// ImageImport is what is to be known of an image that is imported.
type ImageImport struct {
	MaxSize      uint64 // of what is unpacked, in bytes; 0 is lodged's own bound
	Architecture string // that a disk is for; "" is what it shows
}

// ImportImage makes an image of a tar or a disk, plain or compressed.
func (c *Client) ImportImage(ctx context.Context, name string, file io.Reader, about ImageImport, wait time.Duration) (api.Operation, error) {
	q := url.Values{"name": {name}}
	if about.MaxSize > 0 {
		q.Set("max_size", strconv.FormatUint(about.MaxSize, 10))
	}
	if about.Architecture != "" {
		q.Set("architecture", about.Architecture)
	}
	return c.operate(ctx, call{method: http.MethodPost, path: route("image-imports"), query: q, stream: file}, wait)
}

// ExportImage streams an image as "tar" or as "erofs". The caller closes the
// stream.
func (c *Client) ExportImage(ctx context.Context, name, format string) (io.ReadCloser, error) {
	return c.stream(ctx, route("image-exports"), url.Values{"name": {name}, "format": {format}})
}

// Kernels lists what guests of models vm and paravirt can boot here, also what is
// still being made.
func (c *Client) Kernels(ctx context.Context) ([]api.Kernel, error) {
	return get[[]api.Kernel](ctx, c, route("kernels"), nil)
}

// Kernel tells where one kernel is from, and who boots it.
func (c *Client) Kernel(ctx context.Context, name string) (api.Kernel, error) {
	return get[api.Kernel](ctx, c, kernelRoute(name), nil)
}

// DeleteKernel removes a kernel that no guest boots.
func (c *Client) DeleteKernel(ctx context.Context, name string, wait time.Duration) (api.Operation, error) {
	return c.remove(ctx, kernelRoute(name), wait)
}

// BuildKernel makes a kernel. One that is there is left as it is, unless the newest
// is asked for.
func (c *Client) BuildKernel(ctx context.Context, b api.KernelBuild, wait time.Duration) (api.Operation, error) {
	return c.operate(ctx, call{method: http.MethodPost, path: route("kernel-builds"), body: b}, wait)
}

// kernelRoute keeps the slash of a kernel's name: linux/debian-12.
func kernelRoute(name string) string { return route("kernels", strings.Split(name, "/")...) }

// imageRoute keeps the slashes of an image's name: debian/12.
func imageRoute(name string) string { return route("images", strings.Split(name, "/")...) }

// Pools lists the pools.
func (c *Client) Pools(ctx context.Context) ([]api.Pool, error) {
	return get[[]api.Pool](ctx, c, route("pools"), nil)
}

// Pool returns one pool.
func (c *Client) Pool(ctx context.Context, name string) (api.Pool, error) {
	return get[api.Pool](ctx, c, route("pools", name), nil)
}

// CreatePool makes a pool.
func (c *Client) CreatePool(ctx context.Context, p api.PoolCreate, wait time.Duration) (api.Operation, error) {
	return c.operate(ctx, call{method: http.MethodPost, path: route("pools"), body: p}, wait)
}

// DeletePool removes a pool that holds nothing.
func (c *Client) DeletePool(ctx context.Context, name string, wait time.Duration) (api.Operation, error) {
	return c.remove(ctx, route("pools", name), wait)
}

// Networks lists the networks.
func (c *Client) Networks(ctx context.Context) ([]api.Network, error) {
	return get[[]api.Network](ctx, c, route("networks"), nil)
}

// Network returns one network.
func (c *Client) Network(ctx context.Context, name string) (api.Network, error) {
	return get[api.Network](ctx, c, route("networks", name), nil)
}

// CreateNetwork makes a network.
func (c *Client) CreateNetwork(ctx context.Context, n api.NetworkCreate, wait time.Duration) (api.Operation, error) {
	return c.operate(ctx, call{method: http.MethodPost, path: route("networks"), body: n}, wait)
}

// DeleteNetwork removes a network that no guest is on.
func (c *Client) DeleteNetwork(ctx context.Context, name string, wait time.Duration) (api.Operation, error) {
	return c.remove(ctx, route("networks", name), wait)
}

// Forwards lists the port forwards.
func (c *Client) Forwards(ctx context.Context) ([]api.Forward, error) {
	return get[[]api.Forward](ctx, c, route("forwards"), nil)
}

// Forward returns one port forward.
func (c *Client) Forward(ctx context.Context, name string) (api.Forward, error) {
	return get[api.Forward](ctx, c, route("forwards", name), nil)
}

// CreateForward leads a port of the host to a guest.
func (c *Client) CreateForward(ctx context.Context, f api.ForwardCreate, wait time.Duration) (api.Operation, error) {
	return c.operate(ctx, call{method: http.MethodPost, path: route("forwards"), body: f}, wait)
}

// DeleteForward ends a port forward.
func (c *Client) DeleteForward(ctx context.Context, name string, wait time.Duration) (api.Operation, error) {
	return c.remove(ctx, route("forwards", name), wait)
}

func (c *Client) remove(ctx context.Context, path string, wait time.Duration) (api.Operation, error) {
	return c.operate(ctx, call{method: http.MethodDelete, path: path}, wait)
}
