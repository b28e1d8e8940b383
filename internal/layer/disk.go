package layer

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"lodge/internal/base/diskfile"
	"lodge/internal/base/errs"
	host "lodge/internal/base/tool"
)

// DiskFile is the name of the disk in the directory of a guest that boots one.
const DiskFile = "root.qcow2"

const sectorSize = 512

// Overlay makes the disk in dir, of size bytes: what the guest never wrote is
// that of the qcow2 base, or zeros where base is "". One that is there already
// keeps what is on it, and grows if it is smaller. Nobody may use it meanwhile.
func Overlay(ctx context.Context, dir, base string, size uint64) error {
	file := filepath.Join(dir, DiskFile)
	size = (size + sectorSize - 1) / sectorSize * sectorSize
	have, err := overlaySize(file)
	switch {
	case err == nil && have >= size:
		return nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if err := host.Need("guest.disk", map[string]string{"qemu-img": "qemu-utils"}); err != nil {
		return err
	}
	if have > 0 {
		return growOverlay(ctx, file, size)
	}
	if err := remove(ctx, file+fresh); err != nil {
		return err
	}
	args := []string{"create", "-q", "-f", "qcow2", "-o", "nocow=on"}
	if base != "" {
		// Neither opened nor looked into now: what boots the guest says what
		// it lies on. The name is for a person with the file at hand.
		args = append(args, "-u", "-b", base, "-F", "qcow2")
	}
	if err := host.Run(ctx, "guest.disk", nil, nil, "qemu-img", append(args, file+fresh, strconv.FormatUint(size, 10))...); err != nil {
		return err
	}
	if err := settle(file + fresh); err != nil {
		return err
	}
	if err := os.Rename(file+fresh, file); err != nil {
		return err
	}
	return commit(dir)
}

// overlaySize reads how large a guest's disk is. The guest's monitor wrote it,
// so its header is checked like a stranger's.
func overlaySize(file string) (uint64, error) {
	f, err := os.Open(file)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	size, err := diskfile.Overlay(f)
	if err != nil {
		return 0, &errs.Error{Op: "guest.disk", Kind: errs.Internal, Msg: "the guest's disk " + file + " is damaged", Err: err}
	}
	return size, nil
}

// growOverlay opens nothing but the file itself, whatever its header names.
func growOverlay(ctx context.Context, file string, size uint64) error {
	b, err := json.Marshal(map[string]any{"driver": "qcow2", "backing": nil, "file": map[string]any{"driver": "file", "filename": file}})
	if err != nil {
		return err
	}
	if err := host.Run(ctx, "guest.disk", nil, nil, "qemu-img", "resize", "-q", "json:"+string(b), strconv.FormatUint(size, 10)); err != nil {
		return err
	}
	return settle(file)
}

// settle makes a file durable and the owner's alone.
func settle(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return errors.Join(f.Chmod(0o600), f.Sync())
}
