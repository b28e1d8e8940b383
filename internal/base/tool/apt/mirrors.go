// Package apt reads how the host gets its Debian packages, and gets packages of
// other releases the same way without installing anything.
package apt

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Mirror is a source of packages as apt reads it.
type Mirror struct {
	URI        string
	Suite      string
	Components string
}

// Signed is its line of sources.list(5), checked with Debian's own keys.
func (m Mirror) Signed() string {
	return fmt.Sprintf("deb [signed-by=%s] %s %s %s", Keyring, m.URI, m.Suite, m.Components)
}

// entry is one source of the host's configuration.
type entry struct {
	uri, suite string
	components []string
	keys       string // what it is signed by, if that is said
}

// vendor reports whether the source is signed by keys other than Debian's: a
// vendor may call its suite "bookworm" too.
func (e entry) vendor() bool { return e.keys != "" && !strings.Contains(e.keys, "debian-archive") }

// Mirrors says where the packages of a codename come from: the mirrors
// that the host uses for its own Debian, with the suite exchanged. The updates
// and security suites are taken if the host takes its own; sid has neither. A
// host whose apt says nothing of Debian has none.
func Mirrors(etcApt, codename string) []Mirror {
	var entries []entry
	if b, err := os.ReadFile(filepath.Join(etcApt, "sources.list")); err == nil {
		entries = append(entries, parseList(string(b))...)
	}
	files, _ := filepath.Glob(filepath.Join(etcApt, "sources.list.d", "*")) // only a bad pattern is an error
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		switch filepath.Ext(f) {
		case ".list":
			entries = append(entries, parseList(string(b))...)
		case ".sources":
			entries = append(entries, parseDeb822(string(b))...)
		}
	}
	return choose(entries, codename)
}

// choose is the decision of Mirrors.
func choose(entries []entry, codename string) []Mirror {
	base, updates, security := "", "", ""
	for _, e := range entries {
		first := func(to *string) {
			if *to == "" && slices.Contains(e.components, "main") {
				*to = e.uri
			}
		}
		release, kind, _ := strings.Cut(e.suite, "-")
		switch {
		case !isSuite(release) || e.vendor():
		case kind == "":
			first(&base)
		case kind == "updates":
			first(&updates)
		case kind == "security":
			first(&security)
		}
	}
	if base == "" {
		return nil
	}
	mirrors := []Mirror{{base, codename, "main"}}
	if codename == "sid" {
		return mirrors
	}
	if updates != "" {
		mirrors = append(mirrors, Mirror{updates, codename + "-updates", "main"})
	}
	if security != "" {
		mirrors = append(mirrors, Mirror{security, codename + "-security", "main"})
	}
	return mirrors
}

// isSuite reports whether a name is one of Debian's: other distributions and
// vendors have theirs.
func isSuite(name string) bool {
	switch name {
	case "bullseye", "bookworm", "trixie", "forky", "sid", "oldoldstable", "oldstable", "stable", "testing", "unstable":
		return true
	}
	return false
}

// parseList reads the one-line form of sources.list(5).
func parseList(s string) (entries []entry) {
	for line := range strings.Lines(s) {
		line, _, _ = strings.Cut(line, "#")
		line = strings.TrimSpace(line)
		rest, ok := strings.CutPrefix(line, "deb ")
		if !ok {
			continue
		}
		rest = strings.TrimSpace(rest)
		keys := ""
		if options, after, ok := strings.Cut(rest, "]"); ok && strings.HasPrefix(options, "[") {
			_, keys, _ = strings.Cut(options, "signed-by=")
			rest = after
		}
		if f := strings.Fields(rest); len(f) >= 3 {
			entries = append(entries, entry{strings.TrimSuffix(f[0], "/"), f[1], f[2:], keys})
		}
	}
	return entries
}

// parseDeb822 reads the stanza form of sources.list(5).
func parseDeb822(s string) (entries []entry) {
	fields, key := map[string]string{}, ""
	end := func() {
		types, enabled := strings.Fields(fields["types"]), fields["enabled"]
		if slices.Contains(types, "deb") && !strings.EqualFold(enabled, "no") {
			for _, uri := range strings.Fields(fields["uris"]) {
				for _, suite := range strings.Fields(fields["suites"]) {
					entries = append(entries, entry{strings.TrimSuffix(uri, "/"), suite, strings.Fields(fields["components"]), fields["signed-by"]})
				}
			}
		}
		fields, key = map[string]string{}, ""
	}
	for line := range strings.Lines(s) {
		text := strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "#"):
		case text == "":
			end()
		case line[0] == ' ' || line[0] == '\t':
			fields[key] += " " + text
		default:
			k, v, _ := strings.Cut(text, ":")
			key = strings.ToLower(strings.TrimSpace(k))
			fields[key] = strings.TrimSpace(v)
		}
	}
	end()
	return entries
}

// Options are the host's options of how to reach mirrors: a proxy, and whether
// an old index is taken for what it is.
func Options(ctx context.Context) (options []string) {
	out, err := exec.CommandContext(ctx, "apt-config", "dump").Output()
	if err != nil {
		return nil // apt-get will say what is wrong
	}
	for line := range strings.Lines(string(out)) {
		line = strings.TrimSpace(line)
		name, _, _ := strings.Cut(line, " ")
		name = strings.ToLower(name)
		if strings.HasPrefix(name, "acquire::") && (strings.Contains(name, "proxy") || strings.HasSuffix(name, "::check-valid-until")) {
			options = append(options, strings.TrimSuffix(line, ";"))
		}
	}
	return options
}
