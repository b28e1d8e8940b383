package client

import (
	"context"
	"net/http"
	"time"

	"lodge/api"
)

// Snapshots lists the moments of a guest that can be gone back to.
func (c *Client) Snapshots(ctx context.Context, guest string) ([]api.Snapshot, error) {
	return get[[]api.Snapshot](ctx, c, route("guests", guest, "snapshots"), nil)
}

// Snapshot tells when one was taken, how, and under which model.
func (c *Client) Snapshot(ctx context.Context, guest, name string) (api.Snapshot, error) {
	return get[api.Snapshot](ctx, c, route("guests", guest, "snapshots", name), nil)
}

// CreateSnapshot keeps what a guest has on its disk at this moment, and its memory
// if that is asked for.
func (c *Client) CreateSnapshot(ctx context.Context, guest string, s api.SnapshotCreate, wait time.Duration) (api.Operation, error) {
	return c.operate(ctx, call{method: http.MethodPost, path: route("guests", guest, "snapshots"), body: s}, wait)
}

// DeleteSnapshot forgets one moment of a guest; the guest and its other snapshots
// stay as they are.
func (c *Client) DeleteSnapshot(ctx context.Context, guest, name string, wait time.Duration) (api.Operation, error) {
	return c.remove(ctx, route("guests", guest, "snapshots", name), wait)
}

// RestoreSnapshot takes a guest back to a snapshot.
func (c *Client) RestoreSnapshot(ctx context.Context, guest, name string, r api.SnapshotRestore, wait time.Duration) (api.Operation, error) {
	return c.operate(ctx, call{method: http.MethodPost, path: route("guests", guest, "snapshots", name, "restore"), body: r}, wait)
}

// SaveGuest keeps the memory of a guest that runs and switches it off; the next
// start goes on from there.
func (c *Client) SaveGuest(ctx context.Context, name string, wait time.Duration) (api.Operation, error) {
	return c.guestVerb(ctx, name, "save", nil, nil, wait)
}

// CloneGuest makes a guest that is like another.
func (c *Client) CloneGuest(ctx context.Context, name string, g api.GuestClone, wait time.Duration) (api.Operation, error) {
	return c.guestVerb(ctx, name, "clone", nil, g, wait)
}
