package apt

import (
	"context"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"lodge/internal/base/errs"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestMirrors(t *testing.T) {
	const main = "http://mirror.example/debian"
	tests := []struct {
		name, list, sources, codename string
		want                          []Mirror
	}{
		{"nothing of Debian", "deb http://archive.example/ubuntu noble main\n", "", "bookworm", nil},
		{"one line, no updates", "# deb http://no.example/debian sid main\ndeb [arch=amd64] " + main + "/ bookworm main contrib\n", "", "trixie",
			[]Mirror{{main, "trixie", "main"}}},
		{"stanzas", "", "Types: deb deb-src\n# old\nURIs: " + main + "\nSuites: bookworm\n bookworm-updates\nComponents: main\n\n" +
			"Types: deb\nURIs: http://sec.example\nSuites: bookworm-security\nComponents: main\n\nTypes: deb\nEnabled: no\nURIs: http://off.example\nSuites: sid\nComponents: main\n",
			"bookworm", []Mirror{{main, "bookworm", "main"}, {main, "bookworm-updates", "main"}, {"http://sec.example", "bookworm-security", "main"}}},
		{"sid has one suite", "deb " + main + " bookworm main\ndeb " + main + " bookworm-updates main\n", "", "sid", []Mirror{{main, "sid", "main"}}},
		{"a vendor's suite", "deb [signed-by=/usr/share/keyrings/vendor.gpg] http://vendor.example/debian bookworm main\ndeb " + main + " bookworm main\n", "", "bookworm",
			[]Mirror{{main, "bookworm", "main"}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			must(t, os.Mkdir(filepath.Join(dir, "sources.list.d"), 0o755))
			must(t, os.WriteFile(filepath.Join(dir, "sources.list"), []byte(tt.list), 0o644))
			must(t, os.WriteFile(filepath.Join(dir, "sources.list.d/debian.sources"), []byte(tt.sources), 0o644))
			if got := Mirrors(dir, tt.codename); !slices.Equal(got, tt.want) {
				t.Errorf("got  %v\nwant %v", got, tt.want)
			}
		})
	}
}

func TestFailuresAreExplained(t *testing.T) {
	for said, kind := range map[string]errs.Kind{
		"E: Could not resolve 'mirror.example'":                     errs.Unavailable,
		"W: GPG error: NO_PUBKEY 0E98":                              errs.Denied,
		"dpkg-deb: error: failed to write: No space left on device": errs.NoSpace,
		"E: something else":                                         errs.Internal,
	} {
		if err := Explain("x", context.DeadlineExceeded, []string{said}); errs.KindOf(err) != kind {
			t.Errorf("%q: %v, want kind %v", said, err, kind)
		}
	}
}

func TestAPackageIsRead(t *testing.T) {
	got := parsePackage("Package: linux-image-cloud-amd64\nVersion: 6.1.192-2\nDepends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2), libc6:any | x\n" +
		"Built-Using: linux (= 6.1)\n more: of that\n\nPackage: another\n")
	want := Package{Name: "linux-image-cloud-amd64", Version: "6.1.192-2", Depends: []string{"linux-image-6.1.0-56-cloud-amd64", "libc6"}, Built: "linux (= 6.1)"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestProgressOfAptIsRead(t *testing.T) {
	for line, want := range map[string]uint64{"1:42.7:Retrieving file 1 of 1": 42, "1:100.0000:x": 100} {
		if got, ok := percent(line); !ok || got != want {
			t.Errorf("%q: %d %v", line, got, ok)
		}
	}
	for _, line := range []string{"", "1", "1:x:y", "1:-1:y", "1:NaN", "1:101:y", "1:50"} {
		if got, ok := percent(line); ok {
			t.Errorf("%q gave %d", line, got)
		}
	}
}

// A root must not read the host's hooks, nor trust what the host trusts beside
// Debian's keys.
func TestARootIsClosedOff(t *testing.T) {
	text := configuration("/data", "bookworm", []string{`Acquire::http::Proxy "http://proxy.example:3128"`})
	for _, want := range []string{`Dir::Etc::parts "/dev/null";`, `Dir::Etc::trustedparts "/dev/null";`, `Dir::State::status "/data/status";`, `Acquire::http::Proxy "http://proxy.example:3128";`} {
		if !strings.Contains(text, want) {
			t.Errorf("%s is missing in\n%s", want, text)
		}
	}
	if strings.Contains(text, "Valid-Until") || !strings.Contains(configuration("/data", "sid", nil), "Valid-Until") {
		t.Error("only sid's index may be old")
	}
}
