package store

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"lodge/internal/model"
	"lodge/internal/model/forward"
	"lodge/internal/model/guest"
	"lodge/internal/model/image"
	"lodge/internal/model/kernel"
	"lodge/internal/model/network"
	"lodge/internal/model/operation"
	"lodge/internal/model/pool"
	"lodge/internal/model/snapshot"
)

// The golden files are values as they lie in the stores of the world. Every
// folder of testdata/golden is one encoding that was ever written, and all of
// them must be readable for ever: a field that was renamed or taken away, or
// that changed its type, fails here, and the type then has to learn the old
// form in an UnmarshalJSON of its own. The last folder is what is written
// today. When that changes on purpose, a new folder is made with
//
//	GOLDEN=NAME go test ./internal/store -run Golden
//
// and folders that were in a release are never changed.
const goldenDir = "testdata/golden"

// sample is one part of one noun, with every field set, and how to read it.
type sample struct {
	file   string // KIND.PART.json
	value  any
	decode func(raw json.RawMessage) (any, error)
}

// strictly reads a T and refuses fields that T does not have.
func strictly[T any](raw json.RawMessage) (any, error) {
	var v T
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	err := d.Decode(&v)
	return v, err
}

func specOf[T any](kind model.Kind, v T) sample {
	return sample{file: string(kind) + ".spec.json", value: v, decode: strictly[T]}
}

func statusOf[T any](kind model.Kind, v T) sample {
	return sample{file: string(kind) + ".status.json", value: v, decode: strictly[T]}
}

var goldenTime = time.Date(2026, 11, 22, 10, 20, 30, 123456789, time.UTC)

func samples() []sample {
	at := goldenTime
	problem := &model.Problem{Code: "busy", Message: "m", Hint: "h", Since: at, Attempts: 2}
	return []sample{
		specOf(guest.Kind, guest.Spec{
			Model: guest.OS, Image: "debian/12", Digest: "blake3:1", Power: guest.On, Boots: 2, Force: true,
			CPUs: 1.5, CPUWeight: 200, Memory: 512 << 20, Swap: 1 << 20, Processes: 4096,
			IO:   guest.IO{ReadBPS: 1, WriteBPS: 2, ReadIOPS: 3, WriteIOPS: 4},
			Pool: "default", Disk: 10 << 30,
			NICs:    []guest.NIC{{Name: "eth0", Network: "default", MAC: "02:00:00:00:00:01", IPv4: "10.67.0.5/16", IPv6: "fd00::5/64"}},
			Command: []string{"sleep", "1"}, Env: map[string]string{"A": "b"}, UserData: "#cloud-config", Restart: guest.Always,
			Autostart: guest.Autostart{Enabled: true, Order: 1, Delay: 2}, Ephemeral: true, StopTimeout: 30,
			Models: 1, Engine: "oslevel", Clone: &guest.CloneOf{Guest: "g", Snapshot: "s", Memory: true}, Restore: &guest.RestoreOf{Wish: 1, Snapshot: "s", Memory: true},
			Hardware: guest.Hardware{Machine: "q35", Firmware: "uefi", TPM: true, Kernel: "linux/debian-12", CPUModel: "max"},
			Disks:    []guest.FurtherDisk{{Name: "data", Size: 1, Boot: 1}},
		}),
		statusOf(guest.Kind, guest.Status{
			Phase: guest.Running, Doing: guest.Stop, Boots: 2, Generation: 3, Problem: problem, Engine: "oslevel", Pid: 42,
			Started: &at, Exit: &guest.Exit{Code: 137, Signal: "killed", OOM: true, At: at}, Restarts: 1, NotBefore: &at, HostBoot: "b",
			Model: guest.OS, Refused: 1, Refusal: problem, Cloned: true, Restored: 1, Saved: true, Ready: true, Last: "l", Kernel: "k",
		}),
		specOf(guest.HolderKind, guest.Holder{Host: "h1", Epoch: 3, Slot: 7}),
		specOf(image.Kind, image.Spec{Source: "debian", Release: "12", Variant: image.Standard, Wish: 1, Upload: "u"}),
		statusOf(image.Kind, image.Status{
			Wish: 1, Generation: 1, Digest: "blake3:1", Size: 9, Built: &at, Problem: problem,
			Info: image.Info{
				OS: "debian", Release: "12", Pretty: "Debian", Architecture: "amd64", Init: []string{"/sbin/init"},
				CloudInit: true, Files: 3, Packages: []string{"bash"},
			},
		}),
		specOf(kernel.Kind, kernel.Spec{Wish: 1}),
		statusOf(kernel.Kind, kernel.Status{
			Wish: 1, Generation: 1, Digest: "1", Size: 9, Built: &at, Problem: problem,
			Info: kernel.Info{Version: "7.2.7", From: "user-mode-linux 7.2um1", Modules: []string{"erofs"}},
		}),
		specOf(network.Kind, network.Spec{
			Driver: "bridge", IPv4: netip.MustParsePrefix("10.67.0.0/16"), IPv6: netip.MustParsePrefix("fd00::/64"),
			NAT: true, Domain: "lodge.internal",
		}),
		statusOf(network.Kind, network.Status{Generation: 1, Ready: true, Device: "lg0", Problem: problem}),
		specOf(network.Lease, network.LeaseSpec{Guest: "g"}),
		specOf(pool.Kind, pool.Spec{Driver: "btrfs", Source: "/dev/sdb", Size: 1}),
		statusOf(pool.Kind, pool.Status{Generation: 1, Ready: true, Path: "/p", Quota: "q", Problem: problem}),
		specOf(forward.Kind, forward.Spec{Protocol: "tcp", Listen: netip.MustParseAddr("127.0.0.1"), Port: 8080, Guest: "g", Target: 80}),
		statusOf(forward.Kind, forward.Status{Generation: 1, Active: true, Problem: problem}),
		specOf(snapshot.Kind, snapshot.Spec{Guest: "g", Name: "n", Pool: "default", Note: "x", Memory: true}),
		statusOf(snapshot.Kind, snapshot.Status{
			Generation: 1, Problem: problem, Taken: &snapshot.Taken{At: at, Model: "vm", Memory: true, Rest: snapshot.Frozen},
		}),
		specOf(operation.Kind, operation.Spec{
			By: "root", Verb: "guest.start", Cancel: true,
			Subjects: []operation.Subject{{Key: model.Key{Kind: guest.Kind, Name: "web1"}, ID: "g", Generation: 2, Gone: true, Wish: 1, Passing: true}},
		}),
		statusOf(operation.Kind, operation.Status{State: operation.Done, Problem: problem, Ended: &at}),
	}
}

