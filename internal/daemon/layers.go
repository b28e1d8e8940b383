package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"lodge/internal/base/errs"
	"lodge/internal/base/fsx"
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

// Overlay implements guests.Layers. The format of the base is named: what is in
// it was written by strangers, and must not be guessed.
func (layers) Overlay(ctx context.Context, path, base, format string, size uint64) error {
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	tmp := path + ".new"
	out, err := exec.CommandContext(ctx, "qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", format, tmp, strconv.FormatUint(size, 10)).CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		return &errs.Error{Op: "guest.disk", Kind: errs.Unsupported, Msg: "qemu-img is not installed", Hint: "apt-get install qemu-utils"}
	}
	if err != nil {
		return errors.Join(fmt.Errorf("qemu-img: %s: %w", strings.TrimSpace(string(out)), err), os.RemoveAll(tmp))
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return fsx.SyncDir(filepath.Dir(path))
}
