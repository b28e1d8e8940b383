package apt

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"lodge/internal/base/errs"
	"lodge/internal/base/tool"
)

// Root is an apt of its own: its lists, its cache and its (empty) list of what
// is installed lie in one folder, so it gets packages of any release and
// installs none. One process may use it at a time.
type Root struct {
	dir string
	op  string // what its errors are of
}

// Said receives what is being done: how much of 100 is done of the step, or 0
// when nobody knows.
type Said func(step string, percent uint64)

// Open makes or changes the root at dir so that it gives packages of codename,
// from where the host with its configuration in etcApt gets its own. op is what
// errors will be of.
func Open(ctx context.Context, op, dir, etcApt, codename string) (*Root, error) {
	if err := Check(etcApt, codename); err != nil {
		return nil, err
	}
	if err := tool.Need(op, map[string]string{"apt-get": "apt", "apt-cache": "apt", "dpkg-deb": "dpkg"}); err != nil {
		return nil, err
	}
	r := &Root{dir: dir, op: op}
	for _, d := range []string{"state/lists/partial", "archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	var sources strings.Builder
	for _, m := range Mirrors(etcApt, codename) {
		sources.WriteString(m.Signed() + "\n")
	}
	for name, text := range map[string]string{
		"sources.list": sources.String(), "status": "", "apt.conf": configuration(dir, codename, Options(ctx)),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// configuration is the whole of the root's apt.conf(5): nothing of the host's
// is read but options, so no hook of the host runs either.
func configuration(dir, codename string, options []string) string {
	var b strings.Builder
	set := func(name, value string) { fmt.Fprintf(&b, "%s %q;\n", name, value) }
	for _, name := range []string{"main", "parts", "trusted", "trustedparts", "preferences", "preferencesparts", "sourceparts"} {
		set("Dir::Etc::"+name, "/dev/null")
	}
	set("Dir::Etc::sourcelist", filepath.Join(dir, "sources.list"))
	set("Dir::State", filepath.Join(dir, "state"))
	set("Dir::State::status", filepath.Join(dir, "status"))
	set("Dir::Cache", dir)
	set("Dir::Cache::archives", filepath.Join(dir, "archives"))
	set("Dir::Cache::pkgcache", "")
	set("Dir::Cache::srcpkgcache", "")
	set("APT::Sandbox::User", "root")
	set("Acquire::Languages", "none")
	set("Acquire::GzipIndexes", "true")
	set("Acquire::Retries", "3")
	for _, o := range options {
		b.WriteString(o + ";\n")
	}
	if codename == "sid" { // a mirror that lags is a mirror still: what it gives is signed
		set("Acquire::Check-Valid-Until", "false")
	}
	return b.String()
}

func (r *Root) env() []string {
	return []string{"APT_CONFIG=" + filepath.Join(r.dir, "apt.conf"), "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive"}
}

// run runs apt-get in the folder of packages, since "download" leaves them where
// it is run, and tells how far it is.
func (r *Root) run(ctx context.Context, step string, said Said, args ...string) error {
	said(step, 0)
	var troubles []string
	err := tool.Run(ctx, r.op, r.env(), func(line string) {
		word, rest, _ := strings.Cut(line, ":")
		switch word {
		case "dlstatus":
			if p, ok := percent(rest); ok {
				said(step, p)
			}
		case "E", "W", "Err":
			if len(troubles) < 4 { // later ones follow from them
				troubles = append(troubles, line)
			}
		}
	}, "env", append([]string{"-C", filepath.Join(r.dir, "archives"), "apt-get", "-o", "APT::Status-Fd=1"}, args...)...)
	if err != nil && ctx.Err() == nil {
		return Explain(r.op, err, troubles)
	}
	return err
}

// percent reads what apt says of a download after "dlstatus:":
// "1:42.1337:Retrieving file 1 of 1".
func percent(s string) (uint64, bool) {
	_, s, _ = strings.Cut(s, ":")
	s, _, ok := strings.Cut(s, ":")
	f, err := strconv.ParseFloat(s, 64)
	if !ok || err != nil || f < 0 || f > 100 {
		return 0, false
	}
	return uint64(f), true
}

// Update fetches the lists of packages.
func (r *Root) Update(ctx context.Context, said Said) error {
	return r.run(ctx, "fetching package lists", said, "update", "--error-on=any")
}

// Package is what apt knows of the newest version of a package.
type Package struct {
	Name    string
	Version string
	Depends []string // names only
	Built   string   // "Built-Using": "linux (= 7.2.7-1)"
}

// Newest says what the newest version of the package name is.
func (r *Root) Newest(ctx context.Context, name string) (Package, error) {
	cmd := exec.CommandContext(ctx, "apt-cache", "--quiet", "--no-all-versions", "show", name)
	cmd.Env = append(os.Environ(), r.env()...)
	out, err := cmd.Output()
	if err != nil {
		failed := &errs.Error{Op: r.op, Kind: errs.NotFound, Msg: "the mirror has no package " + name, Err: err}
		if e, ok := errors.AsType[*exec.ExitError](err); ok {
			failed.Err = fmt.Errorf("%w: %s", err, e.Stderr)
		}
		return Package{}, failed
	}
	return parsePackage(string(out)), nil
}

// parsePackage reads the first stanza of a list of packages.
func parsePackage(s string) (p Package) {
	for line := range strings.Lines(s) {
		if strings.TrimSpace(line) == "" {
			break
		}
		key, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		switch key {
		case "Package":
			p.Name = value
		case "Version":
			p.Version = value
		case "Built-Using":
			p.Built = value
		case "Depends":
			for d := range strings.SplitSeq(value, ",") {
				d, _, _ = strings.Cut(strings.TrimSpace(d), " ")
				d, _, _ = strings.Cut(d, ":")
				p.Depends = append(p.Depends, d)
			}
		}
	}
	return p
}

// Fetch gets the newest versions of packages, and goes on with what an earlier
// call began. It returns the files.
func (r *Root) Fetch(ctx context.Context, said Said, packages ...string) (files []string, err error) {
	cmd := exec.CommandContext(ctx, "apt-get", append([]string{"--print-uris", "download"}, packages...)...)
	cmd.Env = append(os.Environ(), r.env()...)
	out, err := cmd.Output()
	if err != nil {
		return nil, &errs.Error{Op: r.op, Kind: errs.Unavailable, Msg: "the mirror lacks one of " + strings.Join(packages, ", "), Err: err}
	}
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); len(f) > 2 && filepath.IsLocal(f[1]) {
			files = append(files, filepath.Join(r.dir, "archives", f[1]))
		}
	}
	if len(files) != len(packages) {
		return nil, fmt.Errorf("apt-get names %d files for %d packages", len(files), len(packages))
	}
	return files, r.run(ctx, "fetching packages", said, append([]string{"download"}, packages...)...)
}

// Extract puts what is in a package's file below dir; none of its scripts run.
func (r *Root) Extract(ctx context.Context, file, dir string) error {
	return tool.Run(ctx, r.op, nil, nil, "dpkg-deb", "--extract", file, dir)
}

// Clean removes the packages that were fetched.
func (r *Root) Clean() error {
	archives := filepath.Join(r.dir, "archives")
	if err := os.RemoveAll(archives); err != nil {
		return err
	}
	return os.MkdirAll(filepath.Join(archives, "partial"), 0o755)
}