// encodeSample writes a sample as the store would.
func encodeSample(t *testing.T, s sample) []byte {
	t.Helper()
	var (
		value []byte
		err   error
	)
	if which(s.file) == partSpec {
		at := goldenTime
		value, err = encodeSpec(at, model.Meta{
			Name: "n", ID: "abcdefghijkmnpqr", Generation: 2, Created: at, Deleting: &at, Labels: map[string]string{"a": "b"},
		}, s.value)
	} else {
		value, err = encodeStatus(goldenTime, s.value)
	}
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := json.Indent(&b, value, "", "\t"); err != nil {
		t.Fatal(err)
	}
	b.WriteByte('\n')
	return b.Bytes()
}

// which returns the part that a file KIND.PART.json holds.
func which(file string) string {
	return filepath.Ext(file[:len(file)-len(".json")])[1:]
}

func TestGolden(t *testing.T) {
	if name := os.Getenv("GOLDEN"); name != "" {
		writeGolden(t, filepath.Join(goldenDir, name))
	}
	folders, err := filepath.Glob(filepath.Join(goldenDir, "*"))
	if err != nil || len(folders) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	of := map[string]sample{}
	for _, s := range samples() {
		of[s.file] = s
	}
	for _, folder := range folders {
		files, err := filepath.Glob(filepath.Join(folder, "*.json"))
		if err != nil || len(files) == 0 {
			t.Fatalf("%s is empty: %v", folder, err)
		}
		for _, file := range files {
			readGolden(t, file, of[filepath.Base(file)])
		}
	}
	today := folders[len(folders)-1] // Glob sorts
	for _, s := range samples() {
		want, err := os.ReadFile(filepath.Join(today, s.file))
		if err != nil {
			t.Errorf("%v; see the comment on goldenDir", err)
		} else if got := encodeSample(t, s); !bytes.Equal(got, want) {
			t.Errorf("%s is written differently now; see the comment on goldenDir\ngot\n%swant\n%s", s.file, got, want)
		}
	}
}

func readGolden(t *testing.T, file string, s sample) {
	t.Helper()
	if s.decode == nil {
		t.Errorf("%s: nothing reads this any more", file)
		return
	}
	value, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	p := decode(which(s.file), value, 1)
	if p.err != nil {
		t.Errorf("%s: %v", file, p.err)
	} else if _, err := s.decode(p.body); err != nil {
		t.Errorf("%s: %v", file, err)
	} else if p.at.IsZero() || which(s.file) == partSpec && p.meta.Name != "n" {
		t.Errorf("%s: read as %+v", file, p)
	}
}

func writeGolden(t *testing.T, folder string) {
	t.Helper()
	if err := os.MkdirAll(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, s := range samples() {
		if err := os.WriteFile(filepath.Join(folder, s.file), encodeSample(t, s), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
