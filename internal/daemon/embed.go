package daemon

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"lodge/internal/base/fsx"
)

// embedded holds the small programs that lodged starts; the Makefile builds
// them before lodged itself.
//
//go:embed all:embedded
var embedded embed.FS

// The programs' names.
const (
	keeperProgram = "lodge-keeper"
	launchProgram = "lodge-launch"
	agentProgram  = "lodge-agent"
	doorLibrary   = "lodge-door.so"
	imageLibrary  = "lodge-image.so"
)

// unpack puts the embedded programs into dir, where only root can change them,
// and leaves alone what is there already: it may be running.
func unpack(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, name := range []string{keeperProgram, launchProgram, agentProgram, doorLibrary, imageLibrary} {
		want, err := fs.ReadFile(embedded, "embedded/"+name)
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("this lodged was built without %s: build it with make", name)
		}
		if err != nil {
			return err
		}
		path := filepath.Join(dir, name)
		if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, want) {
			continue
		}
		if err := fsx.WriteFile(path, want, 0o555); err != nil {
			return err
		}
	}
	return nil
}
