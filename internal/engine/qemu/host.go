package qemu

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"lodge/internal/launch"
)

// look is everything that is found out about QEMU on this host, once for each
// version of its program.
type look struct {
	host
	program string
	stamp   string        // of the program's file
	binds   []launch.Bind // that QEMU needs in its jail
	models  []string      // of processors
	changes []string      // features that models can be given or denied
	judged  judged        // of the models
	tpm     *tpm          // nil: there are no such modules here
	kvmWhy  string
}

// found keeps the last look.
type found struct {
	mu   sync.Mutex
	last *look
}

const (
	program  = "qemu-system-x86_64"
	packages = "apt-get install qemu-system-x86 ovmf swtpm"
	// modules is where QEMU keeps the parts of itself that it loads when they
	// are needed; a build without such parts has no such folder.
	modules = "/usr/lib/x86_64-linux-gnu/qemu"
)

// askTime is how long QEMU may take to say what it is.
const askTime = 20 * time.Second

// see returns what is known of QEMU, or why there is none.
func (e *Engine) see(ctx context.Context) (*look, error) {
	e.found.mu.Lock()
	defer e.found.mu.Unlock()
	path, err := exec.LookPath(e.o.program())
	if err != nil {
		return nil, fmt.Errorf("%s is not installed", e.o.program())
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	stamp := fmt.Sprint(path, info.ModTime(), info.Size())
	if l := e.found.last; l != nil && l.stamp == stamp {
		return l, nil
	}
	l := &look{program: path, stamp: stamp}
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	if err := l.ask(ctx); err != nil {
		return nil, err
	}
	l.CPUs, l.TSC = e.o.cpus(), tscKHz()
	l.Firmware = findFirmware(e.o.firmwareDir())
	l.tpm = findTPM(ctx)
	l.KVM, l.kvmWhy = false, "it was not tried out"
	if e.o.KVM != nil {
		l.KVM, l.kvmWhy = e.o.KVM(ctx)
	}
	if l.judged, err = judge(ctx, l.program, l.accel(), l.host.cpuModel()); err != nil {
		e.o.Log.Warn("QEMU does not say what this host's processor can do", "err", err)
	}
	e.found.last = l
	return l, nil
}

// ask runs QEMU for what only it knows.
func (l *look) ask(ctx context.Context) error {
	text, err := run(ctx, l.program, "--version")
	if err != nil {
		return err
	}
	if l.Version, l.Machine, err = parseVersion(text); err != nil {
		return err
	}
	if l.binds, err = programBinds(ctx, l.program); err != nil {
		return err
	}
	for _, dir := range []string{modules, "/usr/share/qemu", "/usr/share/seabios"} {
		if _, err := os.Stat(dir); err == nil {
			l.binds = append(l.binds, launch.Bind{Host: dir, Inside: dir})
		}
	}
	text, err = run(ctx, l.program, "-cpu", "help")
	l.models, l.changes = parseModels(text), parseFeatures(text)
	l.Slow = slices.DeleteFunc(byteStrings(), func(f string) bool { return !slices.Contains(l.changes, f) })
	return err
}

// programBinds is what a program needs in a jail: itself and its libraries.
func programBinds(ctx context.Context, program string) (binds []launch.Bind, err error) {
	libraries, err := run(ctx, "ldd", program)
	if err != nil {
		return nil, err
	}
	for _, path := range append(parseLibraries(libraries), program) {
		binds = append(binds, launch.Bind{Host: path, Inside: path})
	}
	return binds, nil
}

func run(ctx context.Context, argv ...string) ([]byte, error) {
	c := exec.CommandContext(ctx, argv[0], argv[1:]...)
	c.Env = []string{"LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	text, err := c.Output()
	if err != nil {
		return nil, fmt.Errorf("%s does not run: %w", strings.Join(argv, " "), err)
	}
	return text, nil
}

var versionLine = regexp.MustCompile(`version (\d+)\.(\d+)(\.\d+)?`)

// leastMajor and leastMinor are the first version that all this was seen
// working with.
const leastMajor, leastMinor = 7, 2

// parseVersion reads what "--version" says, and which machine is that version's
// own: a saved guest goes on in the same one only.
func parseVersion(text []byte) (version, machine string, err error) {
	m := versionLine.FindSubmatch(text)
	if m == nil {
		return "", "", fmt.Errorf("QEMU does not say its version but %q", bytes.TrimSpace(text[:min(len(text), 100)]))
	}
	var major, minor int
	fmt.Sscan(string(m[1]), &major)
	fmt.Sscan(string(m[2]), &minor)
	version = fmt.Sprintf("%d.%d%s", major, minor, m[3])
	if major < leastMajor || major == leastMajor && minor < leastMinor {
		return version, "", fmt.Errorf("QEMU %s is too old: %d.%d is needed", version, leastMajor, leastMinor)
	}
	return version, fmt.Sprintf("pc-q35-%d.%d", major, minor), nil
}

// parseLibraries reads the paths out of what ldd says.
func parseLibraries(text []byte) (paths []string) {
	for line := range strings.Lines(string(text)) {
		for _, word := range strings.Fields(line) {
			if filepath.IsAbs(word) && !slices.Contains(paths, word) {
				paths = append(paths, word)
			}
		}
	}
	return paths
}

var revision = regexp.MustCompile(`-v[0-9]+$`)

// parseModels reads the names of processors that "-cpu help" lists, without
// their revisions.
func parseModels(text []byte) (models []string) {
	_, list, _ := strings.Cut(string(text), "CPUs:\n")
	list, _, _ = strings.Cut(list, "\n\n")
	for line := range strings.Lines(list) {
		f := strings.Fields(line)
		if len(f) > 1 && f[0] == "x86" { // as versions before 8.1 begin each line
			f = f[1:]
		}
		if len(f) > 0 && !revision.MatchString(f[0]) {
			models = append(models, f[0])
		}
	}
	return models
}

// firmware is the pairs of code and empty variables that are there.
type firmware map[string][2]string

// findFirmware looks for OVMF as Debian and others name its files.
func findFirmware(dir string) firmware {
	all := firmware{"bios": {}}
	for _, c := range []struct{ name, code, vars string }{
		{"uefi", "OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"}, {"uefi", "OVMF_CODE.fd", "OVMF_VARS.fd"},
		{"uefi-secure", "OVMF_CODE_4M.secboot.fd", "OVMF_VARS_4M.ms.fd"}, {"uefi-secure", "OVMF_CODE.secboot.fd", "OVMF_VARS.ms.fd"},
	} {
		code, vars := filepath.Join(dir, c.code), filepath.Join(dir, c.vars)
		_, err1 := os.Stat(code)
		_, err2 := os.Stat(vars)
		if _, have := all[c.name]; !have && err1 == nil && err2 == nil {
			all[c.name] = [2]string{code, vars}
		}
	}
	return all
}

func (f firmware) files(name string) (code, vars string, ok bool) {
	pair, ok := f[name]
	return pair[0], pair[1], ok
}

// names lists what there is, the plainest first.
func (f firmware) names() (all []string) {
	for _, n := range []string{"bios", "uefi", "uefi-secure"} {
		if _, ok := f[n]; ok {
			all = append(all, n)
		}
	}
	return all
}
