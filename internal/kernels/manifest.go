package kernels

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"lodge/internal/base/errs"
	"lodge/internal/base/fsx"
)

// manifestFile seals a kernel's folder: it is written last, and holds the
// digests of all else that was built.
const manifestFile = "manifest.json"

type manifest struct {
	Made
	Files map[string]file `json:"files"`
}

type file struct {
	Size   uint64 `json:"size"`
	SHA256 string `json:"sha256"`
}

// seal makes what lies in dir durable and writes the manifest.
func seal(dir string, made Made) (built Built, err error) {
	m := manifest{Made: made, Files: map[string]file{}}
	names := slices.Concat([]string{made.Kernel}, made.Modules, made.Support)
	if made.Extra != "" {
		names = append(names, made.Extra)
	}
	for _, name := range names {
		if m.Files[name], err = digest(filepath.Join(dir, name), true); err != nil {
			return built, fmt.Errorf("sealing a kernel: %w", err)
		}
		built.Size += m.Files[name].Size
		if err := fsx.SyncDir(filepath.Dir(filepath.Join(dir, name))); err != nil {
			return built, err
		}
	}
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return built, err
	}
	sum := sha256.Sum256(text)
	built.Digest, built.Info = hex.EncodeToString(sum[:]), made.Info
	return built, fsx.WriteFile(filepath.Join(dir, manifestFile), text, 0o644)
}

// digest reads a file, and makes it durable if it was just written.
func digest(path string, sync bool) (is file, err error) {
	f, err := os.Open(path)
	if err != nil {
		return is, err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	if err == nil && sync {
		err = f.Sync()
	}
	return file{Size: uint64(n), SHA256: hex.EncodeToString(h.Sum(nil))}, err
}

// read returns the manifest of a kernel after making sure that its files are
// what it says: all of them the first time, and again when it was built anew.
func (s *Store) read(name string) (manifest, error) {
	var m manifest
	path := filepath.Join(s.folder(name), manifestFile)
	text, err := os.ReadFile(path)
	if err != nil {
		return m, corrupt(name, err)
	}
	if err := json.Unmarshal(text, &m); err != nil {
		return m, corrupt(name, err)
	}
	fi, err := os.Stat(path)
	if err != nil {
		return m, corrupt(name, err)
	}
	s.mu.Lock()
	known := s.sound[name]
	s.mu.Unlock()
	if known != nil && os.SameFile(known, fi) && known.ModTime().Equal(fi.ModTime()) {
		return m, nil
	}
	for _, f := range slices.Sorted(maps.Keys(m.Files)) {
		is, err := digest(filepath.Join(s.folder(name), f), false)
		if err == nil && is != m.Files[f] {
			err = fmt.Errorf("%s is not what was built: %d bytes, SHA-256 %s", f, is.Size, is.SHA256)
		}
		if err != nil {
			return m, corrupt(name, err)
		}
	}
	s.mu.Lock()
	s.sound[name] = fi
	s.mu.Unlock()
	return m, nil
}

func corrupt(name string, err error) error {
	return &errs.Error{
		Kind: errs.Unsupported, Ref: "kernel/" + name, Msg: "its files are damaged",
		Hint: "build it again: lodge kernel build " + name + " --refresh", Err: err,
	}
}

// Digest tells the kernels of a name apart: what Build returned, as long as it
// is there; empty if none is.
func (s *Store) Digest(name string) string {
	if valid(name) != nil {
		return ""
	}
	text, err := os.ReadFile(filepath.Join(s.folder(name), manifestFile))
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}
