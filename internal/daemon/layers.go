package daemon

import (
	"context"
	"path/filepath"

	"lodge/internal/layer"
)

// layers makes the files that guests with a machine of their own write to.
type layers struct{}

// Volume implements guests.Layers. One that is there and smaller grows.
func (layers) Volume(ctx context.Context, path string, size uint64) error {
	dir := filepath.Dir(path)
	if err := layer.Create(ctx, dir, size); err != nil {
		return err
	}
	return layer.Grow(ctx, dir, size)
}

// Overlay implements guests.Layers.
func (layers) Overlay(ctx context.Context, path, base string, size uint64) error {
	return layer.Overlay(ctx, filepath.Dir(path), base, size)
}
